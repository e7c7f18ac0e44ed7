"""Process sets with ids (horovod/common/process_sets.py)."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from tfddl._src import collectives
from tfddl._src.runtime import PerRuntime, current, is_started
from tfddl.errors import UnsupportedError


class ProcessSet(collectives.ProcessSet):
    """A subset of the ranks; see `tfddl.ProcessSet`. Only registered ones have an id."""

    @property
    def process_set_id(self) -> int | None:
        """What `init` or `add_process_set` has given it; 0 for all ranks; None for others."""
        return REGISTERED.current().id_of(self) if is_started() else None

    def __str__(self) -> str:
        ranks = "None" if self.given is None and not is_started() else list(self.ranks)
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={ranks}, mpi_comm=None)"


global_process_set = ProcessSet()
"""The set of all ranks, whose id is 0."""


class Registered:
    """The process sets that have ids. Sets of the same ranks are the same set.

    Attributes:
        is_initialized: Whether `init` has been called.
        is_dynamic: Whether sets may be added and removed while the job runs.
    """

    def __init__(self) -> None:
        self.is_initialized = self.is_dynamic = False
        self.assign([])

    def assign(self, process_sets: Sequence[ProcessSet]) -> None:
        """Gives ids to some sets, from 1, and to no others."""
        self._sets = dict(enumerate([global_process_set, *process_sets]))
        self._free: deque[int] = deque()

    def anew(self) -> "Registered":
        """Those after the workers have changed: none but that of all, as in Horovod."""
        fresh = Registered()
        fresh.is_initialized, fresh.is_dynamic = self.is_initialized, self.is_dynamic
        return fresh

    def __len__(self) -> int:
        return len(self._sets)

    def __getitem__(self, process_set_id: int) -> ProcessSet:
        return self._sets[process_set_id]

    def ranks_by_id(self) -> dict[int, list[int]]:
        """All ids, each with the ranks of its set."""
        return {number: list(known.ranks) for number, known in self._sets.items()}

    def id_of(self, process_set: collectives.ProcessSet) -> int | None:
        """The set's id; None where it has none."""
        # By what was given, since a `tfddl.ProcessSet` is of another class, and unequal. A set that
        # names all ranks has no id, as in Horovod: it isn't the global one.
        given = process_set.given
        return next((i for i, known in self._sets.items() if known.given == given), None)

    def has(self, ranks: tuple[int, ...]) -> bool:
        """Whether a set of these ranks has an id."""
        return any(known.ranks == ranks for known in self._sets.values())

    def add(self, process_set: ProcessSet) -> None:
        """Gives a set an id: the one that has been free for longest, as Horovod does."""
        self._sets[self._free.popleft() if self._free else len(self._sets)] = process_set

    def remove(self, process_set_id: int) -> None:
        """Makes an id free."""
        del self._sets[process_set_id]
        self._free.append(process_set_id)


REGISTERED = PerRuntime(lambda _: Registered())


def process_set_by_id(process_set_id: int) -> ProcessSet:
    """The process set with an id.

    Raises:
        UnsupportedError: There is none.
        NotInitializedError: `init` has not been called.
    """
    known = REGISTERED.current()
    try:
        return known[process_set_id]
    except KeyError:
        raise UnsupportedError(
            f"There is no process set with the id {process_set_id}, but {len(known) - 1} with "
            "others. HINT: hvd.init(process_sets=[…]), or hvd.add_process_set."
        ) from None


def resolve_process_set(process_set: Any) -> Any:
    """A process set as tfddl's functions take it: None for all ranks.

    Raises:
        UnsupportedError: It is no process set.
    """
    _refuse_others(process_set)
    # A set of all ranks needs no subgroup.
    if process_set.given is None or len(process_set.ranks) == current().cluster.size:
        return None
    return process_set


def add_process_set(process_set: Any) -> ProcessSet:
    """Gives a process set an id while the job runs. All ranks must call it together.

    Args:
        process_set: A `ProcessSet`, a `tfddl.ProcessSet`, or ranks.

    Returns:
        The set, which has the id.

    Raises:
        UnsupportedError: `init` was called without ``process_sets="dynamic"``, and
            HOROVOD_DYNAMIC_PROCESS_SETS isn't 1; a set of the same ranks has an id; it is no set of
            the job's ranks. It is a `ValueError`.
        DisagreementOpError: Ranks add different sets.
        NotInitializedError: `init` has not been called.
    """
    known = REGISTERED.current()
    if not isinstance(process_set, ProcessSet):
        is_plain = isinstance(process_set, collectives.ProcessSet)
        process_set = ProcessSet(process_set.given if is_plain else process_set)
    _refuse_if_static(known, "added")
    if process_set.ranks[-1] >= current().cluster.size:
        raise UnsupportedError(
            f"{list(process_set.ranks)} names ranks that a job of {current().cluster.size} hasn't."
        )
    _agree(f"add_process_set {list(process_set.ranks)}")
    if known.has(process_set.ranks):
        raise UnsupportedError(
            f"The set of ranks {list(process_set.ranks)} has an id already, or it is the set of "
            "all. HINT: use that set; sets of the same ranks are the same set."
        )
    known.add(process_set)
    return process_set


def remove_process_set(process_set: collectives.ProcessSet) -> bool:
    """Takes a process set's id away. All ranks must call it together.

    Returns:
        Whether it had one. The set of all ranks keeps its own.

    Raises:
        UnsupportedError: As for `add_process_set`, or it is no process set.
        DisagreementOpError: Ranks remove different sets.
        NotInitializedError: `init` has not been called.
    """
    known = REGISTERED.current()
    _refuse_others(process_set)
    process_set_id = known.id_of(process_set)
    if not process_set_id:
        return False
    _refuse_if_static(known, "removed")
    collectives.barrier(
        name=collectives.DisplayName(f"remove_process_set {list(process_set.ranks)}")
    )
    known.remove(process_set_id)
    return True


def _agree(call: str) -> None:
    """Waits until all ranks have called the same."""
    collectives.barrier(name=collectives.DisplayName(call))


def _refuse_others(process_set: Any) -> None:
    if not isinstance(process_set, collectives.ProcessSet):
        raise UnsupportedError(f"process_set is {process_set!r}; it must be a hvd.ProcessSet.")


def _refuse_if_static(known: Registered, what: str) -> None:
    if not known.is_dynamic:
        raise UnsupportedError(
            f"Process sets can't be {what} while the job runs, unless init was told so. HINT: "
            'hvd.init(process_sets="dynamic"), or HOROVOD_DYNAMIC_PROCESS_SETS=1.'
        )
