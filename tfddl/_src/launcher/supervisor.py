"""Runs one start of a job: shows the workers' output, and ends all workers when one fails."""

from __future__ import annotations

import dataclasses
import math
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tfddl._src.launcher.fleet import Fleet, turn
from tfddl._src.launcher.log_sink import LogSink
from tfddl._src.launcher.output import Console, Stream
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.regroup import Regroup, Regrouper
from tfddl._src.launcher.report import Outcome, WorkerExit
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.stall_detector import StallDetector
from tfddl._src.launcher.worker_handle import WorkerHandle

# The end of those whose peer is dead is to be quick: TensorFlow's processes don't end at a SIGTERM,
# however long one waits.
_SHORT_GRACE_S = 1.0
# What a worker gets to write its threads' stacks.
_STACKS_S = 1.0
# How often it is asked whether the hosts have changed.
_HOSTS_S = 0.5
# How often it is looked how far workers have come that are about to form the job anew.
_WAITING_S = 0.02
# After so long a wait for workers that can't save a change of hosts is given up for now, and said.
_CANT_SAVE_S = 30.0


class HostChanges(Protocol):
    """Says whether a job should be started again on other hosts."""

    def is_due(self) -> bool:
        """Whether it should; asked several times a second, and answered at once."""

    def pause(self) -> None:
        """Nobody asks for now: ends what was started to find that out."""


@dataclass(frozen=True)
class SupervisorOptions:
    """How workers are supervised.

    Attributes:
        grace_s: seconds that workers which can save get for it, from SIGTERM to SIGKILL; and all of
            them at Ctrl-C.
        stall_timeout_s: seconds without progress after which one is killed; 0 is never.
        logs: a folder for the whole output of each worker, rank.N/stdout and rank.N/stderr.
        appends_logs: whether to what is there.
        num_workers: of the whole job, where another `tfddlrun` supervises some; None for those
            given.
        host_changes: where a change of hosts is due, and all workers can save, they are asked to,
            and to end; None where hosts don't change.
        regrouper: plans the workers anew, where those that are left can keep their processes; None
            where all end if one does.
    """

    grace_s: float
    stall_timeout_s: float = 0.0
    logs: Path | None = None
    appends_logs: bool = False
    num_workers: int | None = None
    host_changes: HostChanges | None = None
    regrouper: Regrouper | None = None


def supervise(
    plans: Sequence[ProcessPlan],
    *,
    fleet: Fleet,
    console: Console,
    signals: Signals,
    options: SupervisorOptions,
) -> Outcome:
    """Runs a job to its end.

    Every worker is a session of its own, so that Ctrl-C reaches only us. The first that fails
    ends the others: SIGTERM to each one's process group, soon after SIGKILL. So does one that makes
    no progress, see `StallDetector`. SIGTERM to us goes on to those workers that can save, and they
    get the time for it; SIGINT goes on to all, as a terminal would send it, who get the same time.
    At the end the process groups of all workers are killed; what else they leave behind is killed
    when the fleet is closed.

    Args:
        plans: the workers.
        fleet: starts them, each on its host.
        console: takes their output.
        signals: SIGINT, SIGTERM and SIGHUP end the job; a second one without any grace, and so
            does SIGKILL.
        options: how the workers are supervised.

    Raises:
        LaunchError: the command can't be started, or a log can't be written.
    """
    num_workers = options.num_workers or len(plans)
    job = _Job(
        fleet=fleet,
        console=console,
        signals=signals,
        options=options,
        has_all_workers=num_workers == len(plans),
    )
    try:
        for plan in plans:
            job.start(plan, num_workers=num_workers)
        while job.workers:
            job.turn()
    finally:
        if options.host_changes is not None:
            options.host_changes.pause()
        job.kill_all()
    return job.outcome()


def log_folder(logs: Path, *, rank: int, size: int) -> Path:
    """The folder of one worker's logs, its number padded so that names sort by rank."""
    return logs / f"rank.{rank:0{len(str(size - 1))}d}"


