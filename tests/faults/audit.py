"""Which examples came into the weights how often, from the records of a training."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Batches = dict[tuple[int, int], list[int]]
"""By epoch and step: the numbers of the examples of all ranks."""


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of the job: the position it resumed from, and what it trained on."""

    epoch: int
    consumed: int
    batches: Batches


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How often examples came into the final weights."""

    lost: int
    """Examples missing from an epoch, over all epochs."""

    twice: int
    repeated: int
    """Steps that were done again because they hadn't been saved."""


def read_starts(directory: Path) -> list[Start]:
    """The starts that trained, in order."""
    begun = {line["start"]: line for line in _lines(directory.glob("from.0"))}
    batches: dict[str, Batches] = {start: {} for start in begun}
    for line in _lines(sorted(directory.glob("seen.*"))):
        of_start = batches.setdefault(line["start"], {})
        of_start.setdefault((line["epoch"], line["step"]), []).extend(line["ids"])
    return [Start(line["epoch"], line["consumed"], batches[s]) for s, line in begun.items()]


def exposure(starts: list[Start], *, num_examples: int, epochs: int) -> Exposure:
    """Counts, of each start, the steps up to the position that the next one resumed from."""
    seen: list[Counter[int]] = [Counter() for _ in range(epochs)]
    repeated = 0
    ends = [(start.epoch, start.consumed) for start in starts[1:]] + [(epochs, 0)]
    for start, end in zip(starts, ends, strict=True):
        kept = list(_kept(start, end))
        repeated += len(start.batches) - len(kept)
        for epoch, ids in kept:
            seen[epoch].update(ids)
    times = [counts[example] for counts in seen for example in range(num_examples)]
    return Exposure(lost=times.count(0), twice=sum(count > 1 for count in times), repeated=repeated)


def _kept(start: Start, end: tuple[int, int]) -> Iterator[tuple[int, list[int]]]:
    """(epoch, examples) of each step that was saved."""
    consumed, epoch_before = start.consumed, start.epoch
    for (epoch, _), ids in sorted(start.batches.items()):
        if epoch != epoch_before:
            consumed, epoch_before = 0, epoch
        consumed += len(ids)
        if (epoch, consumed) <= end or epoch < end[0]:
            yield epoch, ids


def read_records(directory: Path, name: str) -> list[dict[str, Any]]:
    """The records of all ranks under a name."""
    return list(_lines(sorted(directory.glob(f"{name}.*"))))


def weights_differ(directory: Path, other: Path) -> float:
    """The largest difference of a weight, relative to its variable's largest; 0 is bit for bit.

    Raises:
        OSError: One of the trainings left no weights.
    """
    with (
        np.load(directory / "weights.npz") as mine,
        np.load(other / "weights.npz") as theirs,
    ):
        return _largest_difference(dict(mine), dict(theirs))


def _largest_difference(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    if mine.keys() != theirs.keys():
        return float("inf")
    return max(
        0.0 if a.tobytes() == theirs[n].tobytes() else _relative(a, theirs[n])
        for n, a in mine.items()
    )


def _relative(mine: np.ndarray, theirs: np.ndarray) -> float:
    # Zeros of different signs differ in their bits, too.
    tiny = float(np.finfo(np.float32).tiny)
    distance, largest = (float(np.abs(v).max()) for v in (mine - theirs, theirs))
    return distance / max(largest, tiny) or tiny


def _lines(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in path.read_text().splitlines():
            with_end = line.endswith("}")  # The process may have died while it wrote.
            if with_end:
                yield json.loads(line)
