"""What each rank waits in, where the others can read it: for transports that don't know.

TensorFlow's collectives tell nobody who is missing, and of two levels neither knows all ranks. So a
rank that has waited for long writes what it waits in on a note of the rendezvous, and reads
theirs. While operations get on, nothing is
written but one number of this process' own per operation.
"""

import atexit
import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfddl._src.comm.lazy_variable import counter
from tfddl._src.comm.native import Timeouts, format_ranks
from tfddl._src.comm.native.deadlock import PROBE_AFTER_S, describe_deadlock
from tfddl._src.comm.native.thread_stacks import (
    UNKNOWN_THREAD,
    find_user_line,
    is_in_pipeline,
    is_sole_caller,
)
from tfddl._src.comm.process_group import ProcessGroup
from tfddl._src.rendezvous import Rendezvous
from tfddl.errors import PeerLostError, StalledError

_KEY = "tfddl/waits/{}"
_CIRCLE = "tfddl/circle"
"""What rank 0 writes where all ranks wait for each other."""

COMPARING = "comparing the ranks before"
"""What the text of an operation begins with that compares ranks which are about to do different
things: it meets any other one, and says so."""

_LOOK_S = 1.0
_LOOKS = 10
"""How often to look, at least, within the time until something is done."""

_OTHERWISE_S = 60.0
"""Instead of that time, where nothing is to be done but to find circles."""

_TELL = 0.1
"""The part of that time after which a rank writes down that it waits. Early: whoever comes later
than others writes it later, and they would think that it hasn't come."""

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True)
class _Operation:
    text: str
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Note:
    """What a rank writes of its wait."""

    text: str
    """In what it waits."""

    line: str
    """And where, in its program."""

    ended: int
    """How many operations have ended there before."""

    is_sole_caller: bool
    """Whether no other thread of it could begin one meanwhile, and none are of some ranks only."""


class StallInspector:
    """Looks whether the operations of this rank get on, and says whom they wait for."""

    def __init__(self, notes: Rendezvous, patience: Timeouts) -> None:
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
        self._transports: list[ProcessGroup] = []
        self._eager: _Operation | None = None
        self._lock = threading.Lock()
        self.note_on("CPU:0")
        self._is_in_pipelines = False
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
        self._is_in_pipelines |= is_in_pipeline()
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

    def watch(self, transport: ProcessGroup) -> None:
        """Begins to look at a transport, too.

        Args:
            transport: What operations go through, between any ranks; it counts them.
        """
        self._transports.append(transport)
        if self._thread is not None:
            return
        times_s = [s for s in (self._patience.warn_s, self._patience.abort_s) if s > 0]
        self._thread = threading.Thread(
            target=self._look,
            args=(min(times_s, default=_OTHERWISE_S),),
            name="tfddl-roll",
            daemon=True,
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
            if waited_s >= min(PROBE_AFTER_S, _TELL * first_s) and not self._said:
                self._write(self._note(sum(ended for _, ended in now)))
            text = self._find_circle(waited_s) if self._said else ""
            if self._patience.abort_s and waited_s >= self._patience.abort_s:
                text = text or self._describe(waited_s)
            if text:
                for transport in self._transports:
                    transport.end(text)
                return
            if self._patience.warn_s and waited_s >= warned_s + self._patience.warn_s:
                warned_s = waited_s
                _LOG.warning("%s; %s", self._describe(waited_s), self._patience.limit)

    @property
    def _operation(self) -> _Operation:
        eager = self._eager
        if eager is not None:
            return eager
        if not self._operations:
            return self._first
        return self._operations[self._current.number]

    def _note(self, ended: int) -> str:
        """What this rank writes, as text."""
        mine = self._operation
        everyone = tuple(range(self._notes.cluster.size))
        # With sets of ranks, and on two levels, ranks don't count the same operations.
        counts_alike = len(self._transports) == 1 and not self._transports[0].has_sets
        certain = counts_alike and mine.ranks == everyone and not self._is_in_pipelines
        certain = certain and is_sole_caller(UNKNOWN_THREAD)
        return json.dumps([mine.text, find_user_line(UNKNOWN_THREAD), ended, certain])

    def _find_circle(self, waited_s: float) -> str:
        """What to tell where all ranks wait, and not for the same; otherwise ""."""
        if self._rank:
            return self._get(_CIRCLE)
        notes = {rank: self._read(rank) for rank in range(self._notes.cluster.size)}
        waiting = {rank: note for rank, note in notes.items() if note is not None}
        by_text: dict[str, list[int]] = {}
        for rank, note in waiting.items():
            by_text.setdefault(note.text, []).append(rank)
        if len(waiting) < len(notes) or len(by_text) == 1:
            return ""
        # Where as many have ended, nobody has left what another one is still in.
        is_certain = (
            all(note.is_sole_caller for note in waiting.values())
            and len({note.ended for note in waiting.values()}) == 1
            and not all(text.startswith(COMPARING) for text in by_text)
        )
        deadlock_s = self._patience.deadlock_s
        if not is_certain and not 0 < deadlock_s <= waited_s:
            return ""
        places = {
            format_ranks(ranks): f"{text} ({line})" if (line := waiting[ranks[0]].line) else text
            for text, ranks in by_text.items()
        }
        found = describe_deadlock(places, waited_s=None if is_certain else waited_s)
        with contextlib.suppress(PeerLostError, StalledError):
            self._notes.put(_CIRCLE, found)
        return found

    def _describe(self, waited_s: float) -> str:
        mine = self._operation
        notes = {rank: self._read(rank) for rank in mine.ranks if rank != self._rank}
        others = {rank: "" if note is None else note.text for rank, note in notes.items()}
        missing = [rank for rank, text in others.items() if text != mine.text]
        said = f"rank {self._rank} has waited for {waited_s:.0f} s in {mine.text}: "
        if not missing:
            return f"{said}all its ranks wait in it, and what they send doesn't arrive"
        have = "has" if len(missing) == 1 else "have"
        return "; ".join(
            [
                f"{said}{format_ranks(missing)} {have}n't come to it",
                *(f"rank {r} waits in {others[r]} itself" for r in missing if others[r]),
                "all ranks must call the same operations",
            ]
        )

    def _write(self, text: str) -> None:
        # The job is ending, or rank 0 is stopped: nobody will read it.
        with contextlib.suppress(PeerLostError, StalledError):
            self._notes.put(_KEY.format(self._rank), text)
        self._said = text

    def _read(self, rank: int) -> _Note | None:
        """What a rank waits in; None where it doesn't."""
        text = self._get(_KEY.format(rank))
        return _Note(*json.loads(text)) if text else None

    def _get(self, key: str) -> str:
        try:
            return self._notes.get(key)
        except (PeerLostError, StalledError):
            return ""
