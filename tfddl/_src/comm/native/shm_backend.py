"""What is large, within a host: through memory that all its workers see.

To reduce, it goes in *chunks* that fit the processors' caches, through two slots of each worker's
*area* that are used in turn. In each step a worker writes its part of a chunk, waits until all have
written theirs, and reads. A slot is written again two steps later, when all have said that they
have read it. Each worker adds up one part of the chunk, its own numbers first, into memory that all
read in place: so all get the same bits, and a byte is written for each byte reduced, whatever the
number of workers. What is gathered or broadcast is written to such memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tfddl._src.comm.native.backend import Backend, OutputBuffers
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.operation import Operation
from tfddl._src.comm.native.pool import OutputPool
from tfddl._src.comm.native.reductions import ReduceOp, reduce
from tfddl._src.comm.native.shm import PeerMemory, SharedMemory, split_aligned
from tfddl._src.sharding import shard_range

CHUNK_BYTES = 2**22
"""What all workers together reduce in one step: small enough for caches, large enough that the step
costs more than the messages around it."""

_SLOTS = 2


class ShmBackend(Backend):
    """Memory that the workers of a host share."""

    def __init__(
        self,
        mesh: Mesh,
        ranks: Sequence[int],
        *,
        memory: SharedMemory,
        peers: Mapping[int, PeerMemory],
    ) -> None:
        """Begins; nothing is sent yet.

        Args:
            mesh: connects all workers of the host.
            ranks: who takes part, ascending, this worker among them.
            memory: what this worker shows the others.
            peers: what each other one shows.
        """
        super().__init__(mesh, ranks)
        self._memory, self._peers = memory, peers
        self._pool = OutputPool(memory, None if self._rank == 0 else peers[self._ranks[0]])
        self._areas: list[np.ndarray] | None = None
        self._slot = 0

    def offer(self, ended: int) -> bytes:
        """See `Backend.offer`."""
        return self._pool.offer(ended)

    def assign(self, num_bytes: int, turn: int, offers: Sequence[bytes]) -> bytes:
        """See `Backend.assign`."""
        return self._pool.assign(num_bytes, turn, offers)

    def room(self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]) -> OutputBuffers:
        """See `Backend.room`."""
        written, given = self._pool.take(assigned)
        return OutputBuffers(
            split_aligned(written, dtype, lengths), split_aligned(given, dtype, lengths)
        )

    def reduce(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, reduction: ReduceOp
    ) -> None:
        """See `Backend.reduce`."""
        for chunk, slots in zip(mine.chunks(CHUNK_BYTES), self._slots(session), strict=False):
            self._put_in(mine, chunk, slots[self._rank])
            session.step()
            self._add_up(mine, results, chunk, slots, reduction)
        session.step()  # All sums are there.

    def gather(self, session: Operation, mine: np.ndarray, rows: np.ndarray) -> None:
        """See `Backend.gather`."""
        rows[self._rank] = mine
        session.step()

    def broadcast(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, root: int
    ) -> None:
        """See `Backend.broadcast`."""
        if self._rank == root:
            for result, own in zip(results.arrays, mine.arrays, strict=True):
                result[:] = own
        session.step()

    def swap(
        self,
        session: Operation,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        take: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        """See `Backend.swap`."""
        dtype = parts[0].dtype
        room = CHUNK_BYTES // self._size // dtype.itemsize
        slots = self._slots(session)
        for at in range(0, longest, room):
            shown = next(slots)
            own = shown[self._rank].view(dtype)
            for rank, part in enumerate(parts):
                piece = part[at : at + room]
                own[rank * room : rank * room + len(piece)] = piece
            session.step()
            lane = slice(self._rank * room, self._rank * room + min(room, longest - at))
            take(at, [slot.view(dtype)[lane] for slot in shown])

    def _shown(self, session: Operation) -> list[np.ndarray]:
        """Everyone's area; made when something large is to be moved for the first time."""
        if self._areas is None:
            size = _SLOTS * CHUNK_BYTES
            offset, own = self._memory.allocate(size)
            offsets = session.tell(offset)
            self._areas = [
                own if rank == self._mesh.rank else self._peers[rank].area(offsets[rank], size)
                for rank in self._ranks
            ]
        return self._areas

    def _slots(self, session: Operation) -> Iterator[list[np.ndarray]]:
        """For each step: where everyone shows numbers."""
        areas = self._shown(session)
        while True:
            start = CHUNK_BYTES * (self._slot % _SLOTS)
            self._slot += 1
            yield [area[start : start + CHUNK_BYTES] for area in areas]

    def _put_in(self, mine: FusionBuffer, chunk: range, slot: np.ndarray) -> None:
        """Shows the others their parts of a chunk."""
        for rank in range(self._size):
            if rank != self._rank:
                start, stop = shard_range(len(chunk), rank, self._size)
                mine.copy_to(chunk[start:stop], slot.view(mine.dtype)[start:stop])
                self.counters.written += (stop - start) * mine.dtype.itemsize

    def _add_up(
        self,
        mine: FusionBuffer,
        results: FusionBuffer,
        chunk: range,
        slots: list[np.ndarray],
        reduction: ReduceOp,
    ) -> None:
        """Reduces this worker's part of a chunk, where all will read it."""
        start, stop = shard_range(len(chunk), self._rank, self._size)
        others = [
            slot.view(mine.dtype)[start:stop]
            for rank, slot in enumerate(slots)
            if rank != self._rank
        ]
        part = chunk[start:stop]
        for (own, at), (result, _) in zip(mine.pieces(part), results.pieces(part), strict=True):
            shown = [other[at : at + len(own)] for other in others]
            reduce([mine.scaled(own, result), *shown], reduction, result)
        self.counters.written += (stop - start) * mine.dtype.itemsize
