#!/usr/bin/env bash
# Checks everything: lint, format, types, documentation, tests.
#
#   ./launch/test.sh                        some 10 minutes on two cores
#   ./launch/test.sh --all                  the long tests too, at most 90 minutes
#   ./launch/test.sh --ring                 several workers over TensorFlow's collectives instead of
#                                           shared memory, wherever a test leaves the choice
#   ./launch/test.sh -- -k cluster -x       what follows -- is passed to pytest
#   ./launch/test.sh -- -n 0 --pdb          one file after the other instead of two at once

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

selection=(-m "not long" -n 2 --dist loadfile --no-loadscope-reorder)
extras=test,docs,parquet,manifests,ray,spark
while (($#)); do
  case "$1" in
    -h | --help) usage; exit ;;
    --all) selection=(); shift ;;
    --ring) export TFDDL_TEST_COLLECTIVE=ring; shift ;;
    --) shift; break ;;
    *) fail "unknown argument '$1'; arguments for pytest come after --" ;;
  esac
done

set_up "$extras"
cd -- "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# These two beside each other: each takes one core.
"$python" -m mypy &
types=$!
# Broken links and names that are gone are errors; the pages themselves aren't kept.
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet --site-dir "$(mktemp -d)" ||
  { wait "$types"; exit 1; }
wait "$types"
"$python" -m pytest "${selection[@]}" "$@"
