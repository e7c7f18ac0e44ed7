"""What an operation needs: messages between workers, and something that moves large arrays."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.operation import Operation
from tfddl._src.comm.native.reductions import ReduceOp


@dataclass
class ByteCounters:
    """What has been moved so far, in bytes."""

    reduced: int = 0
    """Of the tensors that were reduced."""

    written: int = 0
    """Into memory, for these."""


class OutputBuffers(NamedTuple):
    """Memory for the results of an operation: the same arrays, twice."""

    written: list[np.ndarray]
    """Where carriers write them."""

    given: list[np.ndarray]
    """Where whoever gets them reads them; what is written there changes nobody else's."""


class Backend(abc.ABC):
    """Moves what is large between some workers.

    One operation comes after the other, all workers begin it alike, and arrays have the same
    dtype everywhere. All raise `PeerLostError` and `StalledError`.
    """

    def __init__(self, mesh: Mesh, ranks: Sequence[int]) -> None:
        """Begins; nothing is sent yet.

        Args:
            mesh: connects the workers.
            ranks: who takes part, as the mesh numbers them, ascending, this worker among them.
        """
        self.counters = ByteCounters()
        self._mesh, self._ranks = mesh, tuple(ranks)
        self._rank, self._size = self._ranks.index(mesh.rank), len(self._ranks)

    def offer(self, ended: int) -> bytes:
        """What this worker tells all others about room for results, before they begin.

        Args:
            ended: how many operations have ended here.
        """
        del ended
        return b""

    def assign(self, num_bytes: int, turn: int, offers: Sequence[bytes]) -> bytes:
        """What the first worker tells the others about it.

        Args:
            num_bytes: how much room is needed.
            turn: the number of the operation.
            offers: of all workers.
        """
        del num_bytes, turn, offers
        return b""

    @abc.abstractmethod
    def room(self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]) -> OutputBuffers:
        """Memory for results that are alike everywhere.

        Args:
            assigned: what the first worker has said.
            dtype: theirs.
            lengths: how many elements each has.

        Raises:
            CommunicationError: there is no memory for it.
        """

    @abc.abstractmethod
    def reduce(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, reduction: ReduceOp
    ) -> None:
        """Reduces what each worker has; the same bits come out everywhere.

        Args:
            session: the operation.
            mine: this worker's.
            results: where it goes, in `OutputBuffers.written`.
            reduction: how.
        """

    @abc.abstractmethod
    def gather(self, session: Operation, mine: np.ndarray, rows: np.ndarray) -> None:
        """Gives everyone what each one has.

        Args:
            session: the operation.
            mine: this worker's row.
            rows: where all rows go, in `OutputBuffers.written`; shape (size, length).
        """

    @abc.abstractmethod
    def broadcast(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, root: int
    ) -> None:
        """Gives everyone what one has.

        Args:
            session: the operation.
            mine: this worker's.
            results: where it goes, in `OutputBuffers.written`.
            root: whose, a number among these workers.
        """

    @abc.abstractmethod
    def swap(
        self,
        session: Operation,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        take: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        """Gives each worker a part of its own from each worker.

        Args:
            session: the operation.
            parts: this worker's, for each one.
            expected: how many elements each one has for this worker.
            longest: elements of the longest part that anyone has for anyone.
            take: gets, one stretch after the other, the place that it begins at, and there the
                piece of each worker, which may be longer than what that one has to give.
        """


@dataclass(frozen=True)
class Network:
    """How some workers are connected."""

    name: str
    """What moves what is large, for people."""

    mesh: Mesh
    """What connects them."""

    carrier: Callable[[Sequence[int]], Backend]
    """Makes what moves large arrays between some of them, as the mesh numbers them."""

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up; the others notice."""
        self.mesh.close()
