"""What begins each operation: all workers say what they are about to do, and compare.

Small tensors travel along (see `first_messages`). Operations on large ones come one after the other
then, in an order that the first of the workers chooses.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from tfddl._src.comm.native.backend import Backend
from tfddl._src.comm.native.buffer_pool import aligned_size
from tfddl._src.comm.native.diagnostics import describe_difference, describe_joined
from tfddl._src.comm.native.differences import (
    merge_differences,
    pack_difference,
    unpack_differences,
)
from tfddl._src.comm.native.first_messages import Contribution, FirstExchange, FirstMessages
from tfddl._src.comm.native.join import JoinResult, JoinState
from tfddl._src.comm.native.mesh import Mesh
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
from tfddl._src.comm.native.small_tensors import SmallTensors
from tfddl._src.comm.native.tree import Tree
from tfddl._src.comm.native.tree_gather import NUM_STEPS, tree_gather
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
_DIFFERENCE, _SEQUENCE = LAST_FIRST_STEP + 1, LAST_FIRST_STEP + 1 + NUM_STEPS


class OperationStarter:
    """Begins the operations of some workers; several threads may do so at once."""

    def __init__(self, mesh: Mesh, backend: Backend, ranks: Sequence[int], key: str) -> None:
        """Sends nothing yet.

        Args:
            mesh: connects the workers.
            backend: moves large arrays between them.
            ranks: who takes part, as the mesh numbers them, ascending, this worker among them.
            key: of them and their purpose, the same on all of them.
        """
        self._mesh, self._backend, self._ranks, self._key = mesh, backend, tuple(ranks), key
        self._rank = self._ranks.index(mesh.rank)
        self._others = [rank for rank in ranks if rank != mesh.rank]
        self._group = Group(stable_hash(key), tuple(self._others))
        self._first = FirstExchange(mesh, self._rank, self._group)
        self._joins = JoinState(mesh, ranks, key)
        self._occurrences: dict[str, int] = {}
        # In whose first messages threads of this worker are.
        self._active: set[Operation] = set()
        self._lock = threading.Lock()
        self._sequencer = Sequencer()
        self._next_number = 0
        self._failure: BaseException | None = None

    def join(self, signature: OpSignature) -> JoinResult:
        """Takes part in nothing more until all workers have joined; see `Communicator.join`.

        Args:
            signature: of the call, for messages.

        Returns:
            The last one is a rank, as the mesh numbers them.
        """
        self.raise_if_unusable()
        with self._lock:
            known = dict(self._occurrences)
        with self.keeping_failures():
            joined = self._joins.join(
                sum(known.values()), signature, active=self._active, lock=self._lock
            )
        # What others sent before they knew that this worker has joined.
        for name, number in known.items():
            while self._discard(self._tag(name, number, self._joins.rounds - 1)):
                number += 1
        with self._lock:
            self._occurrences.clear()
        return joined

    def is_inline(self, small: SmallTensors[Any]) -> bool:
        """Whether tensors travel within messages; the same on all workers."""
        most_bytes = small.num_bytes if self._first.is_direct else small.most_bytes
        return len(self._ranks) == 1 or most_bytes <= MAX_PAYLOAD_BYTES

    @contextlib.contextmanager
    def begin(
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
        self.raise_if_unusable()
        # np.errstate: a script may have made NumPy's warnings (overflow, NaN) errors. One would
        # end this worker in the middle of an operation, and leave the others waiting.
        with (
            self.keeping_failures(),
            np.errstate(all="ignore"),
            self._exchange_first(signature, small, output_lengths, joinable) as operation,
        ):
            yield operation

    def exchange(
        self, signature: OpSignature, payload: bytes, *, joinable: bool
    ) -> list[bytes | None]:
        """What each worker tells all others; one message of each, and no tensors.

        As `begin`, of which it is the part that small steps need, where `is_direct`.

        Args:
            signature: has to be alike everywhere.
            payload: what this worker tells, of the same length everywhere.
            joinable: whether it goes on without workers that have joined; others raise.

        Returns:
            What each has told, in rank order; None of those that have joined.
        """
        own = Contribution(
            signature, len(payload), lambda: payload, lambda: payload, lambda first, _: first
        )
        tag = self._begin_first(signature.name)
        try:
            first = self._first.exchange(tag, self._joins.tag, own)
            self._compare(tag, own, first, joinable=joinable)
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._active.discard(tag.operation)
        received = first.received
        told = [received[rank].payload if rank in received else None for rank in self._ranks]
        told[self._rank] = payload
        return told

    @property
    def is_direct(self) -> bool:
        """Whether each worker tells each other one; the same on all workers."""
        return self._first.is_direct

    @contextlib.contextmanager
    def keeping_failures(self) -> Iterator[None]:
        """What fails within has failed in the middle: nothing after it can work."""
        try:
            yield
        except BaseException as error:
            self._note_failure(error)
            raise

    def _note_failure(self, error: BaseException) -> None:
        # All workers raise a DisagreementError after the same messages and before anything large is
        # moved: none is ahead, so that the next operation works.
        if not isinstance(error, DisagreementError):
            self._failure = error
            self._sequencer.wake()
            self._backend.abandon()

    def raise_if_unusable(self) -> None:
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
        is_inline = self.is_inline(small)
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
        signature = own.signature
        if first.is_different:
            self._raise_difference(tag, own, self._ranks)
        if any(
            message.digest != signature.digest or message.value != own.value
            for message in first.received.values()
        ):
            # All workers have all first messages: where one sees a difference, all do.
            self._raise_difference(tag, own, sorted([self._mesh.rank, *first.received]))
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
        return Tag(_name_hash(self._key, rounds, name), occurrence % 2**32, _FIRST)

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
        place = Tree.of(self._rank, len(self._ranks))
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
                tag, [self._ranks[place.parent]], signature, group=self._group
            ).values()
        self._mesh.send([self._ranks[child] for child in place.children], tag, message)
        return message.value, message.payload

    def _raise_difference(self, tag: Tag, own: Contribution, ranks: Sequence[int]) -> NoReturn:
        """Exchanges what each worker is about to do; all of these have noticed a difference."""
        gathered = tree_gather(
            self._mesh,
            ranks,
            tag._replace(step=_DIFFERENCE),
            pack_difference(own.signature.text, own.value, self._mesh.rank),
            merge_differences,
            signature=own.signature,
            group=self._group,
        )
        texts = unpack_differences(gathered)
        raise DisagreementError(
            describe_difference({self._mesh.global_ranks[rank]: texts[rank] for rank in ranks})
        )


@functools.lru_cache(maxsize=1024)
def _name_hash(key: str, rounds: int, name: str) -> int:
    """Which operations belong together: those of some workers, by their names."""
    return stable_hash(f"{key}/{rounds} {name}")
