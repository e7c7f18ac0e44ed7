"""An operation that all workers have come to, and the order of those that move large arrays."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfddl._src.comm.native.first_messages import FirstMessages
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import LAST_FIRST_STEP, Group, Message, OpSignature, Tag
from tfddl._src.comm.native.small_tensors import Result, SmallTensors
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl._src.comm.native.tree_gather import NUM_STEPS, tree_gather

# A rank, and its number.
_VALUE = struct.Struct("<IQ")

# Those in between are the communicator's.
_FIRST_STEP = LAST_FIRST_STEP + 8


class OutputBuffers(NamedTuple):
    """Memory for the results of an operation: the same flat arrays, seen in two ways."""

    shared: list[np.ndarray]
    """Where backends write the results."""

    private: list[np.ndarray]
    """What the caller gets. Its writes to these arrays change no other worker's results."""


class OperationContext:
    """What a backend knows of one operation, after all workers have said that they begin it.

    Attributes:
        signature: what it is.
        is_inline: whether the tensors have travelled within the first messages.
        group: the workers.
        outputs: memory for the results that are alike on all workers; empty where there are none.
        joined: who has joined (see `Communicator.join`), and so takes no part.
    """

    def __init__(  # noqa: PLR0913 - all that is known of it
        self,
        signature: OpSignature,
        tag: Tag,
        first: FirstMessages,
        mesh: Mesh,
        group: Group,
        *,
        is_inline: bool,
        joined: Sequence[int] = (),
    ) -> None:
        """Takes the first messages.

        Args:
            signature: what it is.
            tag: of the first messages.
            first: these messages.
            mesh: connects the workers.
            group: the workers.
            is_inline: whether the messages have the tensors; the same on all workers.
            joined: who has sent none, since it has joined.
        """
        self.signature, self.group = signature, group
        self.is_inline = is_inline
        self.outputs = OutputBuffers([], [])
        self.joined = joined
        self._tag, self._first, self._mesh = tag, first, mesh
        self._ranks = sorted([mesh.rank, *group.others])
        self._step = _FIRST_STEP

    def barrier(self) -> None:
        """Returns once all workers have called it as often as this one.

        What they wrote to shared memory before it can then be read here.
        """
        # Memory ordering: the kernel guards a socket's queue by a lock, which the sender releases
        # after its stores, and the receiver acquires before its loads. So no fence is needed, on
        # arm64 either.
        nothing = Message(0, 0, b"")
        if len(self._ranks) <= MAX_DIRECT_SIZE:
            tag, others = self._next_tag(), self.group.others
            self._mesh.send(others, tag, nothing)
            self._mesh.collect(tag, others, self.signature, group=self.group)
        else:
            self._gather(b"", lambda one, _: one)

    def exchange(self, value: int) -> dict[int, int]:
        """Gives a number of 64 bits to all others; returns those of all by rank. Also a barrier."""
        gathered = self._gather(_VALUE.pack(self._mesh.rank, value), lambda one, more: one + more)
        return dict(_VALUE.iter_unpack(gathered))

    def _gather(self, own: bytes, merge: Callable[[bytes, bytes], bytes]) -> bytes:
        tag = self._next_tag()
        self._step += NUM_STEPS - 1
        return tree_gather(
            self._mesh, self._ranks, tag, own, merge, signature=self.signature, group=self.group
        )

    def small_result(self, small: SmallTensors[Result]) -> Result:
        """The result of tensors that came with the first messages; joined ranks have zeros."""
        if self._first.merged is not None:
            return small.of_merged(self._first.merged)
        inputs, received = small.inputs, self._first.received
        return small.of_rows(
            [
                np.frombuffer(received[rank].payload, inputs.dtype)
                if rank in received
                else np.zeros(inputs.length, inputs.dtype)
                if rank in self.joined
                else inputs.read(0, inputs.length)
                for rank in self._ranks
            ]
        )

    def _next_tag(self) -> Tag:
        step = self._step
        self._step += 1
        return self._tag._replace(step=step)


class Sequencer:
    """Lets threads proceed one after the other, in the order of their numbers."""

    def __init__(self) -> None:
        self._completed = 0
        self._changed = threading.Condition()

    @property
    def completed(self) -> int:
        """How many have proceeded and ended."""
        return self._completed

    @contextlib.contextmanager
    def turn(self, number: int, *, unless: Callable[[], bool]) -> Iterator[None]:
        """Waits until all lower numbers have ended; ends this one on exit.

        Args:
            number: from 0, without gaps.
            unless: ends the wait; asked whenever `wake` is called. The caller then raises.
        """
        with self._changed:
            self._changed.wait_for(lambda: unless() or self._completed == number)
        try:
            yield
        finally:
            with self._changed:
                self._completed += 1
                self._changed.notify_all()

    def wake(self) -> None:
        """Makes those that wait ask `unless` again."""
        with self._changed:
            self._changed.notify_all()
