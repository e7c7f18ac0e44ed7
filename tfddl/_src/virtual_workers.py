"""Virtual workers: what an epoch is planned for, whatever the number of processes.

Each process runs a contiguous block of them, one after the other. What they compute is added up in
the order of a binary tree over the virtual workers, so that no sum depends on how many processes
there are. Its nodes are the aligned blocks of 1, 2, 4, 8, ... virtual workers; what is left at the
end, where their number is no power of two, is added from the last node to the first.

Usage:
    sums = TreeSum(add)
    for worker in own_workers(8, rank, size):
        sums.push(Node(worker, 1), value_of(worker))
    sums.nodes                                    # what the others need of this process
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tfddl._src.sharding import shard_range
from tfddl.errors import UnsupportedError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """An aligned block of virtual workers: start is a multiple of size, a power of two."""

    start: int
    size: int


def check_virtual_workers(virtual_workers: int, size: int) -> None:
    """Makes sure that every process has one at least.

    Raises:
        UnsupportedError: It hasn't.
    """
    if virtual_workers < size:
        raise UnsupportedError(
            f"virtual_workers is {virtual_workers} and there are {size} workers; expected at least "
            f"as many virtual workers as workers. HINT: start at most {max(virtual_workers, 1)} "
            "workers; the number of virtual workers stays what it was when training began."
        )


def own_workers(virtual_workers: int, rank: int, size: int) -> range:
    """The virtual workers that a process runs."""
    return range(*shard_range(virtual_workers, rank, size))


class TreeSum(Generic[T]):
    """Adds up what is pushed, in the order of the tree.

    At most one sum per level of the tree is kept: log2(V) + 1 of them.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        """Nothing is pushed yet.

        Args:
            add: Of two values, the first from lower virtual workers.
        """
        self._add = add
        self._stack: list[tuple[Node, T]] = []

    @property
    def nodes(self) -> list[tuple[Node, T]]:
        """The sums that can't be added further without what other processes have, in order."""
        return list(self._stack)

    def push(self, node: Node, value: T) -> None:
        """Takes in the value of the node that follows the last one."""
        while self._stack and _are_siblings(self._stack[-1][0], node):
            left, first = self._stack.pop()
            node, value = Node(left.start, 2 * left.size), self._add(first, value)
        self._stack.append((node, value))

    def total(self) -> T:
        """The sum of all; at least one was pushed."""
        (_, total), *rest = reversed(self._stack)
        for _, value in rest:
            total = self._add(value, total)
        return total


def nodes_of(workers: Sequence[int]) -> list[Node]:
    """The nodes that a process has left after its own workers, in order."""
    sums: TreeSum[None] = TreeSum(lambda _first, _second: None)
    for worker in workers:
        sums.push(Node(worker, 1), None)
    return [node for node, _ in sums.nodes]


def _are_siblings(left: Node, right: Node) -> bool:
    return left.size == right.size and left.start % (2 * left.size) == 0
