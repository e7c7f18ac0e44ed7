"""Which memory goes to whom, and comes from whom, in which order, when arrays travel by streams.

A script says it for one direction of one stream. Both ends run scripts that fit together, so that
nothing else needs to be said on a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.reductions import ReduceOp, reduce
from tfddl._src.comm.native.shm import BufferPool
from tfddl._src.sharding import shard_range

_CHUNK_BYTES = 2**23
_PART_BYTES = 2**19
"""What all workers together add up of a chunk at most, and each one: small enough for caches, large
enough for few calls."""

_AHEAD = 3
"""How many chunks' numbers are on their way before the sums of the first are."""

_FEW = 4
"""How many pieces are sent, or received, one by one: a call of the system costs more than a copy of
what is small."""

Transfers: TypeAlias = Iterator[np.ndarray | None]
"""The arrays that go, or come, one after the other; None where the next isn't there yet. An array
has gone, or come, when the script is asked for the next."""


@dataclass(frozen=True)
class Partition:
    """Where a worker is among those that take part."""

    rank: int
    size: int

    @property
    def others(self) -> list[int]:
        """The numbers of all but this one."""
        return [peer for peer in range(self.size) if peer != self.rank]

    def chunks(self, flat: FusionBuffer) -> list[range]:
        """The chunks of arrays, one after the other."""
        return flat.chunks(min(_CHUNK_BYTES, self.size * _PART_BYTES))

    def part(self, chunk: range, rank: int) -> range:
        """What a worker adds up, or hands on, of a chunk; the first one's is the longest."""
        start, stop = shard_range(len(chunk), rank, self.size)
        return chunk[start:stop]

    def rooms(
        self, flat: FusionBuffer, buffers: BufferPool, *, each: int
    ) -> dict[int, list[np.ndarray]]:
        """So many arrays for each of the others, each as long as the longest part, of one block."""
        length = max((len(self.part(chunk, 0)) for chunk in self.chunks(flat)), default=0)
        [block] = buffers.take(flat.dtype, [len(self.others) * each * length])
        rows = block.reshape(len(self.others), each, length)
        return {peer: list(row) for peer, row in zip(self.others, rows, strict=True)}


class AllReduceSchedule:
    """A reduction, chunk by chunk.

    Each worker adds up its part of a chunk: it gets that part from all others, adds it to its own
    numbers, and sends the sum to all. Meanwhile the numbers of the next chunks are on their way.
    """

    def __init__(
        self,
        place: Partition,
        mine: FusionBuffer,
        results: FusionBuffer,
        reduction: ReduceOp,
        buffers: BufferPool,
    ) -> None:
        """Begins.

        Args:
            place: this worker's.
            mine: its numbers.
            results: where the sums go.
            reduction: how they are made.
            buffers: for numbers meanwhile.
        """
        self._place = place
        self._mine, self._results, self._reduction = mine, results, reduction
        self._chunks = place.chunks(mine)
        self._ahead = min(_AHEAD, len(self._chunks))
        rooms = place.rooms(mine, buffers, each=self._ahead + 2)
        self._leaving = {peer: room[0] for peer, room in rooms.items()}
        self._coming = {peer: room[1] for peer, room in rooms.items()}
        self._shelves = {peer: room[2:] for peer, room in rooms.items()}
        self._arrived = dict.fromkeys(place.others, 0)
        self._done = 0

    def sends(self, peer: int) -> Transfers:
        """What goes to another worker."""
        room = self._leaving[peer]
        for number, begins in self._order():
            if begins:
                yield from _outgoing(self._mine, self._part(number, peer), room)
                continue
            while self._done <= number:
                yield None
            yield from _outgoing(self._results, self._part(number, self._place.rank), room)

    def gets(self, peer: int) -> Transfers:
        """What comes from another worker."""
        for number, begins in self._order():
            if begins:
                while self._done <= number - self._ahead:
                    yield None
                shelf = self._shelves[peer][number % self._ahead]
                yield shelf[: len(self._part(number, self._place.rank))]
                self._arrived[peer] += 1
                self._add_up()
                continue
            yield from _incoming(self._results, self._part(number, peer), self._coming[peer])

    def _order(self) -> Iterator[tuple[int, bool]]:
        """The numbers of each chunk (True), and its sums some chunks later (False)."""
        for number in range(len(self._chunks) + self._ahead):
            if number < len(self._chunks):
                yield number, True
            if number >= self._ahead:
                yield number - self._ahead, False

    def _part(self, number: int, rank: int) -> range:
        return self._place.part(self._chunks[number], rank)

    def _add_up(self) -> None:
        """Adds up this worker's parts of the chunks of which everything has come."""
        while self._done < min(self._arrived.values()):
            part = self._part(self._done, self._place.rank)
            shelves = [self._shelves[p][self._done % self._ahead] for p in self._place.others]
            pieces = zip(self._mine.pieces(part), self._results.pieces(part), strict=True)
            for (own, at), (result, _) in pieces:
                shown = [shelf[at : at + len(own)] for shelf in shelves]
                reduce([self._mine.scaled(own, result), *shown], self._reduction, result)
            self._done += 1


class BroadcastSchedule:
    """A broadcast, chunk by chunk: each worker gets its part from the root, and hands it on."""

    def __init__(
        self, place: Partition, results: FusionBuffer, root: int, buffers: BufferPool
    ) -> None:
        """Begins.

        Args:
            place: this worker's.
            results: where everything goes; on the root it is there already.
            root: from whom it comes.
            buffers: for numbers meanwhile.
        """
        self._place = place
        self._results, self._root = results, root
        self._chunks = place.chunks(results)
        self._rooms = place.rooms(results, buffers, each=2)
        self._arrived = 0

    def sends(self, peer: int) -> Transfers:
        """What goes to another worker."""
        room, _ = self._rooms[peer]
        own = self._place.rank
        for number, chunk in enumerate(self._chunks):
            if own == self._root:
                for rank in (peer, own):
                    yield from _outgoing(self._results, self._place.part(chunk, rank), room)
            elif peer != self._root:
                while self._arrived <= number:
                    yield None
                yield from _outgoing(self._results, self._place.part(chunk, own), room)

    def gets(self, peer: int) -> Transfers:
        """What comes from another worker."""
        _, room = self._rooms[peer]
        own = self._place.rank
        for chunk in self._chunks:
            if peer == self._root:
                yield from _incoming(self._results, self._place.part(chunk, own), room)
                self._arrived += 1
                yield from _incoming(self._results, self._place.part(chunk, peer), room)
            elif own != self._root:
                yield from _incoming(self._results, self._place.part(chunk, peer), room)


def _outgoing(flat: FusionBuffer, part: range, room: np.ndarray) -> Iterator[np.ndarray]:
    """What lies in a part of arrays; what is much in pieces is joined before."""
    pieces = [piece for piece, _ in flat.pieces(part)]
    if len(pieces) > _FEW:
        flat.copy_to(part, room[: len(part)])
        yield room[: len(part)]
        return
    for piece in pieces:
        yield flat.scaled(piece, room[: len(piece)])


def _incoming(flat: FusionBuffer, part: range, room: np.ndarray) -> Iterator[np.ndarray]:
    """Where a part of arrays has to come."""
    pieces = [piece for piece, _ in flat.pieces(part)]
    if len(pieces) > _FEW:
        yield room[: len(part)]
        flat.copy_from(part, room[: len(part)])
        return
    yield from pieces
