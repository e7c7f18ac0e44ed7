"""Workers that keep their processes when others are lost, or hosts come and go.

A start of a job needn't end for that: where all workers that are left can stay, they leave each
other and wait, new ones are started beside them, and each is told its place (`membership`). On the
workers' side that is `horovod.elastic_regroup`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from tfddl._src.launcher.fleet import Fleet
from tfddl._src.launcher.output import Console
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.recovery import Recovery
from tfddl._src.launcher.report import Outcome, outcome_report
from tfddl._src.launcher.signals import Signals
from tfddl.errors import LaunchError

# Hosts for enough workers are waited for with the workers that are left for so long; then these
# end, too, and the wait goes on without them.
_HOSTS_S = 30.0


class RegroupPlanner:
    """Plans the workers of a start anew."""

    def __init__(
        self,
        recovery: Recovery,
        fleet: Fleet,
        *,
        signals: Signals,
        console: Console,
        plan: Callable[[int], Sequence[ProcessPlan]],
    ) -> None:
        """Plans nothing yet.

        Args:
            recovery: says whether there is another start, and with how many workers.
            fleet: the hosts, which change with it.
            signals: interrupt the waiting for new hosts.
            console: takes messages.
            plan: plans all workers of the fleet, given how often the job has started again.
        """
        self._recovery, self._fleet, self._plan = recovery, fleet, plan
        self._signals, self._console = signals, console
        self._decided_s = 0.0
        # For which workers of the hosts there is a plan already.
        self._prepared: tuple[Mapping[str, int], Sequence[ProcessPlan]] | None = None

    @property
    def may_go_on(self) -> bool:
        """Whether the job can have another start after a failure."""
        return self._recovery.starts_again

    def decide(self, outcome: Outcome) -> bool:
        """Whether the job goes on after some workers have ended, or hosts have changed."""
        self._decided_s = time.monotonic()
        return goes_on(self._recovery, outcome, self._console)

    def prepare(self) -> Sequence[ProcessPlan] | None:
        """All workers from the change of hosts on that is due; None where that isn't possible now.

        Raises:
            LaunchError: new hosts can't take part.
            Interrupted: a signal came.
        """
        now_s = time.monotonic()
        workers = self._recovery.next_workers(now_s)
        if workers is None:
            return None
        if self._prepared is None or self._prepared[0] != workers:
            self._prepared = None
            if not self._change(workers, now_s):
                return None
            self._prepared = workers, self._plan(self._recovery.num_restarts + 1)
        return self._prepared[1]

    def leave_out_new(self, outcome: Outcome) -> None:
        """Reports that a new worker has failed, without which the others go on for now."""
        assert outcome.root is not None
        self._prepared = None
        self._console.say(outcome_report(outcome, broken=self._console.broken))
        text = self._recovery.leave_out_new(outcome.root.host, now_s=time.monotonic())
        self._console.say(text)

    def plan(self) -> Sequence[ProcessPlan] | None:
        """All workers of the next start; None where it can't begin yet.

        Raises:
            LaunchError: the workers that are left had better end: there are no hosts.
            Interrupted: a signal came.
        """
        now_s = time.monotonic()
        waited_s = now_s - self._decided_s
        if waited_s < self._recovery.backoff_s:
            return None
        if not self._recovery.is_ready(now_s):
            if waited_s > self._recovery.backoff_s + _HOSTS_S:
                raise LaunchError("there are no hosts for enough workers yet")
            return None
        workers = self._recovery.workers
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] == workers:
            return prepared[1]
        if not self._change(workers, now_s):
            return None
        return self._plan(self._recovery.num_restarts)

    def _change(self, workers: Mapping[str, int], now_s: float) -> bool:
        """Gives the fleet other workers; False where hosts are left out for now."""
        try:
            self._fleet.change(workers, signals=self._signals)
        except LaunchError as error:
            if not (text := self._recovery.leave_out(error, now_s=now_s)):
                raise
            self._console.say(text)
            return False
        return True


def goes_on(recovery: Recovery, outcome: Outcome, console: Console) -> bool:
    """Whether a job has another start after this outcome; reports both."""
    now_s = time.monotonic()
    if text := recovery.resize(outcome, now_s=now_s):
        console.say(text)
        return True
    console.say(outcome_report(outcome, broken=console.broken))
    again = recovery.start_again(outcome, now_s=now_s)
    console.say(again)
    return bool(again)
