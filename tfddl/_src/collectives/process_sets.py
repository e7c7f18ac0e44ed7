"""Which ranks take part in an operation.

Usage:
    even = ProcessSet([0, 2])
    if even.included():
        mean = allreduce(x, process_set=even)

A set needs no registration: its ranks are all that its members have to agree on. Sets that have no
rank in common work side by side.
"""

import dataclasses
import enum
import operator
from collections.abc import Iterable

from tfddl._src.comm.errors import NotAMemberOpError
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, ProcessGroup
from tfddl._src.runtime import Runtime, current
from tfddl.errors import UnsupportedError


@dataclasses.dataclass(frozen=True)
class ProcessSet:
    """Some of the ranks, for the ``process_set`` of collectives.

    Two of the same ranks are equal, and are the same set.
    """

    given: tuple[int, ...] | None

    def __init__(self, ranks: Iterable[int] | None = None) -> None:
        """Names the ranks. Nothing travels, and `tfddl.init()` may come later.

        Args:
            ranks: Ranks of the job, in any order, at least one, none twice. None is all of them.

        Raises:
            UnsupportedError: These aren't ranks.
        """
        object.__setattr__(self, "given", None if ranks is None else _checked(ranks))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks, ascending.

        Raises:
            NotInitializedError: It is the set of all, and `tfddl.init()` has not been called.
        """
        return tuple(range(current().cluster.size)) if self.given is None else self.given

    def size(self) -> int:
        """How many ranks there are."""
        return len(self.ranks)

    def included(self) -> bool:
        """Whether this rank is one of them.

        Raises:
            NotInitializedError: `tfddl.init()` has not been called.
        """
        return current().cluster.rank in self.ranks

    def rank(self) -> int:
        """This rank's place in the set, 0 <= rank < size.

        Raises:
            UnsupportedError: It isn't one of them.
            NotInitializedError: `tfddl.init()` has not been called.
        """
        return group_of(self).rank

    def __str__(self) -> str:
        ranks = "" if self.given is None else list(self.given)
        return f"ProcessSet({ranks})"


global_process_set = ProcessSet()
"""The set of all ranks."""


class GradientRule(enum.Enum):
    """What the gradients of collectives are, which end up in the losses of several ranks."""

    SUM_OF_LOSSES = "sum of losses"
    """The derivatives of the sum of all ranks' losses: tfddl's own. Where ranks then average the
    gradients of their weights, these are the gradients of the mean loss."""

    HOROVOD = "horovod"
    """What Horovod 0.28.1 gives (its ``tensorflow/mpi_ops.py``). Of an allreduce: an allreduce with
    the same op and factors, also for min, max and product. Of an allgather: the rank's own rows of
    the average. Of a broadcast: the average on the root, zeros elsewhere. Of an alltoall: an
    alltoall back. Of a reducescatter: an allgather, times both factors, and, for a sum, times the
    number of ranks."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A process set at work: how tensors travel between its ranks, and in whose call."""

    runtime: Runtime
    process_group: ProcessGroup
    gradients: GradientRule = GradientRule.SUM_OF_LOSSES

    signature: DynamicSignature = UNNAMED
    """The call that operations belong to, once the ranks have negotiated it."""

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self.process_group.rank

    @property
    def ranks(self) -> tuple[int, ...]:
        """The members, as the job counts them."""
        return self.process_group.ranks

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.process_group.size

    @property
    def is_world(self) -> bool:
        """Whether it is the whole job."""
        return self.size == self.runtime.cluster.size


def group_of(
    process_set: ProcessSet | None, *, gradients: GradientRule = GradientRule.SUM_OF_LOSSES
) -> Group:
    """The group of a process set; None is all ranks.

    Args:
        process_set: Which ranks.
        gradients: What the gradients of the group's operations are.

    Raises:
        UnsupportedError: The set has ranks that the job hasn't.
        NotAMemberOpError: It hasn't this rank. It is an `UnsupportedError`.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    cluster, chosen = runtime.cluster, process_set or global_process_set
    if chosen.ranks[-1] >= cluster.size:
        raise UnsupportedError(f"{chosen} names ranks outside of the job's {cluster.size}.")
    if cluster.rank not in chosen.ranks:
        error = UnsupportedError(
            f"This is rank {cluster.rank}, which is not in {chosen}. Only its members may use it: "
            "put the call under `if process_set.included():`."
        )
        raise NotAMemberOpError(None, None, str(error))
    return Group(runtime, runtime.process_group.subgroup(chosen.ranks), gradients)


def _checked(ranks: Iterable[int]) -> tuple[int, ...]:
    try:
        chosen = tuple(sorted(operator.index(rank) for rank in ranks))
    except TypeError:
        raise UnsupportedError(f"ranks is {ranks!r}; it must be a list of ranks.") from None
    if not chosen or chosen[0] < 0 or len(set(chosen)) < len(chosen):
        raise UnsupportedError(
            f"ranks is {list(chosen)}; it must be at least one rank, each once and 0 or more."
        )
    return chosen
