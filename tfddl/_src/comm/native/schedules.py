"""The order in which chunks of arrays are sent, received and reduced over TCP.

A schedule says for one direction of each connection which memory is sent, or filled, one after the
other. Both ends run schedules that match, so nothing but the numbers themselves is sent. Schedules
are pure: they do no input or output (`tcp_backend` does), and tests run all workers in one process.

References:
    "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", Patarasuk, Yuan, 2009,
    https://doi.org/10.1016/j.jpdc.2008.09.002
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tfddl._src.comm.native.buffer_pool import BufferPool
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.reductions import ReduceOp, reduce_into
from tfddl._src.sharding import shard_range

# What all workers together, and each one, reduce of a chunk at most: small enough for caches, large
# enough for few system calls.
_MAX_CHUNK_BYTES = 2**23
MAX_PART_BYTES = 2**19

# How many chunks' inputs are under way before the first chunk's result is.
_MAX_CHUNKS_AHEAD = 3

# A part of a chunk in more segments is copied into one buffer: a system call for each costs more
# than the copy of what is small.
_MAX_SEGMENTS = 4

Transfers: TypeAlias = Iterator[np.ndarray | None]
"""The arrays to send, or to fill, one after the other; None where the next isn't ready yet. The
iterator is advanced once an array has been sent, or filled, completely."""


@dataclass(frozen=True)
class Partition:
    """How arrays are divided into chunks, and each chunk into one part per worker."""

    rank: int
    size: int

    @property
    def others(self) -> list[int]:
        """All ranks but this one."""
        return [peer for peer in range(self.size) if peer != self.rank]

    def chunks(self, buffer: FusionBuffer) -> list[range]:
        """Spans of the chunks, in order."""
        return buffer.chunks(min(_MAX_CHUNK_BYTES, self.size * MAX_PART_BYTES))

    def part(self, chunk: range, rank: int) -> range:
        """The span of a chunk that a worker reduces, or forwards; rank 0's is the longest."""
        start, stop = shard_range(len(chunk), rank, self.size)
        return chunk[start:stop]

    def scratch(
        self, buffer: FusionBuffer, pool: BufferPool, *, per_peer: int
    ) -> dict[int, list[np.ndarray]]:
        """So many arrays for each other worker, each as long as the longest part."""
        length = max((len(self.part(chunk, 0)) for chunk in self.chunks(buffer)), default=0)
        [block] = pool.take(buffer.dtype, [len(self.others) * per_peer * length])
        rows = block.reshape(len(self.others), per_peer, length)
        return {peer: list(row) for peer, row in zip(self.others, rows, strict=True)}


class AllReduceSchedule:
    """An all-reduce: for each chunk a reduce-scatter, then an all-gather, directly between workers.

    Each worker reduces its part of every chunk: it receives that part of all other workers'
    inputs, adds them to its own, and sends the result to all. The inputs of the next chunks are
    sent before the result of a chunk, so that no connection is idle meanwhile. Each worker sends
    2 (size - 1) / size times its inputs, the least possible.

    A part is reduced in one order everywhere: the owner's input first, then those of the others in
    rank order. So results don't depend on what arrives first.
    """

    def __init__(
        self,
        partition: Partition,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
        pool: BufferPool,
    ) -> None:
        """Allocates scratch memory.

        Args:
            partition: this worker's.
            inputs: its arrays.
            outputs: the results; the same lengths.
            reduction: how to reduce.
            pool: where scratch memory is from.
        """
        self._partition = partition
        self._inputs, self._outputs, self._reduction = inputs, outputs, reduction
        self._chunks = partition.chunks(inputs)
        self._ahead = min(_MAX_CHUNKS_AHEAD, len(self._chunks))
        scratch = partition.scratch(inputs, pool, per_peer=self._ahead + 2)
        self._sending = {peer: arrays[0] for peer, arrays in scratch.items()}
        self._receiving = {peer: arrays[1] for peer, arrays in scratch.items()}
        # Inputs of the peer for this worker's parts; that of chunk n is in slot n modulo `_ahead`.
        self._slots = {peer: arrays[2:] for peer, arrays in scratch.items()}
        self._num_arrived = dict.fromkeys(partition.others, 0)
        self._num_reduced = 0

    @property
    def peers(self) -> list[int]:
        """Whom it is connected to."""
        return self._partition.others

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        scratch = self._sending[peer]
        for number, is_input in self._order():
            if is_input:
                yield from outgoing(self._inputs, self._part(number, peer), scratch)
                continue
            while self._num_reduced <= number:
                yield None
            yield from outgoing(self._outputs, self._part(number, self._partition.rank), scratch)

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        for number, is_input in self._order():
            if is_input:
                # The slot is free once the chunk that had it before is reduced.
                while self._num_reduced <= number - self._ahead:
                    yield None
                slot = self._slots[peer][number % self._ahead]
                yield slot[: len(self._part(number, self._partition.rank))]
                self._num_arrived[peer] += 1
                self._reduce_arrived()
                continue
            yield from incoming(self._outputs, self._part(number, peer), self._receiving[peer])

    def _order(self) -> Iterator[tuple[int, bool]]:
        """Each chunk's number with True for its inputs, some chunks later with False for results.

        Both ends of every connection follow it, in both directions.
        """
        for number in range(len(self._chunks) + self._ahead):
            if number < len(self._chunks):
                yield number, True
            if number >= self._ahead:
                yield number - self._ahead, False

    def _part(self, number: int, rank: int) -> range:
        return self._partition.part(self._chunks[number], rank)

    def _reduce_arrived(self) -> None:
        """Reduces this worker's parts of the chunks whose inputs have all arrived."""
        others = self._partition.others
        while self._num_reduced < min(self._num_arrived.values()):
            span = self._part(self._num_reduced, self._partition.rank)
            slots = [self._slots[peer][self._num_reduced % self._ahead] for peer in others]
            segments = zip(self._inputs.segments(span), self._outputs.segments(span), strict=True)
            for (own, at), (output, _) in segments:
                arrived = [slot[at : at + len(own)] for slot in slots]
                operands = [self._inputs.scaled(own, output), *arrived]
                reduce_into(operands, self._reduction, output)
            self._num_reduced += 1


