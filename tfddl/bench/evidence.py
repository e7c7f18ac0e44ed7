"""What a training that was struck has left, and what that proves. Without TensorFlow."""

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
    """One start of the job: from where it went on, and what it trained on."""

    epoch: int
    consumed: int
    batches: Batches


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How often the examples were trained on, as far as it has come into the weights."""

    lost: int
    """Examples that some epoch misses, over all epochs."""

    twice: int
    repeated: int
    """Steps that were trained on, and then again because they hadn't been saved."""


def read_starts(directory: Path) -> list[Start]:
    """The starts that came to train, in their order."""
    begun = {line["start"]: line for line in _lines(directory.glob("from.0"))}
    batches: dict[str, Batches] = {start: {} for start in begun}
    for line in _lines(sorted(directory.glob("seen.*"))):
        of_start = batches.setdefault(line["start"], {})
        of_start.setdefault((line["epoch"], line["step"]), []).extend(line["ids"])
    return [Start(line["epoch"], line["consumed"], batches[s]) for s, line in begun.items()]


def exposure(starts: list[Start], *, num_examples: int, epochs: int) -> Exposure:
    """Counts what has come into the weights: of each start, what the next one went on from."""
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
    """The epoch and the examples of each step that was saved."""
    consumed, epoch_before = start.consumed, start.epoch
    for (epoch, _), ids in sorted(start.batches.items()):
        if epoch != epoch_before:
            consumed, epoch_before = 0, epoch
        consumed += len(ids)
        if (epoch, consumed) <= end or epoch < end[0]:
            yield epoch, ids


def read_notes(directory: Path, name: str) -> list[dict[str, Any]]:
    """What all ranks have noted under a name."""
    return list(_lines(sorted(directory.glob(f"{name}.*"))))


def weights_differ(directory: Path, other: Path) -> float:
    """The largest difference of a weight, by the largest weight of its variable; 0 is bit for bit.

    Raises:
        OSError: One of the trainings has left no weights.
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
