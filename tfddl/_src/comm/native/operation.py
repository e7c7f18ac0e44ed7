"""An operation that all workers have come to, and the order of those that move large arrays."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES, Message, OpSignature, Tag

_FIRST_STEP = 1


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
        outputs: memory for the results that are alike on all workers; empty where there are none.
        joined: who has joined (see `Communicator.join`), and so takes no part.
    """

    def __init__(
        self,
        signature: OpSignature,
        tag: Tag,
        received: Mapping[int, Message],
        exchange: Callable[[Tag, int, OpSignature], Mapping[int, Message]],
        joined: Sequence[int] = (),
    ) -> None:
        """Takes the first messages.

        Args:
            signature: what it is.
            tag: of the first messages.
            received: the first message of each other worker.
            exchange: sends a number to all others, and waits for theirs.
            joined: who has sent none, since it has joined.
        """
        self.signature = signature
        # Sizes were compared before: all workers decide alike.
        self.is_inline = all(m.value <= MAX_PAYLOAD_BYTES for m in received.values())
        self.outputs = OutputBuffers([], [])
        self.joined = joined
        self._tag, self._received, self._exchange = tag, received, exchange
        self._step = _FIRST_STEP

    def barrier(self) -> None:
        """Returns once all workers have called it as often as this one.

        What they wrote to shared memory before it can then be read here.
        """
        # Memory ordering: the kernel guards a socket's queue by a lock, which the sender releases
        # after its stores, and the receiver acquires before its loads. So no fence is needed, on
        # arm64 either.
        self.exchange(0)

    def exchange(self, value: int) -> dict[int, int]:
        """Sends a number of 64 bits to all others; returns theirs by rank. Also a barrier."""
        tag = self._tag._replace(step=self._step)
        self._step += 1
        received = self._exchange(tag, value, self.signature)
        return {rank: message.value for rank, message in received.items()}

    def inline_rows(self, inputs: FusionBuffer, ranks: Sequence[int]) -> list[np.ndarray]:
        """The tensors that came with the first messages, in the order of these ranks.

        Ranks that have joined have zeros.

        Args:
            inputs: those of this worker, which is one of the ranks.
            ranks: whose.
        """
        return [
            np.frombuffer(self._received[rank].payload, inputs.dtype)
            if rank in self._received
            else np.zeros(inputs.length, inputs.dtype)
            if rank in self.joined
            else inputs.read(0, inputs.length)
            for rank in ranks
        ]


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
