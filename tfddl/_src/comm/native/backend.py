"""The interface of what moves large arrays between workers, and its implementations' base."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.operation import OperationContext, OutputBuffers
from tfddl._src.comm.native.posted_arrays import PostedArrays
from tfddl._src.comm.native.reductions import ReduceOp


@dataclass
class ByteCounters:
    """Bytes moved so far."""

    reduced: int = 0
    """Of the tensors that were reduced."""

    written: int = 0
    """To memory, in order to reduce them."""


class Backend(abc.ABC):
    """Moves large arrays between some workers.

    All of these workers call the same method in each operation, and one operation comes after the
    other. Arrays are flat and of one dtype, the same on all workers. Every method raises
    `PeerLostError` and `StalledError`.

    Attributes:
        posts: what moves arrays of medium size by itself, where the workers share memory.
    """

    posts: PostedArrays | None = None

    @property
    def num_connections(self) -> int:
        """Sockets to others, for large arrays."""
        return 0

    def __init__(self, mesh: Mesh, ranks: Sequence[int], purpose: str = "") -> None:
        """Sends nothing yet.

        Args:
            mesh: connects the workers.
            ranks: who takes part, as the mesh numbers them, ascending, this worker among them.
            purpose: tells it from other backends of the same ranks.
        """
        self._purpose = purpose
        self.counters = ByteCounters()
        self._mesh, self._ranks = mesh, tuple(ranks)
        self._rank, self._size = self._ranks.index(mesh.rank), len(self._ranks)

    def offer_free(self, completed: int) -> bytes:
        """Which output memory this worker no longer uses, for the first of the workers.

        Args:
            completed: how many operations have ended here.
        """
        del completed
        return b""

    def assign_outputs(self, num_bytes: int, number: int, offers: Sequence[bytes]) -> bytes:
        """Chooses the output memory of an operation; called by the first of the workers only.

        Args:
            num_bytes: how much is needed.
            number: of the operation.
            offers: what `offer_free` returned on each worker, in any order; or merged ones.

        Returns:
            The argument of `map_outputs`, for all workers.
        """
        del num_bytes, number, offers
        return b""

    def merge_offers(self, first: bytes, second: bytes) -> bytes:
        """What two offers have in common, in the place of both."""
        del first, second
        return b""

    def abandon(self) -> None:  # noqa: B027 - most have nothing to do
        """Called once an operation has failed in the middle: none can follow."""

    @abc.abstractmethod
    def map_outputs(
        self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]
    ) -> OutputBuffers:
        """Memory for results that are alike on all workers; its contents are arbitrary.

        Args:
            assigned: what `assign_outputs` returned.
            dtype: of the results.
            lengths: number of elements of each.

        Raises:
            CommunicationError: there is no memory for it.
        """

    @abc.abstractmethod
    def all_reduce(
        self,
        operation: OperationContext,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
    ) -> None:
        """Reduces elementwise over the workers; the same bits come out on all of them.

        Args:
            operation: which.
            inputs: this worker's arrays.
            outputs: of `OutputBuffers.shared`; the same lengths.
            reduction: how. The order of the sums depends on lengths and ranks only.
        """

    @abc.abstractmethod
    def all_gather(self, operation: OperationContext, row: np.ndarray, rows: np.ndarray) -> None:
        """Gives every worker the rows of all.

        Args:
            operation: which.
            row: this worker's; shape (length,).
            rows: of `OutputBuffers.shared`; shape (size, length).
        """

    @abc.abstractmethod
    def broadcast(
        self, operation: OperationContext, inputs: FusionBuffer, outputs: FusionBuffer, root: int
    ) -> None:
        """Gives every worker the arrays of one.

        Args:
            operation: which.
            inputs: this worker's arrays; only the root's matter.
            outputs: of `OutputBuffers.shared`; the same lengths.
            root: index of the root among these workers.
        """

    @abc.abstractmethod
    def all_to_all(
        self,
        operation: OperationContext,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        consume: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        """Gives each worker a part of its own from each worker.

        Args:
            operation: which.
            parts: this worker's part for each worker.
            expected: number of elements that each worker has for this one.
            longest: number of elements of the longest part that any worker has for any other.
            consume: called with consecutive spans of all parts: where the span begins, and that
                span of each worker's part. Spans have one length; of a part that ends before, the
                rest is arbitrary. The arrays are valid during the call only.
        """


@dataclass(frozen=True)
class Network:
    """How some workers are connected; a context manager that closes the connections."""

    name: str
    """What moves large arrays, for people: "shared memory", "TCP"."""

    mesh: Mesh
    """Messages between all of them."""

    make_backend: Callable[[Sequence[int], str], Backend]
    """Makes what moves large arrays between some of them, as the mesh numbers them, for a
    purpose (see `Backend`)."""

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
        """Closes the connections. Workers that wait for this one raise `PeerLostError`."""
        self.mesh.close()
