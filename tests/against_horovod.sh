#!/bin/sh
# Builds Horovod 0.28.1 (some minutes of two cores), runs the same script under it and under tfddl,
# and writes docs/against-horovod.md. Needs Python 3.11 (PYTHON), a C++ compiler and the package
# registry; not part of the tests that run every day.
#
# Usage: tests/against_horovod.sh [FOLDER]   (keeps the environment there, for the next time)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${TMPDIR:-/tmp}/tfddl-against-horovod}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
env=${HOROVOD_ENV:-$folder/env}

if ! "$env/bin/python" -c 'import horovod.tensorflow' 2> /dev/null; then
    "${PYTHON:-python3.11}" -m venv "$env"
    "$env/bin/pip" install -q 'setuptools<70' wheel 'cmake<3.28' 'numpy<2' 'tensorflow-cpu==2.15.1' \
        cloudpickle psutil pyyaml packaging
    PATH=$env/bin:$PATH HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 \
        HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_GLOO=1 \
        "$env/bin/pip" install -q --no-build-isolation --no-binary horovod 'horovod==0.28.1'
fi
script=$root/tests/scripts/horovod/measure.py
compare() { # how many ranks, and what they measure
    ranks=$1 parts=$2
    results=$folder/$(echo "$parts" | tr ' ' -)
    rm -rf "$results"
    mkdir -p "$results/horovod" "$results/tfddl"
    cd "$results"
    # Where Horovod waits for ever, the page says that only tfddl has a result.
    # shellcheck disable=SC2086
    PATH=$env/bin:$PATH PYTHONPATH='' timeout 600 "$env/bin/horovodrun" --gloo -np "$ranks" \
        -H "localhost:$ranks" "$env/bin/python" "$script" "$results/horovod" $parts || true
    # shellcheck disable=SC2086
    timeout 600 tfddlrun --horovod -np "$ranks" python "$script" "$results/tfddl" $parts
}
for parts in "collectives numpy_ones" rare layers sessions "tapes training" errors sets joined; do
    compare 2 "$parts"
done
compare 4 subsets
python "$root/tests/against_horovod.py" "$folder" "$root/docs/against-horovod.md"
