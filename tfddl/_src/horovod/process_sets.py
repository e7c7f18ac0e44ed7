"""Process sets with ids (horovod/common/process_sets.py)."""

import dataclasses
from typing import Any

from tfddl._src import collectives
from tfddl._src.runtime import PerRuntime, current, is_started
from tfddl.errors import UnsupportedError


class ProcessSet(collectives.ProcessSet):
    """A subset of the ranks; see `tfddl.ProcessSet`. Only those given to `init` have an id."""

    @property
    def process_set_id(self) -> int | None:
        """Its position among the sets given to `init`, from 1; 0 for all ranks; None for others."""
        known = REGISTERED.current().sets if is_started() else ()
        return known.index(self) if self in known else None


global_process_set = ProcessSet()
"""The set of all ranks, whose id is 0."""


@dataclasses.dataclass
class _Registered:
    """The process sets that `init` was told of, in the order of their ids; none before."""

    sets: tuple[ProcessSet, ...] = ()


REGISTERED = PerRuntime(lambda _: _Registered())


def process_set_by_id(process_set_id: int) -> ProcessSet:
    """The process set with an id.

    Raises:
        UnsupportedError: `init` was given none with this id.
        NotInitializedError: `init` has not been called.
    """
    known = REGISTERED.current().sets or (global_process_set,)
    if not 0 <= process_set_id < len(known):
        raise UnsupportedError(
            f"There is no process set with the id {process_set_id}; init was given "
            f"{len(known) - 1}. HINT: hvd.init(process_sets=[…])."
        )
    return known[process_set_id]


def resolve_process_set(process_set: Any) -> Any:
    """A process set as tfddl's functions take it: None for all ranks.

    Raises:
        UnsupportedError: It is no process set.
    """
    if not isinstance(process_set, collectives.ProcessSet):
        raise UnsupportedError(f"process_set is {process_set!r}; it must be a hvd.ProcessSet.")
    # A set of all ranks needs no subgroup.
    if process_set.given is None or len(process_set.ranks) == current().cluster.size:
        return None
    return process_set


def add_process_set(process_set: Any) -> ProcessSet:
    """Not supported: sets get ids in `init`.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "Process sets can't be registered while the job runs. HINT: pass the set itself, "
        "process_set=hvd.ProcessSet([0, 2]), which works without an id; for an id, give it to "
        "hvd.init(process_sets=[…])."
    )


def remove_process_set(process_set: ProcessSet) -> bool:
    """Not supported, and not needed: a set holds no resources.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "Process sets can't be removed while the job runs. HINT: leave the call out; a set holds "
        "no resources."
    )
