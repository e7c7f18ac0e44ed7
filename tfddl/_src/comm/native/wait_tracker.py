"""What is done about waits that take long: reports to others, warnings, deadlocks, timeouts."""

from __future__ import annotations

import itertools
import logging
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from tfddl._src.comm.native import deadlock
from tfddl._src.comm.native.deadlock import DeadlockDetector, Waiter
from tfddl._src.comm.native.diagnostics import format_ranks
from tfddl._src.comm.native.messages import (
    DEADLOCK_FOUND,
    DEADLOCK_PROBE,
    LAST_FIRST_STEP,
    MAX_CONTROL_BYTES,
    STALL_REPORT,
    Group,
    Operation,
    OpSignature,
    Tag,
    Timeouts,
    pack_operations,
    unpack_operations,
)
from tfddl._src.comm.native.thread_stacks import find_user_line, is_sole_caller
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl._src.wait_timer import REPORT_PART, WaitTimer
from tfddl.errors import DeadlockError, StalledError

# Until then only the lowest rank of those that wait in an operation sends probes, which finds most
# deadlocks with few messages.
_ALL_PROBE_AFTER_S = 30.0

_MAX_PROBE_INTERVAL_S = 60.0

CONNECT_AFTER_S = 1.0
"""How long to wait for a message before connecting to whom it is from: mostly it has connected
itself; and where it has ended, nothing else tells."""

REACH_AFTER_S = 6.0
"""How long to wait for a message before looking whether a host answers that hasn't confirmed what
was sent to it: then no keepalive probe tells (tcp(7))."""

_MAX_REPORT_BYTES = MAX_CONTROL_BYTES

_REPORT_HEADER = struct.Struct("<I")

# Of many ranks, most don't know who else waits before they are told: they report sooner.
_REPORT_PART_OF_MANY = 0.5

_UNTIMED = Timeouts(warn_s=0.0, abort_s=0.0)

_LOG = logging.getLogger("tfddl")


class Wait:
    """A thread of this worker that waits for messages of others.

    Attributes:
        number: tells it from other waits of this worker.
        tag: of the messages.
        signature: of the operation that they belong to.
        group: whom the operation is of; None if of those whose messages are waited for.
        timer: since when.
        excuse: of other messages; whoever has sent one isn't waited for.
        missing: the peers whose messages haven't arrived.
        killed_s: after how many seconds a rank of the group was found to have ended without a word.
        check_s: after how many seconds to check it next, whatever arrives.
        probe_s: after how many seconds to send the next probe.
        is_in_cycle: whether this worker waits, by way of others, for itself.
        connect_s: after how many seconds to connect to those that it waits for.
        reach_s: after how many seconds to look whether their hosts answer.
        has_told: whether the others were told of it.
    """

    def __init__(  # noqa: PLR0913 - all that is known of it
        self,
        number: int,
        tag: Tag,
        signature: OpSignature,
        group: Group | None,
        timeouts: Timeouts,
        excuse: Tag | None,
    ) -> None:
        self.number, self.tag, self.signature = number, tag, signature
        self.group, self.excuse = group, excuse
        self.thread = threading.get_ident()
        is_of_many = group is not None and len(group.others) >= MAX_DIRECT_SIZE
        self.timer = WaitTimer(
            warn_s=timeouts.warn_s,
            abort_s=timeouts.abort_s,
            report_part=_REPORT_PART_OF_MANY if is_of_many else REPORT_PART,
        )
        self.missing: Sequence[int] = ()
        self.check_s = 0.0
        self.killed_s: float | None = None
        self.probe_s = deadlock.PROBE_AFTER_S
        self.is_in_cycle = False
        self.connect_s = CONNECT_AFTER_S
        self.reach_s = REACH_AFTER_S
        self.has_told = False


