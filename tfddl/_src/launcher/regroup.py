"""The workers of a start, formed anew while those that are left keep their processes.

Where a worker has failed, those that can stay leave the others by themselves, as their operations
fail. Where hosts have come or gone, new workers start first, beside those that train; these are
asked to save once the new ones wait for them. Then all are told their places (`membership`).
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from tfddl._src.launcher.output import Console
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.report import Outcome
from tfddl._src.launcher.worker_handle import WorkerHandle
from tfddl.errors import LaunchError

# How long workers that stay have to leave the others when one has ended: it is noticed at once in
# an operation, but a step, or an evaluation, may come before.
_LEAVE_S = 60.0


class Regrouper(Protocol):
    """Plans the workers anew."""

    @property
    def may_go_on(self) -> bool:
        """Whether the job can have another start after a failure."""

    def decide(self, outcome: Outcome) -> bool:
        """Whether the job goes on after some workers have ended, or hosts have changed."""

    def prepare(self) -> Sequence[ProcessPlan] | None:
        """All workers from the change of hosts on that is due; None where that isn't possible now.

        Raises:
            LaunchError: new hosts can't take part.
            Interrupted: a signal came.
        """

    def leave_out_new(self, outcome: Outcome) -> None:
        """Reports that a new worker has failed, without which the others go on for now."""

    def plan(self) -> Sequence[ProcessPlan] | None:
        """All workers from now on; None where they can't start yet.

        Raises:
            LaunchError: those that are left had better end.
            Interrupted: a signal came.
        """


class RunningJob(Protocol):
    """What is done to the job.

    Attributes:
        workers: those that run, and those whose output is still read.
    """

    workers: list[WorkerHandle]

    def start(self, plan: ProcessPlan, *, num_workers: int) -> WorkerHandle:
        """Starts a worker on the host of its plan, one of so many."""

    def end_all(self) -> None:
        """Ends all workers."""

    def outcome(self) -> Outcome:
        """How the workers have ended that aren't forgotten."""

    def forget_ends(self) -> None:
        """The job goes on: nothing has failed any more."""

    def blame(self, worker: WorkerHandle) -> None:
        """Takes a worker for the cause of the job's end, unless there is another one."""


