#!/usr/bin/env bash
# Certifies tfddl on the GPUs of this machine: run it before you rely on them.
#
#   ./launch/gpu.sh                  a worker for each GPU, by NCCL
#   ./launch/gpu.sh --workers 2      of two of them
#
# It lists the devices, runs the doctor, checks every collective in every dtype against NumPy, trains
# the same on one process and on all GPUs, has a rank sleep and one killed, and measures bandwidth,
# step time and overlap. With one GPU it shows what one GPU can, and says what it couldn't.
#
# exit status: 0 all is well; 1 something isn't; 3 there is no GPU, and what can be checked without
# one is well; 2 a mistake in the arguments

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

arguments=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --workers) workers="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --workers=*) workers="${1#*=}"; shift ;;
    # For tfddl's own tests: the code of this command on CPUs. It says nothing about GPUs.
    --rehearse) arguments+=(--rehearse); shift ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
if [[ -v workers ]]; then
  [[ "$workers" =~ ^[1-9][0-9]*$ && "$workers" != 1 ]] || fail "--workers is '$workers'; it must be 2 or more"
  arguments+=(--workers "$workers")
fi

# TensorFlow's CUDA libraries are large: only where there is something to use them for.
extra=""
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || command -v nvidia-smi >/dev/null; then
  extra="gpu"
fi
set_up "$extra"
cd -- "$root"
# Floats aren't rounded to TF32: not by the workers, and not by the process they are compared with.
export NVIDIA_TF32_OVERRIDE=0 TF_CPP_MIN_LOG_LEVEL=2
exec "$python" -m tests.gpu_acceptance ${arguments[@]+"${arguments[@]}"}
