#!/usr/bin/env bash
# Runs a command as the workers of a job on several hosts, over ssh.
#
#   ./launch/ssh.sh --hosts hostA:2,hostB:2 -- python train.py --lr=0.1
#
# The repository has to be at the same path on every host (a shared file system, git clone, rsync);
# its environment is created on each where it is missing. ssh must not prompt.
#
# --hosts HOST:N,…      the hosts, and how many workers each runs
# --ssh-command LINE    the command to run instead of ssh, for instance "ssh -p 2222 -i KEY"
# Other flags before -- are passed to tfddlrun; ./launch/ssh.sh -- --help lists its flags.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

hosts="" ssh="ssh" options=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --hosts) hosts="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --hosts=*) hosts="${1#*=}"; shift ;;
    --ssh-command) ssh="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --ssh-command=*) ssh="${1#*=}"; shift ;;
    --) shift; break ;;
    *) options+=("$1"); shift ;;
  esac
done
if [[ "${1:-}" == "--help" ]]; then
  set_up ""
  exec "$python" -m tfddl.launcher --help
fi
[[ -n "$hosts" ]] || fail "--hosts is missing; expected HOST:N,… of every host"
(($#)) || fail "there is no command to run; it comes after --"

set_up ""
names="$("$python" -c '
import sys
from tfddl.errors import LaunchError
from tfddl._src.launcher.hosts import parse_hosts
try:
    print(*(host.name for host in parse_hosts(sys.argv[1])), sep="\n")
except LaunchError as error:
    sys.exit(f"ssh.sh: {error}")
' "$hosts")" || exit 2
if [[ -z "${TFDDL_PYTHON:-}" ]]; then
  read -ra line <<<"$ssh"
  while read -r name; do
    # The path is sent through bash's stdin, so that no shell expands it.
    printf 'set -euo pipefail; cd -- %q; . launch/setup.sh; set_up ""\n' "$root" |
      "${line[@]}" -T -oBatchMode=yes -- "$name" bash -s || fail "can't set up tfddl on $name"
  done <<<"$names"
fi
exec "$python" -m tfddl.launcher -H "$hosts" --ssh-command "$ssh" "${options[@]}" -- "$@"
