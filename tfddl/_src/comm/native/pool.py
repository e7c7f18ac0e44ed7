"""Memory for results that all workers of a host read in place.

What has been added up is the same for everyone, so it is there once: each worker writes a part of
it, and TensorFlow reads it where it is. Nobody may write to such a *piece* again before all have
let go of it. So each worker says, at the beginning of each operation, which pieces it no longer
uses; the first of them then says which piece the operation gets.

TensorFlow never writes to memory that it has taken over from NumPy; but it may to a slice of it
that nobody else uses (`Tensor::RefCountIsOne` asks the slice, not the whole, whether it owns its
memory). So what is handed out is a view in which such writing stays with the process.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfddl._src.comm.native.shm import PeerMemory, PrivateView, SharedMemory
from tfddl.errors import CommunicationError

_MOST_ROOM = 2
"""How many times as large as wanted a piece may be."""

_KEPT_ROUNDS = 4
"""For how many times as many turns as there are pieces one that nobody wants is kept."""

_ENDED = struct.Struct("<Q")
_ASSIGNED = struct.Struct("<IQQ")
_NUMBER = struct.Struct("<I")
_NO_MEMORY = 2**32 - 1


@dataclass
class _Piece:
    """A piece, as one of the workers sees it."""

    shared: np.ndarray
    """What all write to."""

    view: PrivateView
    """What is handed out."""

    offset: int
    turn: int
    """Which operation has got it last; only the first worker keeps it up."""

    @property
    def is_free(self) -> bool:
        """Whether nobody here refers to it; views count, and so does TensorFlow."""
        # The view itself, and the argument of getrefcount.
        return sys.getrefcount(self.view.array) == 2


class _Offer(NamedTuple):
    """What a worker doesn't use any more."""

    ended: int
    """How many turns have ended there. What it says of pieces assigned later means nothing."""

    free: int
    """A bit for each piece."""

    @classmethod
    def read(cls, data: bytes) -> _Offer:
        [ended] = _ENDED.unpack_from(data)
        return cls(ended, int.from_bytes(data[_ENDED.size :], "little"))


class OutputPool:
    """Pieces of the first worker's memory, for the results of all.

    The same methods must be called by all workers in each turn: `offer`, then, by the first alone,
    `assign`, then, one turn after the other, `take`.
    """

    def __init__(self, own: SharedMemory, first: PeerMemory | None) -> None:
        """Begins without any.

        Args:
            own: this worker's memory.
            first: that of the first worker; None if this is the first.
        """
        self._own, self._first = own, first
        self._pieces: dict[int, _Piece] = {}

    @property
    def num_bytes(self) -> int:
        """Of all pieces."""
        return sum(piece.shared.nbytes for piece in self._pieces.values())

    def offer(self, ended: int) -> bytes:
        """What this worker doesn't use any more, for the first one.

        Args:
            ended: how many turns have ended here; counted before this is called.
        """
        free = sum(1 << n for n, piece in list(self._pieces.items()) if piece.is_free)
        return _ENDED.pack(ended) + free.to_bytes((free.bit_length() + 7) // 8, "little")

    def assign(self, num_bytes: int, turn: int, offers: Sequence[bytes]) -> bytes:
        """Chooses a piece, and lets those go that nobody has wanted for long; the first one does.

        Args:
            num_bytes: how large at least.
            turn: for which operation.
            offers: of all workers, for this operation.

        Returns:
            What all workers `take`.
        """
        read = [_Offer.read(offer) for offer in offers]
        free = {
            n: piece
            for n, piece in self._pieces.items()
            if all(o.ended > piece.turn and o.free >> n & 1 for o in read)
        }
        sizes = {n: piece.shared.nbytes for n, piece in free.items()}
        fitting = [n for n, size in sizes.items() if num_bytes <= size <= _MOST_ROOM * num_bytes]
        best = min(fitting, key=lambda n: sizes[n], default=None)
        oldest = turn - _KEPT_ROUNDS * len(self._pieces)
        dropped = [n for n in free if n != best and free[n].turn < oldest]
        for n in dropped:
            piece = self._pieces.pop(n)
            self._own.release(piece.offset, piece.shared.nbytes)
        if best is None:
            best = next(n for n in range(len(self._pieces) + 1) if n not in self._pieces)
            try:
                offset, shared = self._own.allocate(num_bytes)
                view = self._own.view(offset, shared.nbytes)
            except OSError as error:
                return _ASSIGNED.pack(_NO_MEMORY, 0, num_bytes) + str(error.strerror).encode()
            self._pieces[best] = _Piece(shared, view, offset, turn)
        piece = self._pieces[best]
        piece.turn = turn
        assigned = _ASSIGNED.pack(best, piece.offset, piece.shared.nbytes)
        return assigned + b"".join(map(_NUMBER.pack, dropped))

    def take(self, assigned: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The piece of this operation; what is in it is arbitrary.

        Returns:
            What all write to, and what is handed out, each as uint8.

        Raises:
            CommunicationError: the first worker has no memory for it; all raise this.
        """
        number, offset, num_bytes = _ASSIGNED.unpack_from(assigned)
        rest = assigned[_ASSIGNED.size :]
        if number == _NO_MEMORY:
            raise CommunicationError(
                f"the host has no memory for a result of {num_bytes} bytes: {rest.decode()}"
            )
        if self._first is not None:
            for [dropped] in _NUMBER.iter_unpack(rest):
                del self._pieces[dropped]
            if number not in self._pieces:
                shared = self._first.area(offset, num_bytes)
                view = self._first.view(offset, num_bytes)
                self._pieces[number] = _Piece(shared, view, offset, turn=0)
        piece = self._pieces[number]
        piece.view.renew()
        return piece.shared, piece.view.array
