"""The tree along which many workers exchange short messages: up to the first worker, and back.

Both ways together each worker sends two messages in the mean, however many workers there are. With
four children each, messages come and go in as many steps as by recursive doubling, in which each
worker sends log2 of their number.

References:
    "Optimization of Collective Communication Operations in MPICH", Thakur, Rabenseifner, Gropp,
    2005, https://doi.org/10.1177/1094342005051521
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NUM_CHILDREN = 4

MAX_DIRECT_SIZE = 4
"""So many workers exchange messages directly, each with each other one: in one step, and as the
tree would be, with hardly more messages."""


@dataclass(frozen=True)
class Tree:
    """A worker's place in the tree; workers are told by their indices.

    Attributes:
        parent: whom it tells what its subtree tells; None of the first worker.
        children: whose subtrees' messages it gets, in this order.
    """

    parent: int | None
    children: tuple[int, ...]

    @classmethod
    def of(cls, index: int, size: int) -> Tree:
        """The place of one worker of so many."""
        first = _NUM_CHILDREN * index + 1
        children = range(first, min(first + _NUM_CHILDREN, size))
        return cls((index - 1) // _NUM_CHILDREN if index else None, tuple(children))


def preorder(size: int, top: int = 0) -> list[int]:
    """The workers of a subtree: its top, then the subtrees of its children."""
    children = Tree.of(top, size).children
    return [top, *(index for child in children for index in preorder(size, child))]


def neighbours(ranks: Sequence[int], rank: int) -> list[int]:
    """Whom a worker exchanges short messages with, in groups of these workers.

    Args:
        ranks: the workers.
        rank: one of them.
    """
    if len(ranks) <= MAX_DIRECT_SIZE:
        return [other for other in ranks if other != rank]
    place = Tree.of(ranks.index(rank), len(ranks))
    parents = [] if place.parent is None else [place.parent]
    return [ranks[index] for index in (*parents, *place.children)]
