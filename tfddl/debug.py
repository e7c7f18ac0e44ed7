"""Where two runs part that should have been the same in every bit.

Usage::

    model.fit(data, callbacks=[tfddl.debug.fingerprint("a.jsonl")])     # the one run
    model.fit(data, callbacks=[tfddl.debug.fingerprint("b.jsonl")])     # the other

    python -m tfddl.debug a.jsonl b.jsonl
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

from tfddl._src.callbacks.fingerprint import Fingerprint
from tfddl._src.fingerprints import Difference as Difference
from tfddl._src.fingerprints import compare as _compare
from tfddl.errors import DataError

__all__ = ["Difference", "compare", "fingerprint"]


def fingerprint(path: str | os.PathLike[str], *, every: int = 1) -> keras.callbacks.Callback:
    """A callback for `fit` that records a training, so that it can be compared with another one.

    Give it to `fit` on every rank; rank 0 writes. Each recorded step adds a line: a digest of each
    variable of model and optimizer, and, with virtual workers, of each of their batches and of the
    sums of the gradients. It reads all variables in each recorded step: that costs time.

    Args:
        path: Of the file (JSON lines), made if it isn't there; a run that resumes appends to it.
        every: Records each step whose number within the epoch it divides, at least 1.

    Raises:
        UnsupportedError: ``every`` is less than 1.
    """
    return Fingerprint(Path(path), every=every)


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Difference | None:
    """The first step, and what of it, in which two recordings differ.

    Returns:
        None where they have the same in all steps that both have.

    Raises:
        DataError: A file isn't a recording, or they have no step in common.
    """
    return _compare(Path(first), Path(second))


def main(argv: Sequence[str]) -> int:
    """Compares two recordings, and prints where they part; 1 if they do."""
    parser = argparse.ArgumentParser(prog="python -m tfddl.debug", description=main.__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args(argv)
    try:
        found = compare(arguments.first, arguments.second)
    except DataError as error:
        parser.error(str(error))
    sys.stdout.write(f"{found or 'The recordings are the same in every step that both have.'}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
