"""What is tried on all ranks and fails on some fails on all."""

from collections.abc import Callable
from typing import TypeVar

from tfddl._src.collectives.negotiation import DisplayName
from tfddl._src.collectives.objects import allgather_object
from tfddl._src.runtime import current
from tfddl.errors import TfddlError

_T = TypeVar("_T")


def on_all_ranks(action: Callable[[], _T], *, error: type[TfddlError]) -> _T:
    """Does something on every rank; where it fails on one of them, all raise.

    What can fail on one rank alone (a folder, a file) would otherwise end that rank, and leave the
    others waiting in their next collective. All ranks must call it together.

    Args:
        action: Called once on this rank, without any collective in it. A `TfddlError` or `OSError`
            of it is a failure; anything else is a mistake, and goes its way.
        error: What is raised.

    Returns:
        What the action returned on this rank.

    Raises:
        TfddlError: Of the kind ``error``, naming the rank where it comes from another one.
    """
    problem: TfddlError | OSError | None = None
    try:
        outcome = action()
    except (TfddlError, OSError) as failure:
        problem = failure
    if current().cluster.size > 1:
        problems = allgather_object(
            None if problem is None else str(problem), name=DisplayName("problems")
        )
    else:
        problems = []
    if problem is not None:
        raise error(str(problem)) from problem
    for rank, text in enumerate(problems):
        if text is not None:
            raise error(f"Rank {rank} has stopped: {text}")
    return outcome
