"""An operation that all workers have come to, and the order of the large ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES, Message, OpSignature, Tag

_FIRST_STEP = 1


class Operation:
    """One operation that all workers have come to."""

    def __init__(
        self,
        call: OpSignature,
        tag: Tag,
        heard: Mapping[int, Message],
        exchange: Callable[[Tag, int, OpSignature], Mapping[int, Message]],
    ) -> None:
        """Begins, once all have said what they are about to do.

        Args:
            call: what it is.
            tag: what its messages belong to.
            heard: what each of the others has said.
            exchange: tells all others a number, and waits for theirs.
        """
        self.tag, self.call = tag, call
        # What is little has come along.
        self.is_inline = all(message.number <= MAX_PAYLOAD_BYTES for message in heard.values())
        self.results: list[np.ndarray] = []
        """Where the results are written that are alike everywhere."""
        self.given: list[np.ndarray] = []
        """The same results, for whoever has asked for them."""
        self._exchange, self._heard = exchange, heard
        self._step = _FIRST_STEP

    def step(self) -> None:
        """Returns once all workers have come here."""
        self.tell(0)

    def tell(self, number: int) -> dict[int, int]:
        """Tells all others a number, and returns theirs."""
        tag = self.tag._replace(step=self._step)
        self._step += 1
        return {rank: m.number for rank, m in self._exchange(tag, number, self.call).items()}

    def rows(self, mine: FusionBuffer, ranks: Sequence[int]) -> list[np.ndarray]:
        """What everyone has sent along, in the order of these ranks."""
        return [
            mine.take(0, mine.length)
            if rank not in self._heard
            else np.frombuffer(self._heard[rank].payload, mine.dtype)
            for rank in ranks
        ]


class Sequencer:
    """Lets one thread after the other in, in the order of their numbers."""

    def __init__(self) -> None:
        self._turn = 0
        self._changed = threading.Condition()

    @property
    def ended(self) -> int:
        """How many have been and gone."""
        return self._turn

    @contextlib.contextmanager
    def wait_for(self, turn: int, *, unless: Callable[[], bool]) -> Iterator[None]:
        """Waits for a turn, and ends it; doesn't wait any longer once `unless` holds."""
        with self._changed:
            self._changed.wait_for(lambda: unless() or self._turn == turn)
        try:
            yield
        finally:
            with self._changed:
                self._turn += 1
                self._changed.notify_all()

    def wake(self) -> None:
        """Lets those who wait see what has changed."""
        with self._changed:
            self._changed.notify_all()
