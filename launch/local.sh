#!/usr/bin/env bash
# Trains a U-Net on this machine, on several workers at once.
#
#   ./launch/local.sh                                  2 workers, on synthetic data
#   ./launch/local.sh --workers 3 -- --data_dir DIR --epochs 20
#
# --workers N   number of processes (2)
# What follows -- is passed to the training command; ./launch/local.sh -- --help lists its flags.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

workers=2
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --workers) workers="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --workers=*) workers="${1#*=}"; shift ;;
    --) shift; break ;;
    *) fail "unknown argument '$1'; flags of the training command come after --" ;;
  esac
done
[[ "$workers" =~ ^[1-9][0-9]*$ ]] || fail "--workers is '$workers'; it must be 1 or more"

set_up ""
exec "$python" -m tfddl.launcher -np "$workers" -- "$python" -m tfddl.segmentation.train "$@"
