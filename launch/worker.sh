#!/usr/bin/env bash
# Starts one worker of a job on several hosts: the same command on every host but for the index.
#
#   ./launch/worker.sh --hosts hostA:12345,hostB:12345 --index 0 -- python train.py     on hostA
#   ./launch/worker.sh --hosts hostA:12345,hostB:12345 --index 1 -- python train.py     on hostB
#
# --hosts HOST:PORT,…   the address of every worker, in rank order; a host with several
#                       workers is listed as often, each time with another port
# --index N             the rank of this worker, from 0
#
# TensorFlow's servers run what any client sends: open these ports to the other hosts only.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

hosts="" index=""
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --hosts) hosts="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --hosts=*) hosts="${1#*=}"; shift ;;
    --index) index="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --index=*) index="${1#*=}"; shift ;;
    --) shift; break ;;
    *) fail "unknown argument '$1'; the command comes after --" ;;
  esac
done
[[ -n "$hosts" ]] || fail "--hosts is missing; expected HOST:PORT,… of every worker"
[[ "$index" =~ ^[0-9]+$ ]] || fail "--index is '$index'; it must be 0 or more"
(($#)) || fail "there is no command to run; it comes after --"

set_up ""
TF_CONFIG="$("$python" -m tfddl.cluster --hosts="$hosts" --index="$index")"
export TF_CONFIG
exec "$@"
