#!/usr/bin/env bash
# Runs the multi-process tests with other versions of TensorFlow and Keras. By hand: it downloads
# each of them, and takes about half an hour.
#
#   ./tests/versions.sh                     all of the table below
#   ./tests/versions.sh 2.18.1 3.11.3       TensorFlow and Keras; what follows goes to pytest

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

tests=(tests/test_scope.py tests/test_exact.py tests/test_fit.py tests/test_gradients.py
  tests/test_resume.py tests/test_evaluate.py tests/test_normalization.py)

run() {
  local tensorflow=$1 keras=$2
  shift 2
  local environment
  environment=$(mktemp -d)
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet "tensorflow==$tensorflow" "keras==$keras" -e '.[test]'
  echo "TensorFlow $tensorflow, Keras $keras"
  local status=0
  "$environment/bin/python" -m pytest -q -m "not long" "${@:-${tests[@]}}" || status=$?
  rm -rf "$environment"
  return "$status"
}

if (($#)); then
  run "$@"
  exit
fi
failed=0
for versions in "2.18.1 3.11.3" "2.21.0 3.12.0" "2.21.0 3.15.1"; do
  # shellcheck disable=SC2086 # two words
  run $versions || failed=1
done
exit "$failed"
