"""Runs the workers of a job: passes on their output, and ends all of them when one fails."""

from __future__ import annotations

import math
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl._src.cgroups import LimitMonitor
from tfddl._src.launcher.agent import BEAT_S
from tfddl._src.launcher.display import Display
from tfddl._src.launcher.fleet import Fleet
from tfddl._src.launcher.handle import Handle, Output
from tfddl._src.launcher.keeping import Keeper
from tfddl._src.launcher.link import Link
from tfddl._src.launcher.oom import count_oom_kills
from tfddl._src.launcher.output import Console, Outlet
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.report import Outcome, WorkerExit
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.stalls import StallWatch
from tfddl._src.launcher.worker import Stream, Worker, adopt_orphans, kill_orphans

# The end of those whose peer is dead is to be quick: TensorFlow's processes don't end at a SIGTERM,
# however long one waits.
_SHORT_GRACE_S = 1.0
# What a worker gets to write its threads' stacks.
_STACKS_S = 1.0


@dataclass(frozen=True)
class Care:
    """How workers are looked after.

    Attributes:
        grace_s: seconds that workers which can save get for it, from SIGTERM to SIGKILL; and all of
            them at Ctrl-C.
        stall_timeout_s: seconds without progress after which one is killed; 0 is never.
        logs: a folder for the whole output of each worker, rank.N/stdout and rank.N/stderr.
        appends_logs: whether to what is there.
        num_workers: of the whole job, where others look after some; None for those given.
        fleet: the hosts that they run on; None for this machine.
        keeper: takes what workers on these have committed, where the job has failed; None where
            it doesn't start again.
    """

    grace_s: float
    stall_timeout_s: float = 0.0
    logs: Path | None = None
    appends_logs: bool = False
    num_workers: int | None = None
    fleet: Fleet | None = None
    keeper: Keeper | None = None


def supervise(
    plans: Sequence[ProcessPlan], *, console: Console, signals: Signals, care: Care
) -> Outcome:
    """Runs a job to its end.

    Every worker is a session of its own, so that Ctrl-C reaches only us. The first that fails
    ends the others: SIGTERM to each one's process group, soon after SIGKILL. So does one that gets
    no further, see `StallWatch`. SIGTERM to us goes on to those workers that can save, and they
    get the time for it; SIGINT goes on to all, as a terminal would send it, who get the same time.
    Whatever the workers leave behind is killed at the end, daemons included, so the calling process
    must have no other children and no threads. A worker dies with the caller, even by SIGKILL; what
    it has started itself is left to whoever adopts the caller's children, see `guard`.

    Args:
        plans: the workers.
        console: takes their output.
        signals: SIGINT, SIGTERM and SIGHUP end the job; a second one without any grace, and so
            does SIGKILL.
        care: how the workers are looked after.

    Raises:
        LaunchError: the command can't be started, or a log can't be written.
    """
    num_workers = care.num_workers or len(plans)
    job = _Job(
        console=console, signals=signals, care=care, has_all_workers=num_workers == len(plans)
    )
    oom_kills, limits = count_oom_kills(), LimitMonitor()
    adopt_orphans()
    try:
        for plan in plans:
            folder = None
            if care.logs is not None:
                folder = log_folder(care.logs, rank=plan.rank, size=num_workers)
            job.start(plan, log_folder=folder)
        while job.workers:
            job.turn()
        job.keep_commit()
    finally:
        job.kill_all()
    return job.outcome(num_oom_kills=count_oom_kills() - oom_kills, limits=limits.reached())


def log_folder(logs: Path, *, rank: int, size: int) -> Path:
    """The folder of one worker's logs, its number padded so that names sort by rank."""
    return logs / f"rank.{rank:0{len(str(size - 1))}d}"


