"""Process sets with ids, as Horovod gives them out."""

import dataclasses
from typing import Any

from tfddl._src import collectives
from tfddl._src.runtime import PerRuntime, current, is_started
from tfddl.errors import UnsupportedError


class ProcessSet(collectives.ProcessSet):
    """Some of the ranks; see `tfddl.ProcessSet`. Given to `init`, it has an id."""

    @property
    def process_set_id(self) -> int | None:
        """Its place among those given to `init`, 0 for all ranks; None where it wasn't given."""
        known = REGISTERED.current().sets if is_started() else ()
        return known.index(self) if self in known else None


global_process_set = ProcessSet()
"""All ranks."""


@dataclasses.dataclass
class _Registered:
    """The process sets that `init` was told of, in the order of their ids; none before."""

    sets: tuple[ProcessSet, ...] = ()


REGISTERED = PerRuntime(lambda _: _Registered())


def process_set_by_id(process_set_id: int) -> ProcessSet:
    """The process set that `init` gave an id.

    Raises:
        UnsupportedError: There is none with this id.
        NotInitializedError: `init` has not been called.
    """
    known = REGISTERED.current().sets or (global_process_set,)
    if not 0 <= process_set_id < len(known):
        raise UnsupportedError(
            f"There is no process set with the id {process_set_id}; init was given "
            f"{len(known) - 1}. Give it to hvd.init(process_sets=[…])."
        )
    return known[process_set_id]


def resolve_process_set(process_set: Any) -> Any:
    """A process set as tfddl takes it: None for all ranks.

    Raises:
        UnsupportedError: It isn't one.
    """
    if not isinstance(process_set, collectives.ProcessSet):
        raise UnsupportedError(f"process_set is {process_set!r}; it must be a hvd.ProcessSet.")
    if process_set.given is None or len(process_set.ranks) == current().cluster.size:
        return None
    return process_set


def add_process_set(process_set: Any) -> ProcessSet:
    """Not there: sets are given to `init`.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "Process sets can't be added while the job runs. A set that init wasn't told of works as "
        "well, it only has no id: process_set=hvd.ProcessSet([0, 2]); with an id, give it to "
        "hvd.init(process_sets=[…])."
    )


def remove_process_set(process_set: ProcessSet) -> bool:
    """Not there: a set costs nothing.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "Process sets can't be removed while the job runs, and need not be: they hold nothing."
    )