class Regroup:
    """Forms a job anew.

    Attributes:
        goes_on: whether the job does, where that is decided, and its workers haven't been formed
            anew yet; otherwise None.
        past: workers whose ends don't matter: those of before, and those that aren't needed.
        num_changes: how often the job was formed anew.
    """

    def __init__(self, regrouper: Regrouper | None, job: RunningJob, console: Console) -> None:
        """Does nothing yet.

        Args:
            regrouper: plans the workers; None where all end if one does.
            job: the workers.
            console: takes messages.
        """
        self.goes_on: bool | None = None
        self.past: set[WorkerHandle] = set()
        self.num_changes = 0
        self._regrouper, self._job, self._console = regrouper, job, console
        # Until when all that are left have to wait for their places; None: nothing has happened.
        self._until_s: float | None = None
        # Since when a worker waits though nothing has happened.
        self._unexplained_since_s: float | None = None
        # Those that start beside the others, by their places; the plan that they are part of.
        self._early: dict[tuple[str, int], WorkerHandle] = {}
        self._prepared: Sequence[ProcessPlan] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether workers are waited for that leave the others, or hosts for new ones."""
        return self._until_s is not None

    @property
    def is_possible(self) -> bool:
        """Whether it ever is."""
        return self._regrouper is not None

    @property
    def settled(self) -> list[WorkerHandle]:
        """The workers that haven't ended, but for those that start beside them."""
        early = set(self._early.values()) | self.past
        return [w for w in self._job.workers if w.ended_s is None and w not in early]

    def begin(self) -> bool:
        """Lets those workers stay that can; the others are killed. False where none can."""
        left = self.settled
        if self._regrouper is None or not self._regrouper.may_go_on:
            return False
        if not any(worker.can_stay for worker in left):
            return False
        self._until_s, self.goes_on = time.monotonic() + _LEAVE_S, None
        for worker in left:
            if not worker.can_stay:
                worker.signal_group(signal.SIGKILL)
        return True

    def prepare(self) -> bool:
        """Starts new workers beside the others, for a change of hosts that is due.

        Returns:
            Whether the others may be asked to save.
        """
        if self._regrouper is None or not all(worker.can_stay for worker in self.settled):
            return True
        plans = self._regrouper.prepare()
        if plans is None:
            return False
        if plans is not self._prepared:
            self.drop_early()
            self._prepared = plans
            there = {(worker.host, worker.local_rank) for worker in self.settled}
            new = [plan for plan in plans if (plan.host, plan.local_rank) not in there]
            if new:
                self._console.say(f"starting {len(new)} workers beside those that train")
            for plan in new:
                worker = self._job.start(plan, num_workers=len(plans))
                self._early[plan.host, plan.local_rank] = worker
        return all(worker.joins for worker in self._early.values())

    def drop_early(self) -> None:
        """Kills workers that have started beside the others, which go on without them."""
        for worker in self._early.values():
            self.past.add(worker)
            worker.signal_group(signal.SIGKILL)
        self._early, self._prepared = {}, None

    def take_early_failure(self, failed: Sequence[WorkerHandle]) -> bool:
        """Goes on without new workers where one of them has failed before the others wait.

        Returns:
            Whether it is so.
        """
        early = [worker for worker in failed if worker in self._early.values()]
        if not early or len(early) < len(failed) or self.is_under_way:
            return False
        assert self._regrouper is not None
        self._job.blame(early[0])
        self._regrouper.leave_out_new(self._job.outcome())
        self.drop_early()
        self._job.forget_ends()
        return True

    def turn(self, *, was_asked: bool) -> None:
        """Goes on with it, as far as that is possible now.

        Args:
            was_asked: whether the workers were asked to save, as the hosts have changed.
        """
        left = self.settled
        waiting = [worker for worker in left if worker.waits]
        if not self.is_under_way:
            if not was_asked:
                self._notice_unexplained(waiting)
                return
            if not waiting:
                return
            self.begin()
        if not left:  # As without it.
            self._until_s = None
        elif self.goes_on is None and len(waiting) < len(left):
            self._give_up_if_late(left)
        elif self.goes_on or self._decide(left):
            self._form(left)

    def _notice_unexplained(self, waiting: Sequence[WorkerHandle]) -> None:
        """Kills a worker that has left the others, though none of these has ended for long."""
        now_s = time.monotonic()
        if not waiting:
            self._unexplained_since_s = None
        elif self._unexplained_since_s is None:
            self._unexplained_since_s = now_s
        elif now_s - self._unexplained_since_s > _LEAVE_S:
            self._unexplained_since_s = None
            rank = waiting[0].rank
            self._console.say(f"rank {rank} has left the others, none of which has ended")
            waiting[0].signal_group(signal.SIGKILL)

    def _give_up_if_late(self, left: Sequence[WorkerHandle]) -> None:
        assert self._until_s is not None
        if time.monotonic() > self._until_s:
            late = next(worker for worker in left if not worker.waits)
            self._give_up(f"rank {late.rank} doesn't leave the others")
            self._job.blame(late)

    def _decide(self, left: Sequence[WorkerHandle]) -> bool:
        """Whether the job goes on with those that are left, and perhaps others."""
        assert self._regrouper is not None
        outcome = self._job.outcome()
        if outcome.root is None or outcome.root.has_saved:
            # Nobody has failed: all have saved, and some wait instead of having ended.
            exits = (*outcome.exits, *(worker.describe_saving() for worker in left))
            outcome = dataclasses.replace(outcome, exits=exits, root=None)
        self.goes_on = self._regrouper.decide(outcome)
        if not self.goes_on:
            self._give_up("")
        return self.goes_on

    def _form(self, left: Sequence[WorkerHandle]) -> None:
        assert self._regrouper is not None
        try:
            plans = self._regrouper.plan()
        except LaunchError as error:
            self._give_up(str(error))
            return
        if plans is None:
            return
        if plans is not self._prepared:
            self.drop_early()
        there = {(worker.host, worker.local_rank): worker for worker in left}
        wanted = {(plan.host, plan.local_rank): plan for plan in plans}
        for place, worker in there.items():
            worker.tell_membership(wanted.get(place))
            if place not in wanted:
                self.past.add(worker)
        for place, plan in wanted.items():
            if place not in there and place not in self._early:
                self._job.start(plan, num_workers=len(plans))
        num_kept = len(there.keys() & wanted.keys())
        self._console.say(f"{num_kept} of {len(plans)} workers have kept their processes")
        self._early, self._prepared = {}, None
        self._until_s = self.goes_on = self._unexplained_since_s = None
        self.num_changes += 1
        self._job.forget_ends()

    def _give_up(self, why: str) -> None:
        """Ends the workers that are left: all start again together, if there is another start."""
        self._until_s = None
        if why:
            self._console.say(f"all workers start again, instead of some: {why}")
        self._job.end_all()