class _Job:
    """The workers that are left, those that have ended, and the state of the ending."""

    def __init__(
        self, *, console: Console, signals: Signals, care: Care, has_all_workers: bool
    ) -> None:
        self.workers: list[Handle] = []
        self._ended: list[Handle] = []
        self._root: Handle | None = None
        self._failed_s = math.inf
        self._interrupted_by: signal.Signals | None = None
        # None: nobody has been asked to end. inf: everybody has been killed.
        self._kill_at_s: float | None = None
        # When to say that workers still have the time to end after a Ctrl-C.
        self._say_at_s = math.inf
        self._console, self._signals, self._care = console, signals, care
        self._stalls = StallWatch(care.stall_timeout_s, has_all_workers=has_all_workers)
        self._look_at_s = 0.0
        # When those that have stalled have had the time to write their stacks.
        self._stacks_until_s: float | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)
        self._fleet = care.fleet
        if self._fleet is not None:
            console.while_waiting = self._fleet.beat
            for link in self._fleet.links:
                self._selector.register(link, selectors.EVENT_READ)

    def start(self, plan: ProcessPlan, *, log_folder: Path | None) -> None:
        """Starts a worker, where its plan says."""
        sinks = [
            Display(
                plan,
                outlet,
                console=self._console,
                log_folder=log_folder,
                appends_log=self._care.appends_logs,
            )
            for outlet in Outlet
        ]
        fleet = self._fleet
        worker = Worker(plan, sinks) if fleet is None else fleet.start(plan, sinks)
        self.workers.append(worker)
        for stream in worker.streams:
            if isinstance(stream, Stream):
                self._selector.register(stream, selectors.EVENT_READ)

    def turn(self) -> None:
        """Waits for something to happen, and does what follows from it."""
        for key, _ in self._selector.select(self._timeout_s()):
            if isinstance(key.fileobj, Stream):
                if not key.fileobj.pump():
                    self._close(key.fileobj)
            elif isinstance(key.fileobj, Link):
                if not key.fileobj.pump():
                    self._selector.unregister(key.fileobj)
            else:
                self._signals.read()
        if self._fleet is not None:
            self._fleet.beat()
        self._notice_interruption()
        self._notice_ends()
        self._notice_stalls()
        if time.monotonic() >= self._say_at_s:
            self._say_at_s = math.inf
            self._console.say(
                f"Ctrl-C has gone on to the workers, which have {self._care.grace_s:g} s to end; "
                "another Ctrl-C kills them"
            )
        if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
            self._signal_all(signal.SIGKILL)
            self._kill_at_s = math.inf
        self._take_leave()

    def keep_commit(self) -> None:
        """Fetches from the hosts, after a failure, what a next start goes on from."""
        fleet, keeper, root = self._fleet, self._care.keeper, self._root
        if fleet is None or keeper is None or root is None:
            return
        if self._interrupted_by is not None or _has_saved(root):
            return  # Nothing starts again.
        self._console.say(keeper.fetch(fleet.links, signals=self._signals))

    def kill_all(self) -> None:
        """Leaves nothing behind, however the job ended."""
        self._signal_all(signal.SIGKILL)
        for worker in self.workers:
            worker.reap()
        self._selector.close()
        self._console.while_waiting = None
        if self._fleet is not None:
            self._fleet.close()  # before its connections are killed as orphans
        kill_orphans()

    def outcome(self, *, num_oom_kills: int, limits: tuple[str, ...]) -> Outcome:
        """How the job ended, once it has."""
        exits: dict[Handle, WorkerExit] = {w: w.describe_end() for w in self._ended}
        return Outcome(
            exits=tuple(exits.values()),
            root=None if self._root is None else exits[self._root],
            interrupted_by=self._interrupted_by,
            num_oom_kills=num_oom_kills if self._fleet is None else self._fleet.num_oom_kills,
            limits=limits if self._fleet is None else self._fleet.limits,
        )

    def _timeout_s(self) -> float | None:
        times = [w.ended_s + w.drain_s for w in self.workers if w.ended_s is not None]
        if self._kill_at_s is not None:
            times.append(self._kill_at_s)
        else:
            times.append(self._look_at_s)
        times.append(self._say_at_s)
        if self._fleet is not None:
            times.append(time.monotonic() + BEAT_S / 2)
        first = min(times, default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def _notice_interruption(self) -> None:
        signals = self._signals.take_ending()
        if self._console.broken is not None and self._interrupted_by is None:
            signals.append(signal.SIGPIPE)
        for number in signals:
            if number == signal.SIGKILL:  # The outer process is gone, and nobody waits for us.
                self._interrupted_by, self._kill_at_s = number, time.monotonic()
            elif self._kill_at_s is None:
                self._interrupted_by = number
                if number == signal.SIGINT:
                    self._interrupt_all()
                    continue
                # Those that can't save yet are left in peace, since the others need them for it.
                savers = [w for w in self.workers if number == signal.SIGTERM and w.ask_to_save()]
                if savers:
                    self._kill_at_s = time.monotonic() + self._care.grace_s
                else:
                    self._end_all()
            else:
                self._kill_at_s, self._say_at_s = time.monotonic(), math.inf
                if self._root is not None and not _has_saved(self._root):
                    self._interrupted_by = self._interrupted_by or number  # No other start.

    def _notice_ends(self) -> None:
        found = sorted((worker for worker in self.workers if worker.look()), key=_suspicion)
        self._ended += found
        failed = [worker for worker in found if worker.returncode != 0]
        self._notice_what_came_before(failed)
        if failed and self._kill_at_s is None:
            self._blame(failed[0])
            if _has_saved(failed[0]):  # So have the others, and are about to end.
                self._kill_at_s = time.monotonic() + self._care.grace_s
            else:
                self._end_all()
        elif self._interrupted_by == signal.SIGINT:
            pass  # One that doesn't catch it fails, and another one is saving.
        elif self._kill_at_s is not None and not all(map(_has_saved, failed)):
            # One that was to save has failed; the others wait for it in vain.
            self._kill_at_s = min(self._kill_at_s, time.monotonic() + _SHORT_GRACE_S)

    def _blame(self, worker: Handle) -> None:
        """Takes a worker for the first that failed, unless its peer's host turns out to be gone."""
        self._root, self._failed_s = worker, time.monotonic()
        if self._fleet is not None:
            self._fleet.ask_for_signs()

    def _notice_what_came_before(self, failed: Sequence[Handle]) -> None:
        """Finds the host whose loss made another's worker fail.

        Behind a cable that is cut there is only silence, which takes us longer to be sure of than
        TensorFlow in the workers on this side of it.
        """
        root = self._root
        if root is None or root.lost is not None or _has_saved(root):
            return
        for worker in failed:
            if worker.was_lost_before(self._failed_s):
                worker.stall = None
                self._root = worker
                return

    def _notice_stalls(self) -> None:
        """Kills a worker that gets no further, after it was asked for its stacks."""
        now_s = time.monotonic()
        if self._kill_at_s is not None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + self._stalls.period_s
        alive = {worker.rank: worker for worker in self.workers if worker.ended_s is None}
        readings = {rank: worker.attendance.read() for rank, worker in alive.items()}
        stopped = frozenset(r for r, worker in alive.items() if worker.attendance.is_stopped)
        found = self._stalls.find(readings, stopped=stopped, now_s=now_s)
        if not found:
            self._stacks_until_s = None
            warning = self._stalls.warning(readings, stopped=stopped, now_s=now_s)
            self._console.say(warning)
        elif self._stacks_until_s is None:
            for rank in found:
                alive[rank].attendance.ask_for_stacks()
            self._stacks_until_s = self._look_at_s = now_s + _STACKS_S
        else:
            for rank, stall in found.items():
                alive[rank].stall = stall
                alive[rank].signal_group(signal.SIGKILL)
            self._blame(alive[min(found)])
            self._end_all()

    def _interrupt_all(self) -> None:
        """Does what a terminal would: a script may catch KeyboardInterrupt, and save."""
        self._signal_all(signal.SIGINT)
        now_s = time.monotonic()
        self._kill_at_s, self._say_at_s = now_s + self._care.grace_s, now_s + _SHORT_GRACE_S

    def _end_all(self) -> None:
        self._signal_all(signal.SIGTERM)
        self._kill_at_s = time.monotonic() + min(self._care.grace_s, _SHORT_GRACE_S)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.signal_group(number)

    def _take_leave(self) -> None:
        """Lets go of the workers that have ended and have nothing more to say."""
        now_s = time.monotonic()
        for worker in self.workers[:]:
            if worker.ended_s is None:
                continue
            if any(s.is_open for s in worker.streams) and now_s < worker.ended_s + worker.drain_s:
                continue
            for stream in worker.streams:
                if stream.is_open:
                    self._close(stream)
            worker.reap()
            self.workers.remove(worker)

    def _close(self, stream: Output) -> None:
        if isinstance(stream, Stream):
            self._selector.unregister(stream)
        stream.close()


def _suspicion(worker: Handle) -> tuple[bool, bool, int]:
    """Sorts workers found dead at the same moment: signals strike first, errors follow."""
    return worker.returncode >= 0, worker.lost is None, worker.rank


def _has_saved(worker: Handle) -> bool:
    return worker.ended_s is not None and worker.describe_end().has_saved
