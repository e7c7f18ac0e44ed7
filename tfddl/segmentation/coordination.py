"""What the application's ranks coordinate: the same examples, one voice, writable directories."""

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tfddl
from tfddl.errors import DataError, DisagreementError


def compare_names(names: Sequence[str], *, flag: str) -> None:
    """Checks that all ranks list the same examples, of which each takes a shard.

    All ranks must call it together.

    Args:
        names: Of this rank's examples, in order.
        flag: The flag that the list comes from, for the message.

    Raises:
        DisagreementError: On all ranks: two ranks' lists differ.
    """
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    if len(set(tfddl.allgather_object(digest))) == 1:
        return
    of_ranks = tfddl.allgather_object(tuple(names))
    for rank, others in enumerate(of_ranks):
        if others != of_ranks[0]:
            different = sorted(set(others) ^ set(of_ranks[0]))
            raise DisagreementError(
                f"Rank 0 reads {len(of_ranks[0])} examples and rank {rank} {len(others)}; only one "
                f"of them has {', '.join(different[:10])}. "
                f"HINT: give all hosts the same --{flag}."
            )


def make_writable_directory(directory: Path) -> None:
    """Creates a directory unless it exists, and checks that files can be written to it.

    Raises:
        DataError: They can't.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(f"{directory} can't be written to: {error}") from error


def print_on_chief(text: str) -> None:
    """Prints a line on rank 0."""
    if tfddl.rank() == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
