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
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.buffer_pool import BufferPool, aligned_size
from tfddl._src.comm.native.diagnostics import describe_difference, describe_joined
from tfddl._src.comm.native.first_messages import Contribution, FirstExchange, FirstMessages
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.join import JoinResult, JoinState
from tfddl._src.comm.native.messages import (
    LAST_FIRST_STEP,
    MAX_PAYLOAD_BYTES,
    Group,
    Message,
    Operation,
    OpSignature,
    Tag,
    stable_hash,
)
from tfddl._src.comm.native.operation import OperationContext, OutputBuffers, Sequencer
from tfddl._src.comm.native.posted_arrays import SizedSignature
from tfddl._src.comm.native.reductions import ReduceOp, reduce, reduce_into
from tfddl._src.comm.native.small_tensors import (
    GatheredTensors,
    ReducedTensors,
    SmallTensors,
)
from tfddl._src.comm.native.tree import Tree
from tfddl.errors import (
    CommunicationError,
    DeadlockError,
    DisagreementError,
    PeerLostError,
    StalledError,
)

# Steps count up in the order in which they are sent: those of `FirstExchange`, these, and then
# those of `OperationContext`.
_FIRST = 0
_DIFFERENCE, _SEQUENCE = LAST_FIRST_STEP + 1, LAST_FIRST_STEP + 2


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
        self._mesh = mesh
        self._network = network
        self._backend = network.make_backend(self.ranks, purpose)
        self.counters = self._backend.counters
        self._others = [rank for rank in self.ranks if rank != mesh.rank]
        self._key = ",".join(map(str, self.ranks)) + purpose
        self._group = Group(stable_hash(self._key), tuple(self._others))
        self._first = FirstExchange(mesh, self.rank, self._group)
        self._joins = JoinState(mesh, self.ranks, self._key)
        self._remaining: dict[tuple[int, ...], Communicator] = {}
        self._occurrences: dict[str, int] = {}
        # In whose first messages threads of this worker are.
        self._active: set[Operation] = set()
        self._lock = threading.Lock()
        self._sequencer = Sequencer()
        self._next_number = 0
        self._pool = BufferPool()
        self._failure: BaseException | None = None

    def join(self, signature: OpSignature) -> JoinResult:
        """Takes part in nothing more until all workers have joined, for which it waits.

        In reductions of the others this worker counts as zeros; their other operations raise
        `DisagreementError`. They notice if it is lost meanwhile.

        Args:
            signature: of the call, for messages.

        Returns:
            The last one is an index among these workers.
        """
        self._raise_if_unusable()
        with self._lock:
            known = dict(self._occurrences)
        with self._keeping_failures():
            joined = self._joins.join(
                sum(known.values()), signature, active=self._active, lock=self._lock
            )
        # What others sent before they knew that this worker has joined.
        for name, number in known.items():
            while self._discard(self._tag(name, number, self._joins.rounds - 1)):
                number += 1
        with self._lock:
            self._occurrences.clear()
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
        inputs = FusionBuffer(arrays, scale=scale)
        self.counters.reduced += inputs.num_bytes
        small = ReducedTensors(inputs, reduction)
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
        with self._begin(
            signature, small, output_lengths=inputs.lengths, joinable=True
        ) as operation:
            outputs = FusionBuffer(operation.outputs.shared)
            if operation.is_inline:
                outputs.write(0, operation.small_result(small))
                self.counters.written += inputs.num_bytes
            elif operation.joined:
                rest = self._without(operation.joined)
                total = FusionBuffer(rest.all_reduce(arrays, reduction, signature, scale=scale))
                zeros = np.zeros(inputs.length, inputs.dtype)
                outputs.write(0, reduce([total.read(0, total.length), zeros], reduction))
            else:
                self._backend.all_reduce(operation, inputs, outputs, reduction)
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
        with self._begin(signature, small, output_lengths=lengths, joinable=joinable) as operation:
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
        with self._begin(signature, small, output_lengths=inputs.lengths) as operation:
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
        with self._begin(signature, small) as operation:
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
        with self._begin(signature, small) as operation:
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

    def _is_inline(self, small: SmallTensors[Any]) -> bool:
        """Whether tensors travel within messages; the same on all workers."""
        most_bytes = small.num_bytes if self._first.is_direct else small.most_bytes
        return self.size == 1 or most_bytes <= MAX_PAYLOAD_BYTES

    def _is_posted(self, small: SmallTensors[Any]) -> bool:
        """Whether tensors are too large for messages, but not to be read by every worker."""
        posts = self._backend.posts
        if posts is None or self._is_inline(small):
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
        self._raise_if_unusable()
        # See `_begin`; the scale is multiplied in where they are posted.
        with np.errstate(all="ignore"), posts.posted(inputs) as place:
            gathered = self.all_gather(place, sized, joinable=joinable)
            posts.check_memory(gathered, inputs)
            with self._keeping_failures(), posts.read(gathered, inputs) as rows:
                yield rows

    @contextlib.contextmanager
    def _begin(
        self,
        signature: OpSignature,
        small: SmallTensors[Any],
        *,
        output_lengths: Sequence[int] = (),
        joinable: bool = False,
    ) -> Iterator[OperationContext]:
        """Exchanges the first messages, and compares; a large operation then waits for its turn.

        Args:
            signature: has to be alike everywhere.
            small: sent along if they are small.
            output_lengths: of the results that are alike everywhere.
            joinable: whether it goes on without workers that have joined; others raise.
        """
        self._raise_if_unusable()
        # np.errstate: a script may have made NumPy's warnings (overflow, NaN) errors. One would
        # end this worker in the middle of an operation, and leave the others waiting.
        with (
            self._keeping_failures(),
            np.errstate(all="ignore"),
            self._exchange_first(signature, small, output_lengths, joinable) as operation,
        ):
            yield operation

    @contextlib.contextmanager
    def _keeping_failures(self) -> Iterator[None]:
        """What fails within has failed in the middle: nothing after it can work."""
        try:
            yield
        except DisagreementError:
            # All workers raise it, after the same messages and before anything large is moved: none
            # is ahead, so that the next operation works.
            raise
        except BaseException as error:
            self._failure = error
            self._sequencer.wake()
            self._backend.abandon()
            raise

    def _raise_if_unusable(self) -> None:
        """Raises where no operation can begin any more."""
        self._mesh.raise_if_aborted()
        self._raise_after_failure()

    @contextlib.contextmanager
    def _exchange_first(
        self,
        signature: OpSignature,
        small: SmallTensors[Any],
        output_lengths: Sequence[int],
        joinable: bool,
    ) -> Iterator[OperationContext]:
        # What is compared travels with small tensors: for these the latency of messages is all that
        # counts.
        is_inline = self._is_inline(small)
        if is_inline:
            own = Contribution(signature, small.num_bytes, small.row, small.start, small.merge)
        else:
            offer = self._backend.offer_free(self._sequencer.completed)
            merge = self._backend.merge_offers
            own = Contribution(signature, small.num_bytes, lambda: offer, lambda: offer, merge)
        tag = self._begin_first(signature.name)
        try:
            first = self._first.exchange(tag, self._joins.tag, own)
        finally:
            self._active.discard(tag.operation)
        joined = self._compare(tag, own, first, joinable=joinable)
        operation = OperationContext(
            signature, tag, first, self._mesh, self._group, is_inline=is_inline, joined=joined
        )
        if is_inline or joined:
            arrays = [np.empty(length, small.inputs.dtype) for length in output_lengths]
            operation.outputs = OutputBuffers(arrays, arrays)
            yield operation
            return
        if first.merged is None:
            offers = [offer, *(message.payload for message in first.received.values())]
        else:
            offers = [first.merged]
        size = aligned_size(small.inputs.dtype, output_lengths)
        number, assigned = self._number_of(tag, signature, size, offers)
        with self._sequencer.turn(number, unless=lambda: self._failure is not None):
            self._raise_after_failure()
            if output_lengths:
                operation.outputs = self._backend.map_outputs(
                    assigned, small.inputs.dtype, output_lengths
                )
            yield operation

    def _compare(
        self, tag: Tag, own: Contribution, first: FirstMessages, *, joinable: bool
    ) -> list[int]:
        """Raises where workers differ; returns who has joined."""
        if first.merged is not None:
            return []
        signature, others = own.signature, list(first.received.values())
        if any(m.digest != signature.digest or m.value != own.value for m in others):
            # All workers have all first messages: where one sees a difference, all do.
            # Sizes are shown only where signatures are alike, and so don't explain the difference.
            is_same = all(m.digest == signature.digest for m in others)
            peers = [rank for rank in self._others if rank in first.received]
            self._raise_difference(tag, signature, own.value if is_same else None, peers)
        joined = [rank for rank in self._others if rank not in first.received]
        if joined and not joinable:
            ranks = [self._mesh.global_ranks[rank] for rank in joined]
            raise DisagreementError(describe_joined(str(signature), ranks))
        return joined

    def _raise_after_failure(self) -> None:
        """Once an operation has failed in the middle, nobody knows how far the others have come."""
        failure = self._failure
        if failure is None:
            return
        known = (PeerLostError, DeadlockError, StalledError)
        kind = next((kind for kind in known if isinstance(failure, kind)), CommunicationError)
        raise kind(
            "these workers can't go on together, since an operation before has failed in the "
            f"middle: {str(failure) or type(failure).__name__}"
        )

    def _begin_first(self, name: str) -> Tag:
        """The tag of a new operation, in whose first messages this worker is even if it joins."""
        with self._lock:
            occurrence = self._occurrences.get(name, 0)
            self._occurrences[name] = occurrence + 1
            tag = self._tag(name, occurrence, self._joins.rounds)
            self._active.add(tag.operation)
        return tag

    def _discard(self, tag: Tag) -> bool:
        """Forgets all first messages of an operation. Returns whether there were any."""
        found = [self._mesh.discard(tag._replace(step=s)) for s in range(LAST_FIRST_STEP + 1)]
        return any(found)

    def _tag(self, name: str, occurrence: int, rounds: int) -> Tag:
        # The ranks are part of the hash: communicators of one network share its mailbox. Numbers
        # wrap at 32 bits, when nothing of so old an operation is under way any more.
        return Tag(stable_hash(f"{self._key}/{rounds} {name}"), occurrence % 2**32, _FIRST)

    def _without(self, joined: Sequence[int]) -> Communicator:
        """The communicator of those that haven't joined, for what is too large for messages."""
        ranks = tuple(rank for rank in self.ranks if rank not in joined)
        with self._lock:  # Two of the same ranks would number their operations separately.
            if ranks not in self._remaining:
                purpose = f" of {self._key}"
                self._remaining[ranks] = Communicator(self._network, ranks, purpose)
            return self._remaining[ranks]

    def _number_of(
        self, tag: Tag, signature: OpSignature, num_bytes: int, offers: Sequence[bytes]
    ) -> tuple[int, bytes]:
        """The number of a large operation, which the first of the workers chooses.

        Large operations come one after the other, in this order on all workers; otherwise threads
        could be in different ones on different workers, and wait for each other.

        Args:
            tag: of the operation.
            signature: of the operation.
            num_bytes: of its output memory.
            offers: what `Backend.offer_free` has returned on each worker, or merged.

        Returns:
            The number, and the argument of `Backend.map_outputs`.
        """
        tag = tag._replace(step=_SEQUENCE)
        place = Tree.of(self.rank, self.size)
        if place.parent is None:
            # One lock for number and memory: memory is assigned in the order of the numbers.
            with self._lock:
                number = self._next_number
                self._next_number += 1
                assigned = b""
                if num_bytes:
                    assigned = self._backend.assign_outputs(num_bytes, number, offers)
            message = Message(0, number, assigned)
        else:
            [message] = self._mesh.collect(
                tag, [self.ranks[place.parent]], signature, group=self._group
            ).values()
        self._mesh.send([self.ranks[child] for child in place.children], tag, message)
        return message.value, message.payload

    def _raise_difference(
        self, tag: Tag, signature: OpSignature, num_bytes: int | None, peers: Sequence[int]
    ) -> NoReturn:
        """Exchanges what each worker is about to do; all of them have noticed a difference."""
        tag = tag._replace(step=_DIFFERENCE)
        text = signature.text if num_bytes is None else f"{signature.text}\n{num_bytes} bytes"
        own = Message(0, 0, text.encode()[:MAX_PAYLOAD_BYTES])
        self._mesh.send(peers, tag, own)
        received = self._mesh.collect(tag, peers, signature, group=self._group)
        messages = {**received, self._mesh.rank: own}
        raise DisagreementError(
            describe_difference(
                {
                    self._mesh.global_ranks[rank]: messages[rank].payload.decode(errors="replace")
                    for rank in sorted(messages)
                }
            )
        )
