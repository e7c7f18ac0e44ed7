"""Compares what `tests/scripts/horovod/measure.py` measures under both; writes the page.

Usage: against_horovod.py FOLDER docs/against-horovod.md
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCES = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-9}

KNOWN = {
    r"(grouped_)?reducescatter .* \| u?int8": "Horovod's reducescatter has no integers of 8 bits",
    r"(grouped_)?(allreduce|reducescatter) .* \| u?int16": "Horovod reduces no integers of 16 bits",
    r".* \| bfloat16": "Horovod has no bfloat16",
    "broadcast_object_fn": "Horovod's needs a placeholder, which it can't make eagerly",
    "broadcast(_|_variables inplace)$": "Horovod's needs variables of TensorFlow 1",
    "error reducescatter Min": "Horovod's has Average and Sum only",
    "error reducescatter scalar": "tfddl's is the same error for all that cut the first dimension",
    "error op of text": "tfddl takes the names of ops, too",
    "error no set": "tfddl takes a set without an id between its own ranks, too",
    "SyncBatchNormalization of unequal batches": "Horovod averages the ranks' means, however many "
    "examples each has; tfddl's are of all examples",
    "session optimizer no passes": "Horovod takes 0 as 1",
    r"session optimizer local \|": "Horovod asks whether a tensor of the graph is true",
    "tape predivide sparse": "Horovod has no factors for slices",
    "tape groups 0": "tfddl takes 0 as none, as Horovod takes num_groups=0",
    "tape Min": "tfddl combines gradients by Average, Sum and Adasum only",
    "tape groups of text": "Horovod compares a text with 0",
    "fit predivide, Sum": "Horovod ignores the op then",
    ".*: fit callbacks": "Horovod averages the logs in float32, tfddl in float64",
    "three: (tape|fit) fp16": "tfddl divides by three before it rounds to 16 bits and adds up, "
    "Horovod after it",
}
"""By a pattern of names: why tfddl's isn't Horovod's."""

HEAD = """# Against Horovod itself

`tests/against_horovod.sh` builds Horovod {version} (TensorFlow 2.15.1, Gloo), runs
`tests/scripts/horovod/measure.py` under both on {size} ranks, and writes this page: {number}
results, each rank's counted, compared by dtype, numbers (float32 to 2e-6) and classes of errors:
tfddl's are of Horovod's class, or of a subclass. A row without a third number has no difference.
"Fit" is a small `fit` of each rank's own data: learning rates of all batches, logs and weights.
"Session" is a graph of TensorFlow 1, "optimizer" one of `tf.compat.v1.train`. "Sets" are process
sets of several ranks, in a job of {more}: {{0, 1}} and {{2, 3}} ("neighbours"); {{0, 2}} and
{{1, 3}} ("every other"); {{1, 3}} alone ("some"); {{0, 1, 3}} alone ("three"). A rank that is in
none only has a tape, or an optimizer, of the set.

Not compared: Adasum, which Horovod has with MPI or NCCL only; ranks that call different operations,
or groups of different sizes, where Horovod blocks indefinitely; negative splits, a scalar in
`alltoall` and a process set of ranks that don't exist, which end its processes; and a second
`join`, which returns at once there. tfddl raises errors that say what each rank calls, and joins
again.
"""


TESTS = """
## Horovod's own tests

By `tfddlrun --horovod -np 2 python -m pytest FILE`, in each rank. "Shortened" are the file's CPU
tests written down anew, with fewer dtypes and repetitions, and run in two ways: eagerly, and, as
Horovod runs them too, in a `tf.Graph` for a session.

| file (`test/parallel/`) | tests | pass | fail | why |
|---|---|---|---|---|
| `test_tensorflow.py`, shortened, eagerly | 47 | 47 | | |
| `test_tensorflow.py`, shortened, in a graph | 47 | 47 | | |
| `test_tensorflow_process_sets.py`, shortened, eagerly, on 3 ranks | 12 | 11 | 1 | it sets \
`process_set_id` of a set, which is read-only here |
| `test_tensorflow_process_sets_dynamic.py`, on 2 and on 3 ranks | 1 | 1 | | |
| `test_tensorflow2_keras.py` | 12 | 4 | 8 | the first four subclass Keras 2's `OptimizerV2`; \
three read `_agg_helper` or call `_compute_gradients`, which Keras 3's optimizers don't have; \
`test_elastic_state` uses `legacy.Optimizer.Adam`, which Keras 2.15 doesn't have either |
| `test_tensorflow2_keras_process_sets.py`, on 2 and on 3 ranks | 1 | | 1 | it makes an optimizer \
without a learning rate, which Keras 3 refuses |
| `test_process_sets_static.py`, `test_process_sets_multi_comm.py`, \
`test_adasum_tensorflow.py` | 4 | | | not run: they skip themselves without MPI |
| `test_keras.py`, `test_tensorflow_keras.py` | | | | not run: they skip themselves with \
TensorFlow 2 |
| `test_xla.py`, `test_xla_process_sets.py` | | | | not run: a `tf.function(jit_compile=True)` \
around a collective is an error here |

A `tf.function` with a collective, in the graph of a session, is refused here. What the failing ones
are about is measured above: gradients of several passes, local layers, learning rates, optimizers
of process sets.
"""


