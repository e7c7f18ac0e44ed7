"""Output memory that all workers of a host read in place.

The result of an all-reduce is the same for all workers, so it is in memory once: each worker writes
a part of it, and TensorFlow reads it where it is. A *block* of this memory must not be written
again before all workers have released it. So each worker says at the beginning of an operation
which blocks it no longer uses, and the first of the workers assigns a block to the operation.

TensorFlow never writes to memory that it has taken over from NumPy. But it may write to a slice of
it that nobody else uses: `Tensor::RefCountIsOne` asks the slice's buffer, not the whole one,
whether it owns its memory. So callers get a private view, in which writes stay with the process.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfddl._src.comm.native.buffer_pool import KEPT_ROUNDS, MAX_SLACK
from tfddl._src.comm.native.shm import PrivateView, SharedMemory
from tfddl.errors import CommunicationError

_COMPLETED = struct.Struct("<Q")
_ASSIGNED = struct.Struct("<IQQ")
_BLOCK_ID = struct.Struct("<I")
_NO_MEMORY = 2**32 - 1


@dataclass
class _Block:
    """A block, as one of the workers sees it."""

    shared: np.ndarray
    """What backends write to."""

    view: PrivateView
    """What callers get."""

    offset: int
    last_operation: int
    """Number of the operation that had it last; only the first worker keeps it up to date."""

    @property
    def is_free(self) -> bool:
        """Whether nobody here refers to it; slices and TensorFlow's tensors do."""
        # CPython's own count, exact while the GIL is held. TensorFlow's tensors that alias the
        # memory hold a reference to the array until they are gone.
        # The view itself has one reference, the argument of getrefcount is another one.
        return sys.getrefcount(self.view.array) == 2


class _Offer(NamedTuple):
    """Which blocks a worker no longer uses."""

    completed: int
    """How many operations have ended there. Of blocks that were assigned to later ones, the worker
    may not know yet."""

    free: int
    """Bit n: block n is free."""

    def pack(self) -> bytes:
        """The bytes to send."""
        free = self.free.to_bytes((self.free.bit_length() + 7) // 8, "little")
        return _COMPLETED.pack(self.completed) + free

    @classmethod
    def unpack(cls, data: bytes) -> _Offer:
        [completed] = _COMPLETED.unpack_from(data)
        return cls(completed, int.from_bytes(data[_COMPLETED.size :], "little"))


class OutputPool:
    """Blocks of the first worker's memory.

    In each operation all workers call `offer_free`, then the first one calls `assign`, then all
    call `take`, in the order of the operations.
    """

    def __init__(self, own: SharedMemory, *, is_first: bool) -> None:
        """Has no blocks yet.

        Args:
            own: this worker's memory, in the file of all.
            is_first: whether this is the first worker.
        """
        self._own, self._is_first = own, is_first
        self._blocks: dict[int, _Block] = {}

    @property
    def num_bytes(self) -> int:
        """Size of all blocks together."""
        return sum(block.shared.nbytes for block in self._blocks.values())

    def offer_free(self, completed: int) -> bytes:
        """Which blocks this worker no longer uses, for the first one.

        Args:
            completed: how many operations have ended here. It must be read before this is called:
                an operation that ends in between may have got a block that looks free here.
        """
        # `list`: `take` may add a block in another thread meanwhile.
        free = sum(1 << n for n, block in list(self._blocks.items()) if block.is_free)
        return _Offer(completed, free).pack()

    @staticmethod
    def merge_offers(first: bytes, second: bytes) -> bytes:
        """An offer of what is free by both of two offers."""
        one, other = _Offer.unpack(first), _Offer.unpack(second)
        return _Offer(min(one.completed, other.completed), one.free & other.free).pack()

    def assign(self, num_bytes: int, number: int, offers: Sequence[bytes]) -> bytes:
        """Chooses a block, and drops blocks that weren't used for long.

        Args:
            num_bytes: how large it has to be.
            number: of the operation.
            offers: of all workers, for this operation; or merged ones.

        Returns:
            The argument of `take`, for all workers.
        """
        unpacked = [_Offer.unpack(offer) for offer in offers]
        free = {
            n: block
            for n, block in self._blocks.items()
            if all(o.completed > block.last_operation and o.free >> n & 1 for o in unpacked)
        }
        sizes = {n: block.shared.nbytes for n, block in free.items()}
        fitting = [n for n, size in sizes.items() if num_bytes <= size <= MAX_SLACK * num_bytes]
        best = min(fitting, key=lambda n: sizes[n], default=None)
        oldest = number - KEPT_ROUNDS * len(self._blocks)
        dropped = [n for n in free if n != best and free[n].last_operation < oldest]
        for n in dropped:
            block = self._blocks.pop(n)
            self._own.release(block.offset, block.shared.nbytes)
        if best is None:
            # The lowest number that is free, so that the bits of offers stay few.
            best = next(n for n in range(len(self._blocks) + 1) if n not in self._blocks)
            try:
                offset, shared = self._own.allocate(num_bytes)
                view = self._own.file.private_view(offset, shared.nbytes)
            except OSError as error:
                # Told to all workers, so that all of them raise.
                return _ASSIGNED.pack(_NO_MEMORY, 0, num_bytes) + str(error.strerror).encode()
            self._blocks[best] = _Block(shared, view, offset, number)
        block = self._blocks[best]
        block.last_operation = number
        assigned = _ASSIGNED.pack(best, block.offset, block.shared.nbytes)
        return assigned + b"".join(map(_BLOCK_ID.pack, dropped))

    def take(self, assigned: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The block of this operation; its contents are arbitrary.

        Returns:
            What backends write to, and what callers get, each as uint8.

        Raises:
            CommunicationError: the first worker has no memory for it; all workers raise this.
        """
        block_id, offset, num_bytes = _ASSIGNED.unpack_from(assigned)
        rest = assigned[_ASSIGNED.size :]
        if block_id == _NO_MEMORY:
            raise CommunicationError(
                f"the host has no memory for a result of {num_bytes} bytes: {rest.decode()}. HINT: "
                "fewer workers on this host, or a larger limit of its container"
            )
        if not self._is_first:
            # This worker has offered them as free: nobody here refers to them, so that this unmaps
            # them.
            for [dropped] in _BLOCK_ID.iter_unpack(rest):
                del self._blocks[dropped]
            if block_id not in self._blocks:
                shared = self._own.file.map_shared(offset, num_bytes)
                view = self._own.file.private_view(offset, num_bytes)
                self._blocks[block_id] = _Block(shared, view, offset, last_operation=0)
        block = self._blocks[block_id]
        block.view.discard_writes()
        return block.shared, block.view.array
