"""What many workers send each other over TCP, each connected to few others.

In an all-reduce each worker sends 2 (size - 1) / size times its inputs, as in `schedules`. Elements
are reduced in an order that depends on their place and on ranks only, each by one worker, which the
others get the result from: all have the same bits, whatever arrives first. 16-bit floats aren't
reduced here: partial sums travel, and would have to be rounded.

References:
    "Optimization of Collective Communication Operations in MPICH", Thakur, Rabenseifner, Gropp,
    2005, https://doi.org/10.1177/1094342005051521: Rabenseifner's algorithm.
    "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", Patarasuk, Yuan, 2009,
    https://doi.org/10.1016/j.jpdc.2008.09.002: the ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tfddl._src.comm.native.buffer_pool import BufferPool
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.reductions import ReduceOp, accumulator_dtype, reduce_into
from tfddl._src.comm.native.schedules import (
    MAX_PART_BYTES,
    AllReduceSchedule,
    Partition,
    Transfers,
    incoming,
    outgoing,
)
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE


class SparseSchedule(Protocol):
    """What a worker sends to, and receives from, some others."""

    @property
    def peers(self) -> list[int]:
        """Whom it is connected to."""

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""


def choose_all_reduce(
    partition: Partition,
    inputs: FusionBuffer,
    outputs: FusionBuffer,
    reduction: ReduceOp,
    pool: BufferPool,
) -> SparseSchedule:
    """The all-reduce for so many workers, and this dtype; see `AllReduceSchedule`."""
    size = partition.size
    given = partition, inputs, outputs, reduction, pool
    if size <= MAX_DIRECT_SIZE or accumulator_dtype(inputs.dtype) != inputs.dtype:
        return AllReduceSchedule(*given)
    return HalvingSchedule(*given) if size.bit_count() == 1 else RingSchedule(*given)


class _Segments:
    """The arrays, divided into one segment for each worker, and what becomes of pieces of them."""

    def __init__(
        self,
        partition: Partition,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
    ) -> None:
        self._partition, self._reduction = partition, reduction
        self.inputs, self.outputs = inputs, outputs
        self._whole = range(inputs.length)
        self.piece_length = MAX_PART_BYTES // inputs.dtype.itemsize

    def span(self, first: int, count: int = 1) -> range:
        """The elements of consecutive segments."""
        last = self._partition.part(self._whole, first + count - 1)
        return range(self._partition.part(self._whole, first).start, last.stop)

    def pieces(self, span: range) -> Iterator[range]:
        """Spans that fit the caches, one after the other."""
        for start in range(span.start, span.stop, self.piece_length):
            yield range(start, min(span.stop, start + self.piece_length))

    def reduce(
        self, piece: range, arrived: np.ndarray, *, has_partial: bool, arrived_first: bool
    ) -> None:
        """Reduces what has arrived, and what this worker has, into the outputs.

        Args:
            piece: of which elements.
            arrived: what has.
            has_partial: whether this worker's is in the outputs already; else it is its input.
            arrived_first: whether it is the first operand.
        """
        segments = zip(self.inputs.segments(piece), self.outputs.segments(piece), strict=True)
        for (own, at), (output, _) in segments:
            mine = output if has_partial else self.inputs.scaled(own, output)
            operands = [mine, arrived[at : at + len(own)]]
            reduce_into(operands[::-1] if arrived_first else operands, self._reduction, output)


class HalvingSchedule:
    """Recursive halving and doubling, for a power of two of workers: log2 of their number peers.

    In each round of the reduce-scatter, a worker and its peer have reduced the same part of the
    arrays, each over other workers; each gives the other one half of it. The all-gather goes back
    on the same way.
    """

    def __init__(
        self,
        partition: Partition,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
        pool: BufferPool,
    ) -> None:
        """Allocates scratch memory; see `AllReduceSchedule`."""
        self._rank = partition.rank
        self._segments = _Segments(partition, inputs, outputs, reduction)
        num_rounds = partition.size.bit_length() - 1
        # By round: the distance between the ranks of a worker and its peer.
        self._distances = [partition.size >> (number + 1) for number in range(num_rounds)]
        self.peers = [self._rank ^ distance for distance in self._distances]
        length = min(self._segments.piece_length, inputs.length)
        [block] = pool.take(inputs.dtype, [2 * num_rounds * length])
        # Each peer has its own: what is sent to one may be on its way when the next one's turn is.
        self._scratch = block.reshape(num_rounds, 2, length)
        self._num_reduced = 0
        self._is_gathered = [False] * num_rounds

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        number = self.peers.index(peer)
        scratch = self._scratch[number, 0]
        while self._num_reduced < number:
            yield None
        source = self._segments.outputs if number else self._segments.inputs
        for piece in self._segments.pieces(self._half(number, peer)):
            yield from outgoing(source, piece, scratch)
        while self._num_reduced < len(self.peers) or not all(self._is_gathered[number + 1 :]):
            yield None
        for piece in self._segments.pieces(self._half(number, self._rank)):
            yield from outgoing(self._segments.outputs, piece, scratch)

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        number = self.peers.index(peer)
        scratch = self._scratch[number, 1]
        while self._num_reduced < number:
            yield None
        for piece in self._segments.pieces(self._half(number, self._rank)):
            yield scratch[: len(piece)]
            self._segments.reduce(
                piece, scratch, has_partial=number > 0, arrived_first=peer < self._rank
            )
        self._num_reduced += 1
        # The peer sends its results once it has all of this worker's partial ones, which were where
        # they go.
        for piece in self._segments.pieces(self._half(number, peer)):
            yield from incoming(self._segments.outputs, piece, scratch)
        self._is_gathered[number] = True

    def _half(self, number: int, rank: int) -> range:
        """The half that a worker keeps in a round."""
        distance = self._distances[number]
        return self._segments.span(rank // distance * distance, distance)


class RingSchedule:
    """A ring, for any number of workers: each receives from the one before, and sends to the next.

    Each segment goes around twice: the first time each worker adds its own input, the second time
    each keeps it.
    """

    def __init__(
        self,
        partition: Partition,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
        pool: BufferPool,
    ) -> None:
        """Allocates scratch memory; see `AllReduceSchedule`."""
        self._rank, self._size = partition.rank, partition.size
        self._segments = _Segments(partition, inputs, outputs, reduction)
        self._next, self._before = (self._rank + 1) % self._size, (self._rank - 1) % self._size
        length = min(self._segments.piece_length, inputs.length)
        self._sending, self._receiving = pool.take(inputs.dtype, [length, length])
        # How many elements have arrived in each step. What arrives in a step is sent in the next.
        self._num_arrived = [0] * (2 * self._size - 2)

    @property
    def peers(self) -> list[int]:
        """Whom it is connected to."""
        return [self._before, self._next]

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        if peer != self._next:
            return
        for step in range(len(self._num_arrived)):
            source = self._segments.outputs if step else self._segments.inputs
            span = self._segments.span((self._rank - step) % self._size)
            for piece in self._segments.pieces(span):
                while step and self._num_arrived[step - 1] < piece.stop - span.start:
                    yield None
                yield from outgoing(source, piece, self._sending)

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        if peer != self._before:
            return
        for step in range(len(self._num_arrived)):
            span = self._segments.span((self._before - step) % self._size)
            for piece in self._segments.pieces(span):
                if step < self._size - 1:
                    yield self._receiving[: len(piece)]
                    self._segments.reduce(
                        piece, self._receiving, has_partial=False, arrived_first=True
                    )
                else:
                    yield from incoming(self._segments.outputs, piece, self._receiving)
                self._num_arrived[step] += len(piece)


class GatherSchedule:
    """An all-gather: by recursive doubling for a power of two of workers, else around a ring."""

    def __init__(self, partition: Partition, rows: np.ndarray) -> None:
        """Refers to memory.

        Args:
            partition: this worker's.
            rows: shape (size, length); that of this worker is there already.
        """
        self._rank, self._size, self._rows = partition.rank, partition.size, rows
        self._doubles = self._size.bit_count() == 1
        if self._doubles:
            self._distances = [2**number for number in range(self._size.bit_length() - 1)]
            self.peers = [self._rank ^ distance for distance in self._distances]
        else:
            self.peers = [(self._rank - 1) % self._size, (self._rank + 1) % self._size]
        # Which rounds, or steps around the ring, are over.
        self._has_arrived = [False] * (len(self.peers) if self._doubles else self._size - 1)

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        if self._doubles:
            number = self.peers.index(peer)
            while not all(self._has_arrived[:number]):
                yield None
            yield self._block(number, self._rank)
        elif peer == self.peers[1]:
            for step in range(self._size - 1):
                while step and not self._has_arrived[step - 1]:
                    yield None
                yield self._rows[(self._rank - step) % self._size]

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        if self._doubles:
            number = self.peers.index(peer)
            yield self._block(number, peer)
            self._has_arrived[number] = True
        elif peer == self.peers[0]:
            for step in range(self._size - 1):
                yield self._rows[(peer - step) % self._size]
                self._has_arrived[step] = True

    def _block(self, number: int, rank: int) -> np.ndarray:
        """The rows that a worker has at the beginning of a round."""
        distance = self._distances[number]
        start = rank // distance * distance
        return self._rows[start : start + distance].reshape(-1)


class TreeBroadcastSchedule:
    """A broadcast along a binary tree: each worker sends twice what there is, at most."""

    def __init__(
        self, partition: Partition, outputs: FusionBuffer, root: int, pool: BufferPool
    ) -> None:
        """Allocates scratch memory; see `BroadcastSchedule`."""
        size = partition.size
        index = (partition.rank - root) % size
        children = [child for child in (2 * index + 1, 2 * index + 2) if child < size]
        self._parents = [((index - 1) // 2 + root) % size] if index else []
        self._outputs = outputs
        self.peers = [*self._parents, *((child + root) % size for child in children)]
        self._pieces = outputs.chunks(MAX_PART_BYTES)
        length = len(self._pieces[0])
        [block] = pool.take(outputs.dtype, [len(self.peers) * length])
        self._scratch = dict(zip(self.peers, block.reshape(-1, length), strict=True))
        self._num_arrived = 0 if index else len(self._pieces)

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        if peer in self._parents:
            return
        for number, piece in enumerate(self._pieces):
            while self._num_arrived <= number:
                yield None
            yield from outgoing(self._outputs, piece, self._scratch[peer])

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        if peer not in self._parents:
            return
        for piece in self._pieces:
            yield from incoming(self._outputs, piece, self._scratch[peer])
            self._num_arrived += 1
