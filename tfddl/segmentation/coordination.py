"""What the ranks of the application do together: read alike, speak with one voice."""

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tfddl
from tfddl.errors import DataError, DisagreementError


def compare_names(names: Sequence[str], *, flag: str) -> None:
    """Checks that all ranks have the same list of examples: they take shares of one whole.

    All ranks must call it together.

    Args:
        names: Of this rank's list.
        flag: Which flag the list comes from.

    Raises:
        DisagreementError: They differ.
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
                f"of them has {', '.join(different[:10])}. All hosts need the same --{flag}."
            )


def make_writable_directory(directory: Path) -> None:
    """Makes a folder if it isn't there, and finds out whether it can be written to.

    Raises:
        DataError: It can't.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(f"{directory} can't be written to: {error}") from error


def print_on_chief(text: str) -> None:
    """Rank 0 speaks."""
    if tfddl.rank() == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
