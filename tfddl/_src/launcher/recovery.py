"""The starts of a job: whether there is another one after a failure, and how it differs."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl._src.launcher.report import Outcome
from tfddl._src.launcher.restart_policy import Failure, RestartOptions, backoff_after, workers_after
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.supervisor import HostChanges
from tfddl.errors import LaunchError


class Recovery:
    """The starts of one job.

    Attributes:
        workers: how many workers of which host the next start has.
        num_restarts: how many there have been.
        backoff_s: how long to wait before the next start.
        host_changes: what a running job asks whether to start again on other hosts; or None.
    """

    host_changes: HostChanges | None = None

    def __init__(self, options: RestartOptions, *, hosts: Mapping[str, int]) -> None:
        """Begins with all workers.

        Args:
            options: the restart policy.
            hosts: how many workers each host has; this machine is "" where no hosts are named.
        """
        self.workers = dict(hosts)
        self.num_restarts = 0
        self.backoff_s = 0.0
        self._options = options
        self._hosts = dict(hosts)
        self._failures: list[Failure] = []
        self._farthest = (0, 0)

    @property
    def starts_again(self) -> bool:
        """Whether the next failure will be followed by another start."""
        return len(self._failures) < self._options.restarts

    def wait_to_start(self, signals: Signals) -> bool:
        """Waits until the next start may begin; False where a signal ends the job before."""
        return signals.sleep(self.backoff_s)

    def is_ready(self, now_s: float) -> bool:
        """Whether the next start may begin at once; plans it, as `wait_to_start` does."""
        return True

    def next_workers(self, now_s: float) -> dict[str, int] | None:
        """How many workers of which host there would be after a change; None where none is due."""
        return None

    def leave_out(self, error: LaunchError, *, now_s: float) -> str:
        """Plans a start without the hosts that can't be used; "" where that isn't possible."""
        return ""

    def leave_out_new(self, host: str, *, now_s: float) -> str:
        """Takes no more workers from a host for a time, as a new one has failed there.

        Returns:
            A message about it.
        """
        return ""

    def resize(self, outcome: Outcome, *, now_s: float) -> str:
        """Plans another start where the workers have saved for it, as the hosts have changed.

        Returns:
            A message about it; "" where the outcome is another one.
        """
        return ""

    def start_again(self, outcome: Outcome, *, now_s: float) -> str:
        """Plans another start after this outcome, if there is to be one.

        Args:
            outcome: how the last start ended.
            now_s: on a clock that only goes forward.

        Returns:
            A message about it; "" where the job has ended.
        """
        if outcome.root is None or not outcome.is_failure:
            return ""
        self._record(outcome, outcome.root.host, now_s=now_s)
        workers = self._plan(now_s)
        if workers is None:
            return ""
        before, self.workers = self.workers, workers
        self.num_restarts += 1
        self.backoff_s = backoff_after(self._failures, self._options)
        when = f", in {self.backoff_s:g} s" if self.backoff_s else ""
        text = f"starting again on other ports{when} (restart {len(self._failures)} of "
        return f"{text}{self._options.restarts}{_changes(before, workers)})"

    def _record(self, outcome: Outcome, host: str, *, now_s: float) -> None:
        stepped = any(end.reading.steps or end.reading.rounds for end in outcome.exits)
        places = [(e.reading.epoch, e.reading.step) for e in outcome.exits if e.reading.steps]
        reached = max(places, default=(0, 0))
        # A failure after steps that no start had done before is no sign that the host can't work.
        progressed = reached > self._farthest
        self._farthest = max(reached, self._farthest)
        self._failures.append(Failure(host, at_s=now_s, progressed=progressed, stepped=stepped))

    def _plan(self, now_s: float) -> dict[str, int] | None:
        """The workers of the next start, as far as they are known; None: there is none."""
        return self._allowed(self._hosts, now_s=now_s)

    def _allowed(self, hosts: Mapping[str, int], *, now_s: float) -> dict[str, int] | None:
        """Of these hosts, those that aren't excluded; None: the job has failed too often."""
        return workers_after(self._failures, self._options, hosts=hosts, now_s=now_s)


def _changes(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    if sum(before.values()) == sum(now.values()):
        return ""
    return f", with {sum(now.values())} workers instead of {sum(before.values())}"
