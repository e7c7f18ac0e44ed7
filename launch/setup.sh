# shellcheck shell=bash
# Sourced by the scripts next to it: set_up gives them $python, with tfddl installed.
#
# The environment is created in .venv at the top of the repository, or in $TFDDL_VENV, by the first
# run; pip runs again only when pyproject.toml or the Python has changed.
# TFDDL_PYTHON=/path/to/python uses that Python as it is, and installs nothing.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

# The comment on top of the calling script is its help text.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

fail() {
  printf '%s: %s\n' "$(basename -- "$0")" "$1" >&2
  exit 2
}

# set_up EXTRA: sets python, and puts its commands on the PATH. EXTRA is "test", or "" for none.
set_up() {
  if [[ -n "${TFDDL_PYTHON:-}" ]]; then
    python="$(command -v -- "$TFDDL_PYTHON")" || fail "TFDDL_PYTHON is '$TFDDL_PYTHON'; no such program"
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  else
    local venv="${TFDDL_VENV:-$root/.venv}"
    mkdir -p -- "$venv"
    venv="$(cd -- "$venv" && pwd)"
    python="$venv/bin/python"
    # Of two concurrent runs, one installs and the other waits.
    exec 9<"$venv"
    flock 9
    _install "$venv" "$1"
    exec 9<&-
  fi
  PATH="$(dirname -- "$python"):$PATH"
}

_install() {
  local venv="$1" extra="$2" stamp="$1/.tfddl-stamp" base version hash options=()
  base="$(_find_python)"
  version="$("$base" -c 'import sys; print(sys.version, sys.base_prefix)')"
  hash="$(printf '%s\n' "$version" "$root" | cat - "$root/pyproject.toml" | sha256sum | cut -c 1-64)"
  if grep -qsx "$hash ${extra:-.*}" "$stamp"; then
    return
  fi
  if [[ "$("$python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>&1)" != "$version" ]]; then
    if [[ -n "$(ls -A -- "$venv")" && ! -e "$venv/pyvenv.cfg" ]]; then
      fail "$venv is no Python environment, and not empty; set TFDDL_VENV to another folder"
    fi
    options=(--clear)
  fi
  echo "Setting up $venv (TensorFlow, ~600 MB, once) …" >&2
  # Written last, so that an interrupted installation is repeated.
  rm -f -- "$stamp"
  # Debian's Python has no ensurepip; the pip of the base Python then installs.
  local pip=("$python" -m pip)
  if ! "$base" -m venv "${options[@]}" "$venv" >/dev/null 2>&1; then
    "$base" -m venv --without-pip "${options[@]}" "$venv"
    pip=("$base" -m pip --python "$python")
  fi
  "${pip[@]}" install -qq --disable-pip-version-check -e "$root${extra:+[$extra]}" >&2
  echo "$hash $extra" >"$stamp"
}

_find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' >/dev/null 2>&1; then
      command -v -- "$name"
      return
    fi
  done
  fail "needs Python 3.11 or newer; python3 is $(python3 --version 2>&1 | head -n 1)"
}
