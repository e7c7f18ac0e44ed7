"""Recordings of trainings, as digests: written step by step, and compared.

A recording is a file of JSON lines, one per recorded step: ``epoch``, ``step``, and by name the
digests of the variables, and where known of the gradients' sums and of the batches. A run that goes
on appends to it; of a step that was recorded twice the later line counts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfddl.errors import DataError

Step = tuple[int, int]
"""Epoch, from 0, and the number of its steps that are done, from 1."""

_ORDER = ("batches", "gradients", "variables")
"""What is computed from what: the first that differs is nearest to the cause."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first step in which two recordings differ, and in what."""

    epoch: int
    """Its number, from 0."""

    step: int
    """From 1: the number of the epoch's steps that are done."""

    kind: str
    """"batches", "gradients" or "variables": the first of these in which anything differs."""

    names: tuple[str, ...]
    """What differs of them, in the order of the recording."""

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return (
            f"The recordings part in epoch {self.epoch}, step {self.step}: first in {self.kind}, "
            f"of which {self.names[0]} differs{more}."
        )


def digest(array: np.ndarray) -> str:
    """16 hexadecimal digits of an array's bytes, dtype and shape."""
    hashed = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=8)
    # The bytes of an object array are addresses, another in each process. Not `.data`: bfloat16
    # has no buffer format.
    is_object = array.dtype == object
    hashed.update(repr(array.tolist()).encode() if is_object else array.tobytes())
    return hashed.hexdigest()


def render(step: Step, digests: Mapping[str, Mapping[str, str]]) -> str:
    """A line of a recording.

    Args:
        step: Which step.
        digests: By kind ("batches", "gradients", "variables"), then by name.
    """
    return json.dumps({"epoch": step[0], "step": step[1], **digests}) + "\n"


def compare(first: Path, second: Path) -> Difference | None:
    """The first step that both recordings have and in which they differ.

    Returns:
        None where they have the same in all steps that both have.

    Raises:
        DataError: A file isn't a recording, or they have no step in common.
    """
    one, other = _read(first), _read(second)
    steps = sorted(one.keys() & other.keys())
    if not steps:
        raise DataError(
            f"{first} and {second} have no step in common, of {len(one)} and {len(other)}; "
            "expected recordings of the same training. HINT: record both with the same every=…."
        )
    for step in steps:
        for kind in _ORDER:
            a, b = one[step].get(kind), other[step].get(kind)
            if a is None or b is None:  # Known in one of the runs only.
                continue
            names = [name for name in [*a, *(b.keys() - a.keys())] if a.get(name) != b.get(name)]
            if names:
                return Difference(epoch=step[0], step=step[1], kind=kind, names=tuple(names))
    return None


def _read(path: Path) -> dict[Step, dict[str, dict[str, str]]]:
    steps: dict[Step, dict[str, dict[str, str]]] = {}
    try:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps[entry.pop("epoch"), entry.pop("step")] = entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} can't be read as a recording: {type(error).__name__}: {error}; expected what "
            "tfddl.debug.fingerprint has written."
        ) from error
    return steps