def difference(theirs: Any, ours: Any) -> str:
    """What differs; "" for nothing."""
    if theirs is None or ours is None:
        return f"only {'tfddl' if theirs is None else 'Horovod'} has it"
    if theirs[0] != ours[0]:
        return f"Horovod: {_shown(theirs)}; tfddl: {_shown(ours)}"
    if theirs[0] == "error":
        missing = [kind for kind in theirs[1] if kind not in ours[1]]
        return f"Horovod: {missing[0]}; tfddl: {ours[1][0]}" if missing else ""
    if theirs[1] != ours[1]:
        return f"dtypes: Horovod {theirs[1]}, tfddl {ours[1]}"
    for dtype, one, other in zip(theirs[1], theirs[2], ours[2], strict=True):
        if np.shape(one) != np.shape(other):
            return f"shapes: Horovod {np.shape(one)}, tfddl {np.shape(other)}"
        if not np.allclose(one, other, rtol=TOLERANCES.get(dtype, 0), atol=1e-7):
            worst = np.max(np.abs(np.subtract(one, other)))
            return f"numbers: by {worst:.2g} in {dtype}"
    return ""


def _group(name: str) -> str:
    """The row that counts a result: for sets of several ranks, one for all that is called alike."""
    layout, _, rest = name.rpartition(": ")
    name = f"sets: {rest.removesuffix(' in a graph')}" if layout else name
    return name.split(" | ")[0].split(",")[0]


def _reason(name: str) -> str:
    return next((text for known, text in KNOWN.items() if re.match(known, name)), "")


def _shown(measured: Any) -> str:
    return measured[1][0] if measured[0] == "error" else "a value"


def measured(folder: str, by: str) -> list[dict[str, Any]]:
    """What each rank has measured, in all parts."""
    ranks: dict[str, dict[str, Any]] = {}
    for file in sorted(Path(folder).glob(f"*/{by}/*.json")):
        ranks.setdefault(file.stem, {}).update(json.loads(file.read_text()))
    return [ranks[rank] for rank in sorted(ranks)]


def main(folder: str, page: str) -> int:
    both = list(zip(measured(folder, "horovod"), measured(folder, "tfddl"), strict=True))
    groups: dict[str, list[int]] = {}
    having: dict[str, int] = {}
    found: dict[str, dict[str, list[int]]] = {}
    for rank, (theirs, ours) in enumerate(both):
        for name in {**theirs, **ours}:
            having[name] = having.get(name, 0) + 1
            counted = groups.setdefault(_group(name), [0, 0])
            counted[0] += 1
            text = difference(theirs.get(name), ours.get(name))
            if text:
                counted[1] += 1
                found.setdefault(name, {}).setdefault(text, []).append(rank)
    number = sum(count for count, _ in groups.values())
    lines = [HEAD.format(version="0.28.1", size=2, more=len(both), number=number)]
    lines += ["| what | results | differ |", "|---|---|---|"]
    lines += [f"| {name} | {count} | {bad or ''} |" for name, (count, bad) in groups.items()]
    unknown = [name for name in found if not _reason(name)]
    if found:
        lines += ["", "## What differs", "", "| what | how | why |", "|---|---|---|"]
    alike: dict[tuple[str, str], list[str]] = {}
    for name, texts in found.items():
        for text, ranks in texts.items():
            some = "" if len(ranks) == having[name] else f" (rank {', '.join(map(str, ranks))})"
            alike.setdefault((text + some, _reason(name) or "?"), []).append(name)
    for (text, why), names in alike.items():
        shown = ", ".join(name.replace(" | ", " ") for name in names[:2])
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"| {shown}{more} | {text} | {why} |")
    Path(page).write_text("\n".join(lines) + "\n" + TESTS)
    print(f"{number} results, {len(found)} names differ, {len(unknown)} without a reason")
    for name in unknown:
        print(name, found[name])
    return bool(unknown)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
