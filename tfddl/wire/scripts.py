"""Which memory goes to whom, and comes from whom, in which order, when arrays travel by streams.

A script says it for one direction of one stream. Both ends run scripts that fit together, so that
nothing else needs to be said on a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from tfddl.plan import shard_range
from tfddl.wire.arithmetic import Reduction, reduce
from tfddl.wire.flat import Flat

PART_BYTES = 2**19
"""What a worker adds up of a chunk: small enough for caches, large enough for few calls."""

_AHEAD = 3
"""How many chunks' numbers are on their way before the sums of the first are."""

_FEW = 4
"""How many pieces are sent, or received, one by one: a call of the system costs more than a copy of
what is small."""

Script: TypeAlias = Iterator[np.ndarray | None]
"""The arrays that go, or come, one after the other; None where the next isn't there yet. An array
has gone, or come, when the script is asked for the next."""

Scratch: TypeAlias = Callable[[int], np.ndarray]
"""Makes an array of so many elements."""


class Sums:
    """A reduction, chunk by chunk.

    Each worker adds up its part of a chunk: it gets that part from all others, adds it to its own
    numbers, and sends the sum to all. Meanwhile the numbers of the next chunks are on their way.
    """

    def __init__(
        self, rank: int, size: int, mine: Flat, results: Flat, how: tuple[Reduction, Scratch]
    ) -> None:
        """Begins.

        Args:
            rank: this worker, among those that take part.
            size: how many these are.
            mine: this worker's numbers.
            results: where the sums go.
            how: they are made, and what makes room for numbers meanwhile.
        """
        self._rank, self._size = rank, size
        self._mine, self._results = mine, results
        self._reduction, self._scratch = how
        self._chunks = mine.chunks(size * PART_BYTES)
        self._room = PART_BYTES // mine.dtype.itemsize
        self._others = [peer for peer in range(size) if peer != rank]
        self._shelves = {
            p: [self._scratch(self._room) for _ in range(_AHEAD)] for p in self._others
        }
        self._arrived = dict.fromkeys(self._others, 0)
        self._done = 0

    def sends(self, peer: int) -> Script:
        """What goes to another worker."""
        room = self._scratch(self._room)
        for number, begins in self._order():
            if begins:
                yield from _outgoing(self._mine, self._part(number, peer), room)
                continue
            while self._done <= number:
                yield None
            yield from _outgoing(self._results, self._part(number, self._rank), room)

    def gets(self, peer: int) -> Script:
        """What comes from another worker."""
        room = self._scratch(self._room)
        for number, begins in self._order():
            if begins:
                while self._done <= number - _AHEAD:
                    yield None
                shelf = self._shelves[peer][number % _AHEAD]
                yield shelf[: len(self._part(number, self._rank))]
                self._arrived[peer] += 1
                self._add_up()
                continue
            yield from _incoming(self._results, self._part(number, peer), room)

    def _order(self) -> Iterator[tuple[int, bool]]:
        """The numbers of each chunk (True), and its sums some chunks later (False)."""
        for number in range(len(self._chunks) + _AHEAD):
            if number < len(self._chunks):
                yield number, True
            if number >= _AHEAD:
                yield number - _AHEAD, False

    def _part(self, number: int, rank: int) -> range:
        """What a worker adds up of a chunk."""
        return _part(self._chunks[number], rank, self._size)

    def _add_up(self) -> None:
        """Adds up this worker's parts of the chunks of which everything has come."""
        while self._done < min(self._arrived.values()):
            part = self._part(self._done, self._rank)
            shelves = [self._shelves[peer][self._done % _AHEAD] for peer in self._others]
            pieces = zip(self._mine.pieces(part), self._results.pieces(part), strict=True)
            for (own, at), (result, _) in pieces:
                shown = [shelf[at : at + len(own)] for shelf in shelves]
                reduce([self._mine.scaled(own, result), *shown], self._reduction, result)
            self._done += 1


class Spread:
    """A broadcast, chunk by chunk: each worker gets its part from the root, and hands it on."""

    def __init__(self, rank: int, size: int, results: Flat, how: tuple[int, Scratch]) -> None:
        """Begins.

        Args:
            rank: this worker, among those that take part.
            size: how many these are.
            results: where everything goes; on the root it is there already.
            how: from whom it comes, and what makes room meanwhile.
        """
        self._rank, self._size = rank, size
        self._results = results
        self._root, self._scratch = how
        self._room = PART_BYTES // results.dtype.itemsize
        self._chunks = results.chunks(size * PART_BYTES)
        self._arrived = 0

    def sends(self, peer: int) -> Script:
        """What goes to another worker."""
        room = self._scratch(self._room)
        for number, chunk in enumerate(self._chunks):
            if self._rank == self._root:
                yield from _outgoing(self._results, self._part(chunk, peer), room)
                yield from _outgoing(self._results, self._part(chunk, self._root), room)
            elif peer != self._root:
                while self._arrived <= number:
                    yield None
                yield from _outgoing(self._results, self._part(chunk, self._rank), room)

    def gets(self, peer: int) -> Script:
        """What comes from another worker."""
        room = self._scratch(self._room)
        for chunk in self._chunks:
            if peer == self._root:
                yield from _incoming(self._results, self._part(chunk, self._rank), room)
                self._arrived += 1
                yield from _incoming(self._results, self._part(chunk, self._root), room)
            elif self._rank != self._root:
                yield from _incoming(self._results, self._part(chunk, peer), room)

    def _part(self, chunk: range, rank: int) -> range:
        return _part(chunk, rank, self._size)


def _part(chunk: range, rank: int, size: int) -> range:
    start, stop = shard_range(len(chunk), rank, size)
    return chunk[start:stop]


def _outgoing(flat: Flat, part: range, room: np.ndarray) -> Iterator[np.ndarray]:
    """What lies in a part of arrays; what is much in pieces is joined before."""
    pieces = [piece for piece, _ in flat.pieces(part)]
    if len(pieces) > _FEW:
        flat.copy_to(part, room[: len(part)])
        yield room[: len(part)]
        return
    for piece in pieces:
        yield flat.scaled(piece, room[: len(piece)])


def _incoming(flat: Flat, part: range, room: np.ndarray) -> Iterator[np.ndarray]:
    """Where a part of arrays has to come."""
    pieces = [piece for piece, _ in flat.pieces(part)]
    if len(pieces) > _FEW:
        yield room[: len(part)]
        flat.copy_from(part, room[: len(part)])
        return
    yield from pieces