class BroadcastSchedule:
    """A broadcast: the root sends each worker its part of every chunk; that forwards it to all.

    The root sends twice what it has at most, however many workers there are.

    References:
        van de Geijn's scatter and all-gather, in "Optimization of Collective Communication
        Operations in MPICH", Thakur, Rabenseifner, Gropp, 2005,
        https://doi.org/10.1177/1094342005051521
    """

    def __init__(
        self, partition: Partition, outputs: FusionBuffer, root: int, pool: BufferPool
    ) -> None:
        """Allocates scratch memory.

        Args:
            partition: this worker's.
            outputs: where everything is received; on the root it is there already.
            root: rank of the worker that has it.
            pool: where scratch memory is from.
        """
        self._partition = partition
        self._outputs, self._root = outputs, root
        self._chunks = partition.chunks(outputs)
        self._scratch = partition.scratch(outputs, pool, per_peer=2)
        self._num_arrived = 0

    def sends(self, peer: int) -> Transfers:
        """What is sent to another worker."""
        scratch, _ = self._scratch[peer]
        own = self._partition.rank
        for number, chunk in enumerate(self._chunks):
            if own == self._root:
                # The root's own part has nobody else to forward it.
                for rank in (peer, own):
                    yield from outgoing(self._outputs, self._partition.part(chunk, rank), scratch)
            elif peer != self._root:
                while self._num_arrived <= number:
                    yield None
                yield from outgoing(self._outputs, self._partition.part(chunk, own), scratch)

    def receives(self, peer: int) -> Transfers:
        """What is received from another worker."""
        _, scratch = self._scratch[peer]
        own = self._partition.rank
        for chunk in self._chunks:
            if peer == self._root:
                yield from incoming(self._outputs, self._partition.part(chunk, own), scratch)
                self._num_arrived += 1
                yield from incoming(self._outputs, self._partition.part(chunk, peer), scratch)
            elif own != self._root:
                yield from incoming(self._outputs, self._partition.part(chunk, peer), scratch)


def outgoing(buffer: FusionBuffer, span: range, scratch: np.ndarray) -> Iterator[np.ndarray]:
    """A span's segments, scaled, to be sent; many segments are copied into one array."""
    segments = [segment for segment, _ in buffer.segments(span)]
    if len(segments) > _MAX_SEGMENTS:
        buffer.copy_to(span, scratch[: len(span)])
        yield scratch[: len(span)]
        return
    for segment in segments:
        yield buffer.scaled(segment, scratch[: len(segment)])


def incoming(buffer: FusionBuffer, span: range, scratch: np.ndarray) -> Iterator[np.ndarray]:
    """A span's segments to be filled; many segments are received in one array, and copied."""
    segments = [segment for segment, _ in buffer.segments(span)]
    if len(segments) > _MAX_SEGMENTS:
        yield scratch[: len(span)]
        buffer.copy_from(span, scratch[: len(span)])
        return
    yield from segments
