"""The starts of a job that has failed: whether there is another one, and how it differs."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl._src.launcher.environment import RESTARTS
from tfddl._src.launcher.report import Outcome
from tfddl._src.launcher.restart_policy import Failure, RestartOptions, backoff_after, workers_after


class Recovery:
    """The starts of one job.

    Attributes:
        workers: how many workers of which host the next start has.
        num_restarts: how many there have been.
        backoff_s: how long to wait before the next start.
    """

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
    def variables(self) -> dict[str, str]:
        """Environment variables of the next start's workers."""
        return {RESTARTS: str(self.num_restarts)}

    @property
    def starts_again(self) -> bool:
        """Whether the next failure will be followed by another start."""
        return self.num_restarts < self._options.restarts

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
        stepped = any(end.reading.steps or end.reading.rounds for end in outcome.exits)
        places = [(e.reading.epoch, e.reading.step) for e in outcome.exits if e.reading.steps]
        reached = max(places, default=(0, 0))
        # A failure after steps that no start had done before is no sign that the host can't work.
        progressed = reached > self._farthest
        self._farthest = max(reached, self._farthest)
        self._failures.append(
            Failure(outcome.root.host, at_s=now_s, progressed=progressed, stepped=stepped)
        )
        workers = workers_after(self._failures, self._options, hosts=self._hosts, now_s=now_s)
        if workers is None:
            return ""
        before, self.workers = self.workers, workers
        self.num_restarts += 1
        self.backoff_s = backoff_after(self._failures, self._options)
        when = f", in {self.backoff_s:g} s" if self.backoff_s else ""
        text = f"starting again on other ports{when} (restart {self.num_restarts} of "
        return f"{text}{self._options.restarts}{_changes(before, workers)})"


def _changes(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    if sum(before.values()) == sum(now.values()):
        return ""
    return f", with {sum(now.values())} workers instead of {sum(before.values())}"
