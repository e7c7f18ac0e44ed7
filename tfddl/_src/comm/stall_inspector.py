"""Finds ranks that are waited for: for process groups that don't know by themselves.

TensorFlow's collectives tell nobody who is missing, and of two levels neither knows all ranks. So a
rank that has waited for long writes what it waits in on a note of the rendezvous, and reads
theirs. While operations get on, nothing is written: the inspector reads the process'
`Instrumentation`.
"""

import atexit
import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable

from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.native import Timeouts, format_ranks
from tfddl._src.comm.native.deadlock import PROBE_AFTER_S, describe_deadlock
from tfddl._src.comm.native.thread_stacks import UNKNOWN_THREAD, find_user_line, is_sole_caller
from tfddl._src.rendezvous import Rendezvous
from tfddl.errors import PeerLostError, StalledError

_KEY = "tfddl/waits/{}"
_DEADLOCK = "tfddl/deadlock"
"""What rank 0 writes where all ranks wait for each other."""

COMPARING = "comparing the ranks before"
"""What the text of an operation begins with that compares ranks which are about to do different
things: it meets any other one, and says so."""

_LOOK_S = 1.0
_LOOKS = 10
"""How often to look, at least, within the time until something is done."""

_OTHERWISE_S = 60.0
"""Instead of that time, where only deadlocks are looked for."""

_TELL = 0.1
"""The part of that time after which a rank writes down that it waits. Early: whoever enters later
than others writes it later, and they would take it for missing."""

_LOG = logging.getLogger("tfddl")


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

    def __init__(
        self,
        notes: Rendezvous,
        timeouts: Timeouts,
        instrumentation: Instrumentation,
        abort: Callable[[str], None],
    ) -> None:
        """Begins to look; `close` ends it, and the end of the process.

        Args:
            notes: Where all ranks can read and write.
            timeouts: After how long to warn, and to end what waits.
            instrumentation: What this rank is in.
            abort: Ends what waits, with a text.
        """
        self._rank = notes.cluster.rank
        self._notes, self._timeouts = notes, timeouts
        self._instrumentation, self._abort = instrumentation, abort
        self._written = ""
        self._stop = threading.Event()
        times_s = [s for s in (timeouts.warn_s, timeouts.abort_s) if s > 0]
        self._thread = threading.Thread(
            target=self._look,
            args=(min(times_s, default=_OTHERWISE_S),),
            name="tfddl-stall-inspector",
            daemon=True,
        )
        self._thread.start()
        # The thread has to end before the interpreter frees what it calls.
        atexit.register(self.close)

    def close(self) -> None:
        """Stops inspecting."""
        self._stop.set()
        self._thread.join(timeout=5)
        atexit.unregister(self.close)

    def _look(self, first_s: float) -> None:
        seen, since_s, warned_s = (0, 0), time.monotonic(), 0.0
        while not self._stop.wait(min(_LOOK_S, first_s / _LOOKS)):
            now, now_s = self._instrumentation.counts_of_all_groups(), time.monotonic()
            begun, ended = now
            # Anything that begins or ends is progress: what is looked for is silence, however long
            # one operation takes by itself.
            if begun == ended or now != seen:
                seen, since_s, warned_s = now, now_s, 0.0
                if self._written:
                    self._write("")
                continue
            waited_s = now_s - since_s
            if waited_s >= min(PROBE_AFTER_S, _TELL * first_s) and not self._written:
                self._write(self._note(ended))
            text = self._find_deadlock(waited_s) if self._written else ""
            if self._timeouts.abort_s and waited_s >= self._timeouts.abort_s:
                text = text or self._describe(waited_s)
            if text:
                self._abort(text)
                return
            if self._timeouts.warn_s and waited_s >= warned_s + self._timeouts.warn_s:
                warned_s = waited_s
                _LOG.warning("%s; %s", self._describe(waited_s), self._timeouts.limit)

    def _note(self, ended: int) -> str:
        """What this rank writes, as text."""
        recorded = self._instrumentation
        mine = recorded.current_operation()
        is_everyones = len(mine.ranks) == self._notes.cluster.size
        # With operations of some ranks only, ranks don't count the same ones.
        is_certain = (
            is_everyones
            and not recorded.has_subgroups
            and not recorded.is_in_pipelines
            and is_sole_caller(UNKNOWN_THREAD)
        )
        return json.dumps([mine.text, find_user_line(UNKNOWN_THREAD), ended, is_certain])

    def _find_deadlock(self, waited_s: float) -> str:
        """What to tell where all ranks wait, and not for the same; otherwise ""."""
        if self._rank:
            return self._get(_DEADLOCK)
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
        deadlock_s = self._timeouts.deadlock_s
        if not is_certain and not 0 < deadlock_s <= waited_s:
            return ""
        places = {
            format_ranks(ranks): f"{text} ({line})" if (line := waiting[ranks[0]].line) else text
            for text, ranks in by_text.items()
        }
        found = describe_deadlock(places, waited_s=None if is_certain else waited_s)
        with contextlib.suppress(PeerLostError, StalledError):
            self._notes.put(_DEADLOCK, found)
        return found

    def _describe(self, waited_s: float) -> str:
        mine = self._instrumentation.current_operation()
        notes = {rank: self._read(rank) for rank in mine.ranks if rank != self._rank}
        others = {rank: "" if note is None else note.text for rank, note in notes.items()}
        missing = [rank for rank, text in others.items() if text != mine.text]
        said = f"rank {self._rank} has waited for {waited_s:.0f} s in {mine.text}: "
        if not missing:
            return f"{said}all its ranks wait in it, and what they send doesn't arrive"
        have = "has" if len(missing) == 1 else "have"
        return "; ".join(
            [
                f"{said}{format_ranks(missing)} {have}n't called it",
                *(f"rank {r} waits in {others[r]} itself" for r in missing if others[r]),
                "all ranks must call the same operations",
            ]
        )

    def _write(self, text: str) -> None:
        # The job is ending, or rank 0 is stopped: nobody will read it.
        with contextlib.suppress(PeerLostError, StalledError):
            self._notes.put(_KEY.format(self._rank), text)
        self._written = text

    def _read(self, rank: int) -> _Note | None:
        """What a rank waits in; None where it doesn't."""
        text = self._get(_KEY.format(rank))
        return _Note(*json.loads(text)) if text else None

    def _get(self, key: str) -> str:
        try:
            return self._notes.get(key)
        except (PeerLostError, StalledError):
            return ""