class _Job:
    """The workers that run and those that have ended, and how the job ends."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        console: Console,
        signals: Signals,
        options: SupervisorOptions,
        has_all_workers: bool,
    ) -> None:
        self.workers: list[WorkerHandle] = []
        self._ended: list[WorkerHandle] = []
        self._root: WorkerHandle | None = None
        self._failed_s = math.inf
        self._interrupted_by: signal.Signals | None = None
        # None: no worker was asked to end. inf: all were killed.
        self._kill_at_s: float | None = None
        # When to say that workers still have the time to end after a Ctrl-C.
        self._say_at_s = math.inf
        self._fleet, self._console, self._signals = fleet, console, signals
        self._options = options
        self._stalls = StallDetector(options.stall_timeout_s, has_all_workers=has_all_workers)
        self._look_at_s = 0.0
        # When a change of hosts became due; inf: all workers were asked to save for it.
        self._change_due_s: float | None = None
        self._cant_save_was_said = False
        # When those that have stalled have had the time to write their stacks.
        self._stacks_until_s: float | None = None
        self._regroup = Regroup(options.regrouper, self, console)
        self._num_started = 0
        console.while_waiting = fleet.beat
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)

    def start(self, plan: ProcessPlan, *, num_workers: int) -> WorkerHandle:
        """Starts a worker on the host of its plan, one of so many."""
        folder = None
        if self._options.logs is not None:
            folder = log_folder(self._options.logs, rank=plan.rank, size=num_workers)
        sinks = [
            LogSink(
                plan,
                stream,
                console=self._console,
                log_folder=folder,
                appends_log=self._options.appends_logs or self._regroup.num_changes > 0,
            )
            for stream in Stream
        ]
        worker = self._fleet.start(dataclasses.replace(plan, worker=self._num_started), sinks)
        self._num_started += 1
        self.workers.append(worker)
        self._watch_clients()  # Its host may be new.
        return worker

    def turn(self) -> None:
        """Waits for something to happen, and does what follows from it."""
        turn(
            self._fleet.clients,
            selector=self._selector,
            signals=self._signals,
            wait_s=self._timeout_s(),
        )
        self._notice_interruption()
        self._notice_ends()
        self._notice_stalls()
        self._notice_host_changes()
        if self._regroup.is_possible and self._kill_at_s is None:
            self._fleet.update()
            self._regroup.turn(was_asked=self._change_due_s == math.inf)
        if time.monotonic() >= self._say_at_s:
            self._say_at_s = math.inf
            self._console.say(
                f"Ctrl-C was passed on to the workers, which have {self._options.grace_s:g} s to "
                "end; another Ctrl-C kills them"
            )
        if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
            self._signal_all(signal.SIGKILL)
            self._kill_at_s = math.inf
        for worker in [worker for worker in self.workers if worker.is_done]:
            worker.reap()
            self.workers.remove(worker)

    def kill_all(self) -> None:
        """Kills the workers that are left, however the job ended."""
        self._signal_all(signal.SIGKILL)
        for worker in self.workers:
            worker.reap()
        self._selector.close()
        self._console.while_waiting = None

    def outcome(self) -> Outcome:
        """How the job ended, once it has."""
        exits: dict[WorkerHandle, WorkerExit] = {w: w.describe_end() for w in self._ended}
        return Outcome(
            exits=tuple(exits.values()),
            root=None if self._root is None else exits[self._root],
            interrupted_by=self._interrupted_by,
            num_oom_kills=self._fleet.num_oom_kills,
            limits=self._fleet.limits,
            goes_on=self._regroup.goes_on,
        )

    def _timeout_s(self) -> float | None:
        when_s = min(
            self._look_at_s if self._kill_at_s is None else self._kill_at_s, self._say_at_s
        )
        waits = [client.timeout_s() for client in self._fleet.clients]
        if self._options.host_changes is not None:
            waits.append(_HOSTS_S)
        if self._regroup.is_possible:
            is_soon = self._regroup.is_under_way or self._change_due_s is not None
            waits.append(_WAITING_S if is_soon else _HOSTS_S)
        wait_s = min(when_s - time.monotonic(), *waits)
        return None if wait_s == math.inf else max(0.0, wait_s)

    def _notice_interruption(self) -> None:
        signals = self._signals.take_ending()
        if signals:
            self._fleet.update()  # a worker may have become able to save just now
        if self._console.broken is not None and self._interrupted_by is None:
            signals.append(signal.SIGPIPE)
        for number in signals:
            if number == signal.SIGKILL:  # The outer process was killed, and nobody waits for us.
                self._interrupted_by, self._kill_at_s = number, time.monotonic()
            elif self._kill_at_s is None:
                self._interrupted_by = number
                if number == signal.SIGINT:
                    self._interrupt_all()
                    continue
                # Those that can't save yet go on, since the others need them to save.
                savers = [w for w in self.workers if number == signal.SIGTERM and w.ask_to_save()]
                if savers:
                    self._kill_at_s = time.monotonic() + self._options.grace_s
                else:
                    self.end_all()
            else:
                self._kill_at_s, self._say_at_s = time.monotonic(), math.inf
                # No other start: neither after a failure, nor where workers have saved for one.
                if self._options.host_changes is not None or (
                    self._root is not None and not _has_saved(self._root)
                ):
                    self._interrupted_by = self._interrupted_by or number
                    if self._interrupted_by != signal.SIGTERM and self._root is not None:
                        # One that has saved has not failed; after SIGTERM the report says so.
                        self._root = None if _has_saved(self._root) else self._root

    def _notice_ends(self) -> None:
        # All that have ended since the last turn are compared: their order among them isn't known.
        known = self._regroup.past.union(self._ended)
        ended = (w for w in self.workers if w.ended_s is not None and w not in known)
        found = sorted(ended, key=_root_cause_key)
        self._ended += found
        failed = [worker for worker in found if worker.returncode != 0]
        self._revise_root_cause(failed)
        if failed and self._kill_at_s is None and not self._regroup.take_early_failure(failed):
            self.blame(failed[0])
            if self._regroup.is_under_way or self._regroup.begin():
                pass
            elif _has_saved(failed[0]):  # So have the others, and are about to end.
                self._kill_at_s = time.monotonic() + self._options.grace_s
            else:
                self.end_all()
        elif self._interrupted_by == signal.SIGINT:
            pass  # One that doesn't catch it fails, and another one is saving.
        elif self._kill_at_s is not None and not all(map(_has_saved, failed)):
            # One that was to save has failed, and the others can't save without it.
            self._kill_at_s = min(self._kill_at_s, time.monotonic() + _SHORT_GRACE_S)

    def _record_root_cause(self, worker: WorkerHandle) -> None:
        """Takes a worker for the first that failed, until a host turns out to be lost before."""
        self._root, self._failed_s = worker, time.monotonic()
        self._fleet.ping()

    def _revise_root_cause(self, failed: Sequence[WorkerHandle]) -> None:
        """Replaces the root cause by a host that was lost before.

        A cut cable shows as silence only, which takes longer to be sure of than it takes TensorFlow
        to fail in the workers on this side of it.
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
        """Kills a worker that makes no progress, after it was asked for its stacks."""
        now_s = time.monotonic()
        if self._kill_at_s is not None or now_s < self._look_at_s or self._regroup.is_under_way:
            return
        self._look_at_s = now_s + self._stalls.period_s
        self._fleet.update()
        alive = {worker.rank: worker for worker in self._regroup.settled}
        readings = {rank: worker.reading for rank, worker in alive.items()}
        stopped = frozenset(r for r, worker in alive.items() if worker.is_stopped)
        found = self._stalls.find(readings, stopped=stopped, now_s=now_s)
        if not found:
            self._stacks_until_s = None
            warning = self._stalls.warning(readings, stopped=stopped, now_s=now_s)
            self._console.say(warning)
        elif self._stacks_until_s is None:
            for rank in found:
                alive[rank].ask_for_stacks()
            self._stacks_until_s = self._look_at_s = now_s + _STACKS_S
        else:
            for rank, stall in found.items():
                alive[rank].stall = stall
                alive[rank].signal_group(signal.SIGKILL)
            self._record_root_cause(alive[min(found)])
            if not self._regroup.begin():
                self.end_all()

    def _notice_host_changes(self) -> None:
        """Asks all workers to save and end, where a change of hosts is due and all of them can."""
        changes, now_s = self._options.host_changes, time.monotonic()
        is_ending = self._kill_at_s is not None or bool(self._ended) or self._regroup.is_under_way
        if changes is None or is_ending or self._change_due_s == math.inf:
            return
        if not changes.is_due():
            self._change_due_s = None
            self._regroup.drop_early()
            return
        self._fleet.update()
        workers = self._regroup.settled
        unable = [worker for worker in workers if not worker.saves_on_request]
        if not unable:
            self._change_due_s = self._change_due_s or now_s
            if not self._regroup.prepare():
                return
            self._change_due_s = math.inf
            for worker in workers:
                worker.request_save()
            self._console.say("waiting until the workers have saved, as the hosts have changed")
        elif self._change_due_s is None:
            self._change_due_s = now_s
        elif not self._cant_save_was_said and now_s - self._change_due_s >= _CANT_SAVE_S:
            self._cant_save_was_said = True
            self._console.say(
                f"the hosts have changed, but rank {unable[0].rank} can't save its training now, "
                "so it isn't interrupted. HINT: tfddl.callbacks.Checkpoint in fit, or "
                "hvd.elastic.run with a state that is committed"
            )

    def blame(self, worker: WorkerHandle) -> None:
        """Takes a worker for the cause of the job's end, unless there is another one."""
        if self._root is None:
            self._record_root_cause(worker)

    def forget_ends(self) -> None:
        """The job goes on with other workers: nothing has failed any more."""
        self._regroup.past.update(self._ended)
        self._ended.clear()
        self._root, self._failed_s = None, math.inf
        self._change_due_s = self._stacks_until_s = None
        self._stalls = StallDetector(self._options.stall_timeout_s, has_all_workers=True)

    def _watch_clients(self) -> None:
        for client in self._fleet.clients:
            if client.lost is None and client not in self._selector.get_map():
                self._selector.register(client, selectors.EVENT_READ)

    def _interrupt_all(self) -> None:
        """Sends SIGINT, as a terminal would: a script may catch KeyboardInterrupt, and save."""
        self._signal_all(signal.SIGINT)
        now_s = time.monotonic()
        self._kill_at_s, self._say_at_s = now_s + self._options.grace_s, now_s + _SHORT_GRACE_S

    def end_all(self) -> None:
        """Ends all workers, soon by force."""
        self._signal_all(signal.SIGTERM)
        self._kill_at_s = time.monotonic() + min(self._options.grace_s, _SHORT_GRACE_S)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.signal_group(number)


def _root_cause_key(worker: WorkerHandle) -> tuple[bool, bool, int]:
    """Sort key of workers found dead at the same moment: first those killed by a signal."""
    # Workers that fail because another one is gone raise an error, and exit by themselves.
    return worker.returncode >= 0, worker.lost is None, worker.rank


def _has_saved(worker: WorkerHandle) -> bool:
    return worker.ended_s is not None and worker.describe_end().has_saved
