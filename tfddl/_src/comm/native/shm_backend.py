"""Large arrays between the workers of a host, through memory that all of them map.

An all-reduce goes in *chunks* that fit the processors' caches. Each worker has a *staging area* of
two slots, which are used in turn. For each chunk a worker

1. writes the others' parts of its own numbers into its slot,
2. waits until all workers have done so (a barrier),
3. reduces its own part: its own numbers first, then those of the other slots in rank order,
   directly into output memory that all workers read in place.

So all workers get the same bits, and one byte is written for each byte reduced, whatever the number
of workers. A slot is written again two chunks later. By then all workers have come to the barrier
of the chunk in between, and so have finished reading the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfddl._src.comm.native.backend import Backend
from tfddl._src.comm.native.buffer_pool import split_aligned
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.operation import OperationContext, OutputBuffers
from tfddl._src.comm.native.posted_arrays import PostedArrays
from tfddl._src.comm.native.reductions import ReduceOp, reduce_into
from tfddl._src.comm.native.shared_results import OutputPool
from tfddl._src.comm.native.shm import SharedMemory
from tfddl._src.sharding import shard_range

CHUNK_BYTES = 2**22
"""Reduced by all workers together between two barriers: small enough for caches, large enough that
a chunk takes longer than its barrier."""

_NUM_SLOTS = 2


class ShmBackend(Backend):
    """Shared memory of the workers of a host."""

    def __init__(
        self,
        mesh: Mesh,
        ranks: Sequence[int],
        purpose: str = "",
        *,
        memory: SharedMemory,
    ) -> None:
        """Sends nothing yet.

        Args:
            mesh: connects all workers of the host.
            ranks: who takes part, ascending, this worker among them.
            purpose: tells it from other backends of the same ranks.
            memory: this worker's, in the file of all workers of the host.
        """
        super().__init__(mesh, ranks, purpose)
        self._memory = memory
        self.posts = PostedArrays(self._size, self._rank, memory)
        self._pool = OutputPool(memory, is_first=self._rank == 0)
        self._staging: list[np.ndarray] | None = None
        self._slot = 0

    def offer_free(self, completed: int) -> bytes:
        return self._pool.offer_free(completed)

    def merge_offers(self, first: bytes, second: bytes) -> bytes:
        return self._pool.merge_offers(first, second)

    def assign_outputs(self, num_bytes: int, number: int, offers: Sequence[bytes]) -> bytes:
        return self._pool.assign(num_bytes, number, offers)

    def map_outputs(
        self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]
    ) -> OutputBuffers:
        shared, private = self._pool.take(assigned)
        return OutputBuffers(
            split_aligned(shared, dtype, lengths), split_aligned(private, dtype, lengths)
        )

    def all_reduce(
        self,
        operation: OperationContext,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
    ) -> None:
        # `strict=False`: `_slots` has no end. Stores to a slot come before the barrier, loads after
        # it; that orders them between the processes, see `OperationContext.barrier`.
        for chunk, slots in zip(inputs.chunks(CHUNK_BYTES), self._slots(operation), strict=False):
            self._stage(inputs, chunk, slots[self._rank])
            operation.barrier()
            self._reduce_part(inputs, outputs, chunk, slots, reduction)
        operation.barrier()  # All parts of the results are there.

    def all_gather(self, operation: OperationContext, row: np.ndarray, rows: np.ndarray) -> None:
        rows[self._rank] = row
        operation.barrier()

    def broadcast(
        self, operation: OperationContext, inputs: FusionBuffer, outputs: FusionBuffer, root: int
    ) -> None:
        if self._rank == root:
            for output, own in zip(outputs.arrays, inputs.arrays, strict=True):
                output[:] = own
        operation.barrier()

    def all_to_all(
        self,
        operation: OperationContext,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        consume: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        dtype = parts[0].dtype
        # Each slot has a column for each receiver, of whole elements, so that it is aligned.
        width = CHUNK_BYTES // self._size // dtype.itemsize
        slots = self._slots(operation)
        for at in range(0, longest, width):
            staged = next(slots)
            own = staged[self._rank].view(dtype)
            for rank, part in enumerate(parts):
                span = part[at : at + width]
                own[rank * width : rank * width + len(span)] = span
            operation.barrier()
            column = slice(self._rank * width, self._rank * width + min(width, longest - at))
            consume(at, [slot.view(dtype)[column] for slot in staged])

    def _staging_areas(self, operation: OperationContext) -> list[np.ndarray]:
        """The staging area of each worker, in rank order; made by the first large operation."""
        if self._staging is None:
            size = _NUM_SLOTS * CHUNK_BYTES
            offset, own = self._memory.allocate(size)
            offsets = operation.exchange(offset)
            self._staging = [
                own
                if rank == self._mesh.rank
                else self._memory.file.map_shared(offsets[rank], size)
                for rank in self._ranks
            ]
        return self._staging

    def _slots(self, operation: OperationContext) -> Iterator[list[np.ndarray]]:
        """For each chunk: the slot of each worker, in rank order."""
        areas = self._staging_areas(operation)
        while True:
            # Goes on over operations: others may still read the last chunk of one when the first
            # chunk of the next is written, as there need not be a barrier in between.
            start = CHUNK_BYTES * (self._slot % _NUM_SLOTS)
            self._slot += 1
            yield [area[start : start + CHUNK_BYTES] for area in areas]

    def _stage(self, inputs: FusionBuffer, chunk: range, slot: np.ndarray) -> None:
        """Writes the other workers' parts of a chunk into this worker's slot."""
        # This worker's own part isn't staged: `_reduce_part` reads it where it is.
        own_start, own_stop = shard_range(len(chunk), self._rank, self._size)
        for start, stop in ((0, own_start), (own_stop, len(chunk))):
            inputs.copy_to(chunk[start:stop], slot.view(inputs.dtype)[start:stop])
            self.counters.written += (stop - start) * inputs.dtype.itemsize

    def _reduce_part(
        self,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        chunk: range,
        slots: list[np.ndarray],
        reduction: ReduceOp,
    ) -> None:
        """Reduces this worker's part of a chunk into the outputs."""
        start, stop = shard_range(len(chunk), self._rank, self._size)
        others = [
            slot.view(inputs.dtype)[start:stop]
            for rank, slot in enumerate(slots)
            if rank != self._rank
        ]
        span = chunk[start:stop]
        segments = zip(inputs.segments(span), outputs.segments(span), strict=True)
        for (own, at), (output, _) in segments:
            staged = [other[at : at + len(own)] for other in others]
            reduce_into([inputs.scaled(own, output), *staged], reduction, output)
        self.counters.written += (stop - start) * inputs.dtype.itemsize