class WaitTracker:
    """Watches the waits of one worker. Threads call `check` for their own waits."""

    def __init__(
        self,
        rank: int,
        global_ranks: Sequence[int],
        timeouts: Timeouts,
        *,
        tell: Callable[[Iterable[int] | None, Tag, bytes], None],
        arrived: Callable[[Tag], Collection[int]],
    ) -> None:
        """Watches nothing yet.

        Args:
            rank: this worker's, as the mesh numbers them.
            global_ranks: the rank in the job of each worker, for messages.
            timeouts: when to do what.
            tell: sends a control message to some peers that this worker is connected to, or to all
                (None).
            arrived: the peers whose messages of a tag have arrived.
        """
        self._rank, self._global_ranks, self._timeouts = rank, tuple(global_ranks), timeouts
        self._tell, self._arrived = tell, arrived
        self._waits: dict[Tag, Wait] = {}
        self._numbers = itertools.count()
        # Whether threads have waited at the same time, or may.
        self._is_concurrent = False
        # Occurrence and step of what was sent last, by the hash of the operation's name.
        self._sent: dict[int, tuple[int, int]] = {}
        # What each peer waits in, as it has told last.
        self._reports: dict[int, str] = {}
        # Occurrence of what each peer has come to, by the hash of the operation's name.
        self._begun: dict[int, dict[int, int]] = {}
        # What each peer has told last that it has come to.
        self._told: dict[int, set[Operation]] = {}
        self._detector = DeadlockDetector(self._has_sent)

    def begin(
        self,
        tag: Tag,
        signature: OpSignature,
        group: Group | None = None,
        *,
        excuse: Tag | None = None,
        is_timed: bool = True,
    ) -> Wait:
        """The calling thread begins to wait; if it isn't timed, without warnings or a limit."""
        timeouts = self._timeouts if is_timed else _UNTIMED
        wait = Wait(next(self._numbers), tag, signature, group, timeouts, excuse)
        self._waits[tag] = wait
        self._is_concurrent |= len(self._waits) > 1
        return wait

    def end(self, wait: Wait) -> None:
        """The wait is over, or was given up."""
        del self._waits[wait.tag]

    def expect_concurrent_calls(self) -> None:
        """Never again assumes that a wait is the only thing this worker could be doing."""
        self._is_concurrent = True

    def note_sent(self, tag: Tag) -> None:
        """This worker sends what belongs to a tag."""
        self._sent[tag.name_hash] = max(self._sent.get(tag.name_hash, (0, -1)), tag[1:])

    def receive_report(self, peer: int, payload: bytes) -> None:
        """Keeps what a peer waits in."""
        [num_bytes] = _REPORT_HEADER.unpack_from(payload)
        stop = _REPORT_HEADER.size + num_bytes
        operations = unpack_operations(payload[_REPORT_HEADER.size : stop])
        self._begun.setdefault(peer, {}).update(operations)
        self._told[peer] = operations
        self._reports[peer] = payload[stop:].decode(errors="replace")

    def receive_probe(self, payload: bytes) -> None:
        """Keeps a deadlock probe until this worker waits."""
        self._detector.receive(payload)

    def check(self, wait: Wait) -> None:
        """Does what is due. The thread that waits calls it about once per second.

        Raises:
            DeadlockError: the wait can't end.
            StalledError: it has taken too long.
        """
        if wait.timer.should_report():
            self.report()
        else:
            self._answer(wait)
        # The oldest wait speaks for this worker where several threads wait: dicts keep the order of
        # insertion. The list is a copy, since other threads begin and end waits meanwhile.
        if wait is next(iter(list(self._waits.values()))):
            waited_s = wait.timer.elapsed_s
            if waited_s >= deadlock.PROBE_AFTER_S:
                self._detect_deadlock(wait, waited_s)
        if wait.timer.should_warn():
            _LOG.warning("%s; %s", self._describe(wait), self._limit(wait))
        if wait.timer.is_expired():
            raise StalledError(self._describe(wait))

    def report(self) -> None:
        """Tells all others in what this worker waits now."""
        waits = list(self._waits.values())
        for wait in waits:
            wait.has_told = True
        operations = pack_operations(wait.tag.operation for wait in waits)
        text = " and in ".join(dict.fromkeys(str(wait.signature) for wait in waits)).encode()
        header = _REPORT_HEADER.pack(len(operations))
        most = _MAX_REPORT_BYTES - len(header) - len(operations)
        self._tell(None, STALL_REPORT, header + operations + text[:most])

    def _answer(self, wait: Wait) -> None:
        """Tells those that wait in the same operation, and may take this worker for missing."""
        # In an operation of many, only a few get a message of this worker. Once, as they answer,
        # too.
        operation = wait.tag.operation
        if not wait.has_told and any(operation in known for known in list(self._told.values())):
            self.report()

    def _limit(self, wait: Wait) -> str:
        deadlock_s = self._timeouts.deadlock_s
        if wait.is_in_cycle and deadlock_s:
            return (
                "they wait for each other, and unless another thread calls it, "
                f"it ends with an error after {deadlock_s:g} s"
            )
        return self._timeouts.limit

    def _has_sent(self, tag: Tag) -> bool:
        """Whether this worker has sent what belongs to a tag; true where that isn't certain."""
        return self._sent.get(tag.name_hash, (0, -1)) >= tag[1:]

    def _detect_deadlock(self, wait: Wait, waited_s: float) -> None:
        """Sends probes to those that this worker waits for, and passes others' on; see `deadlock`.

        Raises:
            DeadlockError: it waits for itself, by way of others, and that can't end any more.
        """
        own = None
        if waited_s >= wait.probe_s:
            # Again after twice the time: what other threads do may have changed.
            wait.probe_s = waited_s + min(waited_s, _MAX_PROBE_INTERVAL_S)
            is_lowest = all(peer > self._rank for peer in self._arrived(wait.tag))
            if is_lowest or waited_s >= _ALL_PROBE_AFTER_S:
                own = self._waiter(wait)
                probe = self._detector.start_probe(own, wait.tag, wait.excuse)
                self._tell(wait.missing, DEADLOCK_PROBE, probe)
        if not self._detector.has_probes:
            return
        forwarded, cycle = self._detector.examine(own or self._waiter(wait), wait.tag, wait.excuse)
        for probe in forwarded:
            self._tell(wait.missing, DEADLOCK_PROBE, probe)
        if not cycle:
            return
        wait.is_in_cycle = True
        waits = deadlock.describe_waits(cycle)
        if all(waiter.is_sole_caller for waiter in cycle):
            text = deadlock.describe_deadlock(waits)
        elif 0 < self._timeouts.deadlock_s <= waited_s:
            text = deadlock.describe_deadlock(waits, waited_s=waited_s)
        else:
            return
        self._tell(None, DEADLOCK_FOUND, text.encode()[:MAX_CONTROL_BYTES])
        raise DeadlockError(text)

    def _waiter(self, wait: Wait) -> Waiter:
        """A wait of this worker, as others are told of it."""
        together = [self._rank, *self._arrived(wait.tag)]
        line = find_user_line(wait.thread)
        is_only_wait = len(self._waits) == 1 and not self._is_concurrent
        return Waiter(
            rank=self._rank,
            number=wait.number,
            who=self._names(together),
            text=f"{wait.signature} ({line})" if line else str(wait.signature),
            is_sole_caller=is_only_wait and is_sole_caller(wait.thread),
        )

    def _describe(self, wait: Wait) -> str:
        missing = self._missing(wait)
        reports = dict(self._reports)  # Copied: another thread may receive meanwhile.
        others = [
            f"rank {self._global_ranks[peer]} waits in {reports[peer]} itself"
            for peer in missing
            if reports.get(peer)
        ]
        have = "has" if len(missing) == 1 else "have"
        return "; ".join(
            [
                f"rank {self._global_ranks[self._rank]} has waited for "
                f"{wait.timer.elapsed_s:.0f} s in {wait.signature}: {self._names(missing)} "
                f"{have}n't called it",
                *others,
                "all ranks must call the same operations",
            ]
        )

    def _missing(self, wait: Wait) -> Sequence[int]:
        """Who hasn't come to the operation of a wait, as far as this worker knows."""
        if wait.group is None or wait.tag.step > LAST_FIRST_STEP:
            return wait.missing
        operation = wait.tag.operation
        begun = {peer for peer, known in list(self._begun.items()) if operation in known.items()}
        begun.update(self._arrived(wait.tag))
        if wait.excuse is not None:
            begun.update(self._arrived(wait.excuse))
        return [peer for peer in wait.group.others if peer not in begun] or wait.missing

    def _names(self, peers: Iterable[int]) -> str:
        return format_ranks([self._global_ranks[peer] for peer in peers])
