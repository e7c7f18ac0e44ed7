"""Workers that keep their processes when others are lost, or hosts come and go.

A start of a job needn't end for that: where all workers that are left can stay, they leave each
other and wait, new ones are started beside them, and each is told its place (`membership`). On the
workers' side that is `horovod.elastic_regroup`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

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


class Decision(Protocol):
    """Says whether a job has another start."""

    def __call__(self, outcome: Outcome) -> bool:
        """Whether it has, after this outcome; reports it."""


class Regrouping:
    """Plans the workers of a start anew."""

    def __init__(
        self,
        recovery: Recovery,
        fleet: Fleet,
        *,
        signals: Signals,
        console: Console,
        plan: Callable[[], Sequence[ProcessPlan]],
    ) -> None:
        """Plans nothing yet.

        Args:
            recovery: says whether there is another start, and with how many workers.
            fleet: the hosts, which change with it.
            signals: interrupt the waiting for new hosts.
            console: takes messages.
            plan: plans all workers of the fleet.
        """
        self._recovery, self._fleet, self._plan = recovery, fleet, plan
        self._signals, self._console = signals, console
        self._decided_s = 0.0
        self._first_worker = 0

    def decide(self, outcome: Outcome) -> bool:
        """Whether the job goes on after some workers have ended, or hosts have changed."""
        self._decided_s = time.monotonic()
        return goes_on(self._recovery, outcome, self._console)

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
        try:
            self._fleet.change(self._recovery.workers, signals=self._signals)
        except LaunchError as error:
            if not (text := self._recovery.leave_out(error, now_s=now_s)):
                raise
            self._console.say(text)
            return None
        return self._plan()


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
