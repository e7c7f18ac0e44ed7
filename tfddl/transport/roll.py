"""What each rank waits in, where the others can read it: for transports that don't know.

TensorFlow's collectives tell nobody who is missing, and of two levels neither knows all ranks. So a
rank that has waited for long writes what it waits in on a note of the rendezvous, and reads
theirs. While operations get on, nothing is
written but one number of this process' own per operation.
"""

import atexit
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfddl.cluster.rendezvous import Rendezvous
from tfddl.errors import PeerLostError, StalledError
from tfddl.transport.base import Transport
from tfddl.transport.late_variable import counter
from tfddl.wire import Patience, rank_names

_KEY = "tfddl/waits/{}"
_LOOK_S = 1.0
_LOOKS = 10
"""How often to look, at least, within the time until something is done."""

_TELL = 0.1
"""The part of that time after which a rank writes down that it waits. Early: whoever comes later
than others writes it later, and they would think that it hasn't come."""

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True)
class _Operation:
    text: str
    ranks: tuple[int, ...]


class Roll:
    """Looks whether the operations of this rank get on, and says whom they wait for."""

    def __init__(self, notes: Rendezvous, patience: Patience) -> None:
        """Begins with nothing to look at.

        Args:
            notes: Where all ranks can read and write.
            patience: After how long to warn, and to end what waits.
        """
        self._rank, size = notes.cluster.rank, notes.cluster.size
        self._notes = notes
        self._patience = patience
        self._operations: list[_Operation] = []
        self._numbers: dict[_Operation, int] = {}
        self._first = _Operation("the first operation", tuple(range(size)))
        self._transports: list[Transport] = []
        self._eager: _Operation | None = None
        self._lock = threading.Lock()
        self.note_on("CPU:0")
        self._said = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def note_on(self, device: str) -> None:
        """Keeps the note of what this rank is in on a device, before anything was noted."""
        self._device = device
        self._current = counter("tfddl_waits", device)

    @contextlib.contextmanager
    def within(self, text: str, ranks: Sequence[int]) -> Iterator[list[tf.Tensor]]:
        """Around an operation: notes, when it runs, that this rank comes to it.

        Args:
            text: What it is, for people.
            ranks: Who takes part.

        Yields:
            What the operation has to wait for.
        """
        operation = _Operation(text, tuple(ranks))
        if not tf.executing_eagerly():
            yield [self._noted(operation)]
            return
        self._eager = operation
        try:
            yield []
        finally:
            self._eager = None

    def _noted(self, operation: _Operation) -> tf.Tensor:
        with self._lock:
            if operation not in self._numbers:
                self._numbers[operation] = len(self._operations)
                self._operations.append(operation)
        with tf.device(self._device):
            number = tf.constant(self._numbers[operation], tf.int64)
            return self._current.value.assign(number, read_value=False)

    def watch(self, transport: Transport) -> None:
        """Begins to look at a transport, too.

        Args:
            transport: What operations go through, between any ranks; it counts them.
        """
        self._transports.append(transport)
        times_s = [s for s in (self._patience.warn_s, self._patience.give_up_s) if s > 0]
        if self._thread is not None or not times_s:
            return
        self._thread = threading.Thread(
            target=self._look, args=(min(times_s),), name="tfddl-roll", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            atexit.unregister(self.close)

    def _look(self, first_s: float) -> None:
        seen, since_s, warned_s = [(0, 0)], time.monotonic(), 0.0
        while not self._stop.wait(min(_LOOK_S, first_s / _LOOKS)):
            now, now_s = (
                [transport.counts_of_all_sets() for transport in self._transports],
                time.monotonic(),
            )
            if all(begun == ended for begun, ended in now) or now != seen:
                seen, since_s, warned_s = now, now_s, 0.0
                if self._said:
                    self._write("")
                continue
            waited_s = now_s - since_s
            if waited_s >= _TELL * first_s and not self._said:
                self._write(self._operation.text)
            if self._patience.give_up_s and waited_s >= self._patience.give_up_s:
                text = self._describe(waited_s)
                for transport in self._transports:
                    transport.end(text)
                return
            if self._patience.warn_s and waited_s >= warned_s + self._patience.warn_s:
                warned_s = waited_s
                _LOG.warning("%s", self._describe(waited_s))

    @property
    def _operation(self) -> _Operation:
        eager = self._eager
        if eager is not None:
            return eager
        if not self._operations:
            return self._first
        return self._operations[self._current.number]

    def _describe(self, waited_s: float) -> str:
        mine = self._operation
        others = {rank: self._read(rank) for rank in mine.ranks if rank != self._rank}
        missing = [rank for rank, text in others.items() if text != mine.text]
        said = f"rank {self._rank} has waited for {waited_s:.0f} s in {mine.text}: "
        if not missing:
            return f"{said}all its ranks wait in it, and what they send doesn't arrive"
        have = "has" if len(missing) == 1 else "have"
        return "; ".join(
            [
                f"{said}{rank_names(missing)} {have}n't come to it",
                *(f"rank {r} waits in {others[r]} itself" for r in missing if others[r]),
                "all ranks must call the same operations",
            ]
        )

    def _write(self, text: str) -> None:
        # The job is ending, or rank 0 is stopped: nobody will read it.
        with contextlib.suppress(PeerLostError, StalledError):
            self._notes.put(_KEY.format(self._rank), text)
        self._said = text

    def _read(self, rank: int) -> str:
        try:
            return self._notes.get(_KEY.format(rank))
        except (PeerLostError, StalledError):
            return ""
