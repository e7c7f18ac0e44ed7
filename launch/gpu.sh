#!/usr/bin/env bash
# Acceptance test of tfddl on the GPUs of this machine: run it before you rely on them.
#
#   ./launch/gpu.sh                  one worker per GPU, through NCCL
#   ./launch/gpu.sh --workers 2      two of the GPUs
#
# It lists the devices, runs the doctor, checks every collective in every dtype against NumPy, trains
# the same on one process and on all GPUs, has a rank sleep and one killed, and measures bandwidth,
# step time and overlap. With one GPU it runs what one GPU can, and lists what was left out.
#
# exit status: 0 passed; 1 failed; 2 wrong arguments; 3 there is no GPU, and what can be checked
# without one has passed

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

arguments=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --workers) workers="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --workers=*) workers="${1#*=}"; shift ;;
    # For tfddl's own tests: runs this command on CPUs, which proves nothing for GPUs.
    --rehearse) arguments+=(--rehearse); shift ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
if [[ -v workers ]]; then
  [[ "$workers" =~ ^[1-9][0-9]*$ && "$workers" != 1 ]] || fail "--workers is '$workers'; it must be 2 or more"
  arguments+=(--workers "$workers")
fi

# TensorFlow's CUDA libraries are large: installed only where there is a GPU.
extra=""
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || command -v nvidia-smi >/dev/null; then
  extra="gpu"
fi
set_up "$extra"
cd -- "$root"
# No rounding to TF32, neither in the workers nor in the process that they are compared with.
export NVIDIA_TF32_OVERRIDE=0 TF_CPP_MIN_LOG_LEVEL=2
exec "$python" -m tests.gpu_acceptance ${arguments[@]+"${arguments[@]}"}
