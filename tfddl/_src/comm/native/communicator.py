"""Collective operations of some workers.

Every operation begins with messages in which all workers tell what they are about to do and, if the
tensors are small, their numbers (see `first_messages`). So workers compare before anything large is
moved, and pay nothing extra for it: where they differ, all of them raise, and the next operation
works.

Larger tensors are moved by a `Backend`: through memory that the workers of a host share
(`shm_backend`), or by TCP between hosts (`tcp_backend`). Small ones are reduced by every worker for
itself, in an order that depends on ranks only, so that all get the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.buffer_pool import ALIGNMENT, BufferPool
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.join import JoinResult
from tfddl._src.comm.native.messages import OpSignature
from tfddl._src.comm.native.operation_starter import OperationStarter
from tfddl._src.comm.native.posted_arrays import SizedSignature
from tfddl._src.comm.native.reductions import ReduceOp, divide_into, reduce, reduce_into
from tfddl._src.comm.native.small_tensors import GatheredTensors, ReducedTensors, SmallTensors
from tfddl._src.comm.native.tree import neighbours


class Communicator:
    """Collective operations of some workers; each of them makes one of the same ranks.

    All of these workers must call the same methods, with signatures that are alike. Several threads
    may be in different operations at once, in any order; operations of one name are matched in
    their order.

    All methods raise `DisagreementError` where signatures or sizes differ (on every worker, and the
    next operation works), `PeerLostError`, `StalledError` and `DeadlockError`. After the latter
    three, or any other error within an operation, all further operations raise at once: nobody
    knows how far the other workers have come.

    Attributes:
        ranks: of these workers, as the network numbers them, ascending.
        rank: index of this worker among them.
        size: number of these workers.
        counters: bytes moved.
    """

    def __init__(self, network: Network, ranks: Sequence[int], purpose: str = "") -> None:
        """Sends nothing yet.

        Args:
            network: connects the workers.
            ranks: who takes part, ascending, this worker among them.
            purpose: tells it from other communicators of the same ranks.
        """
        mesh = network.mesh
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(mesh.rank)
        self.size = len(self.ranks)
        mesh.add_neighbours(neighbours(self.ranks, mesh.rank))
        self._mesh = mesh
        self._network = network
        self._backend = network.make_backend(self.ranks, purpose)
        self.counters = self._backend.counters
        self._key = ",".join(map(str, self.ranks)) + purpose
        self._starter = OperationStarter(mesh, self._backend, self.ranks, self._key)
        self._remaining: dict[tuple[int, ...], Communicator] = {}
        self._lock = threading.Lock()
        self._pool = BufferPool()

    @property
    def num_connections(self) -> int:
        """Sockets to other workers: those of the network for messages, and its own."""
        return self._mesh.num_connections + self._backend.num_connections

    def join(self, signature: OpSignature) -> JoinResult:
        """Takes part in nothing more until all workers have joined, for which it waits.

        In reductions of the others this worker counts as zeros; their other operations raise
        `DisagreementError`. They notice if it is lost meanwhile.

        Args:
            signature: of the call, for messages.

        Returns:
            The last one is an index among these workers.
        """
        joined = self._starter.join(signature)
        return joined._replace(last=self.ranks.index(joined.last))

    def all_reduce(
        self,
        arrays: Sequence[np.ndarray],
        reduction: ReduceOp,
        signature: OpSignature,
        *,
        scale: float | None = None,
    ) -> list[np.ndarray]:
        """Reduces elementwise over the workers.

        Args:
            arrays: shape (length,) each, contiguous, of one dtype; the same lengths everywhere.
            reduction: how. 16-bit floats are reduced in float32, and rounded once.
            signature: of the operation.
            scale: factor for this worker's floats; 0 makes zeros of NaN and infinity, too.

        Returns:
            Arrays of the same lengths, bit for bit the same on all workers.
        """
        # The scale is multiplied in where inputs are copied: no extra pass over memory.
        small = ReducedTensors(FusionBuffer(arrays, scale=scale), reduction)
        return self._reduced(small, reduction, signature)

    def sum_weighted(
        self,
        head: np.ndarray,
        arrays: Sequence[np.ndarray],
        signature: OpSignature,
        *,
        weight: float,
        divisor: float | None,
    ) -> list[np.ndarray]:
        """Sums of arrays that each worker weights, divided by what their weights add up to.

        Args:
            head: shape (n,), n > 0, floats: numbers that are added up as they are.
            arrays: shape (length,) each, contiguous, of the dtype of `head`; the same lengths
                everywhere.
            signature: of the operation.
            weight: factor for this worker's arrays; 0 makes zeros of NaN and infinity, too.
            divisor: of the sums of the arrays; None is the sum of the first number of `head`.
                0 makes zeros.

        Returns:
            The sum of `head`, then arrays of the same lengths, bit for bit the same on all workers.
        """
        inputs = FusionBuffer([head, *arrays], scale=weight, num_unscaled=1)
        small = ReducedTensors(inputs, ReduceOp.SUM)
        total, *sums = self._reduced(small, ReduceOp.SUM, signature)
        number = total[0] if divisor is None else head.dtype.type(divisor)
        if number == 1:
            return [total, *sums]
        means = sums
        if not self._starter.is_inline(small) and not self._is_posted(small):
            # Others map these, too: the system would copy them page by page.
            means = self._pool.take(inputs.dtype, inputs.lengths[1:])
        for one, mean in zip(sums, means, strict=True):
            divide_into(one, number, mean)
        return [total, *means]

    def _reduced(
        self, small: ReducedTensors, reduction: ReduceOp, signature: OpSignature
    ) -> list[np.ndarray]:
        inputs = small.inputs
        self.counters.reduced += inputs.num_bytes
        if self._is_posted(small):
            self.counters.written += 2 * inputs.num_bytes
            with self._posted(inputs, signature, joinable=True) as posted:
                arrays = self._pool.take(inputs.dtype, inputs.lengths)
                start = 0
                for array in arrays:
                    stop = start + len(array)
                    reduce_into([row[start:stop] for row in posted], reduction, array)
                    start = stop
            return arrays
        with self._starter.begin(
            signature, small, output_lengths=inputs.lengths, joinable=True
        ) as operation:
            outputs = FusionBuffer(operation.outputs.shared)
            if operation.is_inline:
                outputs.write(0, operation.small_result(small))
                self.counters.written += inputs.num_bytes
            elif operation.joined:
                rest = self._without(operation.joined)
                total = FusionBuffer(rest._reduced(small, reduction, signature))
                zeros = np.zeros(inputs.length, inputs.dtype)
                outputs.write(0, reduce([total.read(0, total.length), zeros], reduction))
            else:
                self._backend.all_reduce(operation, inputs.scaled_once(), outputs, reduction)
        return operation.outputs.private

    def all_gather(
        self, array: np.ndarray, signature: OpSignature, *, joinable: bool = False
    ) -> np.ndarray:
        """Gives every worker the arrays of all.

        Args:
            array: shape (length,), the same length everywhere.
            signature: of the operation.
            joinable: whether it goes on without workers that have joined, whose rows are zeros.

        Returns:
            Shape (size, length), rows in rank order.
        """
        inputs = FusionBuffer([array])
        small = GatheredTensors(
            inputs, self.rank, [inputs.length] * self.size, num_bytes=inputs.num_bytes
        )
        if self._is_posted(small):
            with self._posted(inputs, signature, joinable=joinable) as posted:
                [flat] = self._pool.take(inputs.dtype, [self.size * inputs.length])
                return np.concatenate(posted, out=flat).reshape(self.size, inputs.length)
        shape = (self.size, inputs.length)
        lengths = [shape[0] * shape[1]]
        with self._starter.begin(
            signature, small, output_lengths=lengths, joinable=joinable
        ) as operation:
            rows = operation.outputs.shared[0].reshape(shape)
            if operation.is_inline:
                rows[:] = operation.small_result(small)
            elif operation.joined:
                rows[:] = 0
                rest = self._without(operation.joined)
                present = [rank not in operation.joined for rank in self.ranks]
                rows[present] = rest.all_gather(array, signature)
            else:
                self._backend.all_gather(operation, array, rows)
        return operation.outputs.private[0].reshape(shape)

    def gather_rows(self, arrays: Sequence[np.ndarray], signature: OpSignature) -> list[np.ndarray]:
        """Joins arrays of all workers on their first dimensions, which may differ.

        Args:
            arrays: at least one, contiguous, each with at least one dimension; the same dtypes and
                other dimensions everywhere.
            signature: of the operation.

        Returns:
            Shape (size, number of arrays), int64: how many rows each worker has of each. Then each
            array's rows of all workers, in rank order.
        """
        own = np.array([len(array) for array in arrays], np.int64)
        rows = self.all_gather(own, signature)
        if len(arrays) == 1 and (rows == rows[0]).all():
            gathered = self.all_gather(arrays[0].reshape(-1), signature)
            return [rows, gathered.reshape(rows.sum(), *arrays[0].shape[1:])]
        widths = [math.prod(array.shape[1:]) * array.dtype.itemsize for array in arrays]
        # Where each worker's arrays begin among its bytes, and where the last one ends: of whole
        # elements of any dtype.
        starts = []
        for numbers in rows.tolist():
            sizes = [_aligned(n * width) for n, width in zip(numbers, widths, strict=True)]
            starts.append([0, *itertools.accumulate(sizes)])
        [mine] = self._pool.take(np.dtype(np.uint8), [max(ends[-1] for ends in starts)])
        for array, start in zip(arrays, starts[self.rank], strict=False):
            mine[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        gathered = self.all_gather(mine, signature)
        joined = []
        for i, (array, width) in enumerate(zip(arrays, widths, strict=True)):
            numbers = rows[:, i].tolist()
            shape = (sum(numbers), *array.shape[1:])
            [flat] = self._pool.take(array.dtype, [math.prod(shape)])
            parts = [
                gathered[rank, starts[rank][i] : starts[rank][i] + number * width]
                for rank, number in enumerate(numbers)
            ]
            np.concatenate(parts, out=flat.view(np.uint8))
            joined.append(flat.reshape(shape))
        return [rows, *joined]

    def broadcast(
        self, arrays: Sequence[np.ndarray], root: int, signature: OpSignature
    ) -> list[np.ndarray]:
        """Gives every worker the arrays of one.

        Args:
            arrays: shape (length,) each, of one dtype, the same lengths everywhere; only the root's
                values matter.
            root: index of the root among these workers.
            signature: of the operation.
        """
        inputs = FusionBuffer(arrays)
        wanted = [inputs.length if rank == root else 0 for rank in range(self.size)]
        small = GatheredTensors(inputs, self.rank, wanted, num_bytes=inputs.num_bytes)
        with self._starter.begin(signature, small, output_lengths=inputs.lengths) as operation:
            outputs = FusionBuffer(operation.outputs.shared)
            if operation.is_inline:
                outputs.write(0, operation.small_result(small)[root])
            else:
                self._backend.broadcast(operation, inputs, outputs, root)
        return operation.outputs.private

    def reduce_scatter(
        self,
        array: np.ndarray,
        lengths: Sequence[int],
        reduction: ReduceOp,
        signature: OpSignature,
    ) -> np.ndarray:
        """Reduces elementwise over the workers; each gets a part of the result.

        Args:
            array: shape (sum(lengths),), the same length everywhere.
            lengths: number of elements that each worker gets, in rank order.
            reduction: how.
            signature: of the operation.

        Returns:
            Shape (lengths[rank],).
        """
        inputs = FusionBuffer([array])
        [result] = self._pool.take(inputs.dtype, [lengths[self.rank]])
        self.counters.reduced += inputs.num_bytes
        self.counters.written += inputs.num_bytes + result.nbytes
        small = ReducedTensors(inputs, reduction)
        with self._starter.begin(signature, small) as operation:
            if operation.is_inline:
                start = sum(lengths[: self.rank])
                result[:] = operation.small_result(small)[start : start + len(result)]
                return result

            def consume(at: int, spans: list[np.ndarray]) -> None:
                target = result[at : at + len(spans[0])]
                reduce_into([span[: len(target)] for span in spans], reduction, target)

            parts = np.split(array, np.cumsum(lengths)[:-1])
            expected = [len(result)] * self.size
            self._backend.all_to_all(operation, parts, expected, max(lengths), consume)
        return result

    def all_to_all(
        self, parts: Sequence[np.ndarray], lengths: np.ndarray, signature: OpSignature
    ) -> np.ndarray:
        """Gives each worker a part of its own from each worker.

        Args:
            parts: this worker's part for each worker, one-dimensional, of one dtype.
            lengths: int, shape (size, size): entry [i, j] is the number of elements that worker i
                has for worker j; the same everywhere.
            signature: of the operation.

        Returns:
            The parts for this worker, concatenated in rank order.
        """
        inputs = FusionBuffer(parts)
        expected = lengths[:, self.rank].tolist()
        [joined] = self._pool.take(inputs.dtype, [sum(expected)])
        results = np.split(joined, np.cumsum(expected)[:-1])
        # The most that any worker has: all must decide alike whether it travels inline.
        wanted = lengths.sum(axis=1).tolist()
        small = GatheredTensors(
            inputs, self.rank, wanted, num_bytes=max(wanted) * inputs.dtype.itemsize
        )
        with self._starter.begin(signature, small) as operation:
            if operation.is_inline:
                starts = lengths[:, : self.rank].sum(axis=1).tolist()
                rows = operation.small_result(small)
                for result, row, start in zip(results, rows, starts, strict=True):
                    result[:] = row[start : start + len(result)]
                return joined

            def consume(at: int, spans: list[np.ndarray]) -> None:
                for result, span in zip(results, spans, strict=True):
                    target = result[at : at + len(span)]
                    target[:] = span[: len(target)]

            self._backend.all_to_all(operation, parts, expected, int(lengths.max()), consume)
        return joined

    def _is_posted(self, small: SmallTensors[Any]) -> bool:
        """Whether tensors are too large for messages, but not to be read by every worker."""
        posts = self._backend.posts
        if posts is None or self._starter.is_inline(small):
            return False
        return small.num_bytes <= posts.max_bytes

    @contextlib.contextmanager
    def _posted(
        self, inputs: FusionBuffer, signature: OpSignature, *, joinable: bool
    ) -> Iterator[list[np.ndarray]]:
        """The arrays of all workers, within; it takes one message from each."""
        posts = self._backend.posts
        assert posts is not None
        # What is gathered has the same size, whatever is posted.
        sized = SizedSignature.of(signature, inputs.num_bytes)
        # Before anything is written: a forked child has the slots of its parent.
        self._starter.raise_if_unusable()
        # See `OperationStarter.begin`; the scale is multiplied in where they are posted.
        with np.errstate(all="ignore"), posts.posted(inputs) as place:
            gathered = self._gather_places(place, sized, joinable=joinable)
            posts.check_memory(gathered, inputs)
            with self._starter.keeping_failures(), posts.read(gathered, inputs) as rows:
                yield rows

    def _gather_places(
        self, place: np.ndarray, signature: OpSignature, *, joinable: bool
    ) -> np.ndarray:
        """Where each worker has posted its arrays; zeros of those that have joined."""
        if not self._starter.is_direct:
            return self.all_gather(place, signature, joinable=joinable)
        told = self._starter.exchange(signature, place.tobytes(), joinable=joinable)
        nothing = bytes(place.nbytes)
        joined = b"".join([nothing if one is None else one for one in told])
        return np.frombuffer(joined, place.dtype).reshape(self.size, len(place))

    def _without(self, joined: Sequence[int]) -> Communicator:
        """The communicator of those that haven't joined, for what is too large for messages."""
        ranks = tuple(rank for rank in self.ranks if rank not in joined)
        with self._lock:  # Two of the same ranks would number their operations separately.
            if ranks not in self._remaining:
                purpose = f" of {self._key}"
                self._remaining[ranks] = Communicator(self._network, ranks, purpose)
            return self._remaining[ranks]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
