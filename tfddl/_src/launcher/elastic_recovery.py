"""Plans each start of an elastic job: waits for hosts, and excludes those that have failed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping

from tfddl._src.heartbeat import WorkerFlags
from tfddl._src.launcher.elastic_policy import ElasticOptions, assign_workers, is_resize_due
from tfddl._src.launcher.fleet import UnreachableError
from tfddl._src.launcher.host_discovery import HostWatch, describe_hosts
from tfddl._src.launcher.recovery import Recovery
from tfddl._src.launcher.report import Outcome, describe_progress
from tfddl._src.launcher.restart_policy import RestartOptions, exclusion_s
from tfddl._src.launcher.signals import Signals
from tfddl.errors import LaunchError

_ASK_S = 0.1
_PROGRESS_S = 30.0


class ElasticRecovery(Recovery):
    """The starts of a job that takes in hosts as they appear, and leaves those that go away."""

    def __init__(
        self, options: ElasticOptions, restarts: RestartOptions, *, say: Callable[[str], None]
    ) -> None:
        """Begins without workers: `wait_to_start` finds hosts for them.

        Args:
            options: how the job follows its hosts.
            restarts: what follows a failure.
            say: logs lines.
        """
        least = restarts.min_workers or options.min_workers
        super().__init__(dataclasses.replace(restarts, min_workers=least), hosts={})
        self.host_changes = self
        self._elastic, self._say = options, say
        self._watch = HostWatch(options.discovery, say=say)
        # Of hosts that can't be used, or are about to go away: until when, and how often before.
        self._away_s: dict[str, float] = {}
        self._times_away: dict[str, int] = {}
        # How many workers stay there meanwhile.
        self._kept: dict[str, int] = {}
        self._started_s = 0.0
        # Those of the last start that has come to an end; empty before.
        self._known: Mapping[str, int] = {}

    @property
    def starts_again(self) -> bool:
        """Whether there may be another start: when hosts change, there is."""
        return True

    def wait_to_start(self, signals: Signals) -> bool:
        """Waits until there are hosts for enough workers.

        Raises:
            LaunchError: there weren't in time.
        """
        if not super().wait_to_start(signals):
            return False
        try:
            return self._wait_for_hosts(signals)
        finally:
            self._watch.pause()

    def is_due(self) -> bool:
        """Whether the job that runs should be saved, and started again with other workers."""
        now_s = time.monotonic()
        self._watch.turn(now_s)
        return not self._is_at_limit and is_resize_due(
            self._usable(now_s),
            current=self.workers,
            options=self._elastic,
            stable_s=now_s - self._watch.changed_s,
            running_s=now_s - self._started_s,
        )

    def is_ready(self, now_s: float) -> bool:
        """Whether there are hosts for enough workers."""
        self._watch.turn(now_s)
        return self._take(self._assign(now_s), self._elastic.min_workers, now_s)

    def next_workers(self, now_s: float) -> dict[str, int] | None:
        """How many workers of which host a start would have now; None where they are too few."""
        workers = self._assign(now_s)
        return workers if sum(workers.values()) >= self._elastic.min_workers else None

    def pause(self) -> None:
        """Ends the discovery's processes until the next question."""
        self._watch.pause()

    def leave_out(self, error: LaunchError, *, now_s: float) -> str:
        """Leaves out hosts that can't be reached, or that the start before didn't have."""
        if isinstance(error, UnreachableError):
            culprits = set(error.problems)
        else:
            culprits = set(self.workers) - set(self._known) if self._known else set()
        return f"{error}\n{self._leave(culprits, now_s)}" if culprits else ""

    def resize(self, outcome: Outcome, *, now_s: float) -> str:
        """Plans another start where the workers have saved: for other hosts, or at a SIGTERM.

        A host whose worker has got SIGTERM is about to go away.
        """
        if outcome.interrupted_by is not None or not outcome.has_saved:
            return ""
        self._known = self.workers
        saved = f"saved ({describe_progress(outcome.exits[0].reading)})"
        got = WorkerFlags.GOT_SIGTERM
        preempted = {end.host for end in outcome.exits if got in end.reading.flags}
        if preempted:
            text = f"{saved}, by SIGTERM to a worker; {self._leave(preempted, now_s)}"
            if self._is_at_limit or not self._usable(now_s):
                return ""  # As without a discovery: the same command goes on.
        else:
            text = f"{saved}; starting again on the hosts that there are now"
        self.num_restarts += 1
        self.backoff_s = 0.0
        return text

    def start_again(self, outcome: Outcome, *, now_s: float) -> str:
        """Plans another start after a failure, with those of the hosts that there are then.

        Where a host has failed that the discovery doesn't name any more, that isn't counted.
        """
        self._known = self.workers
        if outcome.root is None or not outcome.is_failure:
            return ""
        if self._is_at_limit:
            self._say(f"--reset-limit is {self._elastic.reset_limit}: no other start")
            return ""
        if outcome.root.host in (self._watch.hosts or {}):
            return super().start_again(outcome, now_s=now_s)
        self.num_restarts += 1
        self.backoff_s = 0.0
        return f"{outcome.root.host} is gone; starting again on the hosts that there are now"

    def _plan(self, now_s: float) -> dict[str, int] | None:
        """The same workers, until `wait_to_start` looks which hosts there are."""
        return None if self._allowed({}, now_s=now_s) is None else self.workers

    @property
    def _is_at_limit(self) -> bool:
        limit = self._elastic.reset_limit
        return limit is not None and self.num_restarts >= limit

    def _wait_for_hosts(self, signals: Signals) -> bool:
        elastic = self._elastic
        flag, least = "--min-np", elastic.min_workers
        if not self._known and elastic.first_workers > least:
            flag, least = "-np", elastic.first_workers
        begun_s = now_s = time.monotonic()
        say_at_s = begun_s + _PROGRESS_S
        self._watch.turn(now_s)
        while not self._take(workers := self._assign(now_s), least, now_s):
            left_s = begun_s + elastic.timeout_s - now_s
            have = f"there are hosts for {sum(workers.values())} workers"
            have += f" ({describe_hosts(workers)}), and at least {least} are needed ({flag})"
            if left_s <= 0:
                raise LaunchError(
                    f"after {elastic.timeout_s:g} s {have}. HINT: what does the host discovery "
                    "script print? --elastic-timeout is how long to wait; what was saved on disk "
                    "is where the same command goes on"
                )
            if now_s >= say_at_s:
                say_at_s = now_s + _PROGRESS_S
                self._say(f"waiting for hosts, {left_s:.0f} s more: {have}")
            if not signals.sleep(min(_ASK_S, left_s)):
                return False
            now_s = time.monotonic()
            self._watch.turn(now_s)
        return True

    def _take(self, workers: dict[str, int], least: int, now_s: float) -> bool:
        """Begins a start with these workers, where they are enough."""
        if sum(workers.values()) < least:
            return False
        if self._known:
            self._describe_change(self.workers, workers)
        self.workers, self._started_s = workers, now_s
        return True

    def _describe_change(self, before: Mapping[str, int], now: Mapping[str, int]) -> None:
        if before == now:
            return
        was = f" instead of {sum(before.values())}"
        self._say(f"with {sum(now.values())} workers{was}: {describe_hosts(now)}")
        first, then = next(iter(now)), next(iter(before), "")
        if first != then:
            self._say(
                f"rank 0, which writes checkpoints, moves from {then} to {first}. HINT: a "
                "training goes on there only from a directory that both share, or from a store (gs://)"
            )

    def _assign(self, now_s: float) -> dict[str, int]:
        return assign_workers(
            self._usable(now_s), current=self.workers, max_workers=self._elastic.max_workers
        )

    def _usable(self, now_s: float) -> dict[str, int]:
        """The hosts that there are, but for those that are excluded or away."""
        hosts = {}
        for host, slots in (self._watch.hosts or {}).items():
            is_away = now_s < self._away_s.get(host, 0.0)
            if left := min(slots, self._kept[host]) if is_away else slots:
                hosts[host] = left
        return self._allowed(hosts, now_s=now_s) or {}

    def leave_out_new(self, host: str, *, now_s: float) -> str:
        """Takes no more workers from a host for a time that doubles."""
        for_s = self._leave([host], now_s, kept=self.workers.get(host, 0)).rpartition(" for ")[2]
        return f"going on without new workers on {host} for {for_s}"

    def _leave(self, hosts: Iterable[str], now_s: float, *, kept: int = 0) -> str:
        """Leaves hosts out for a time that doubles, but for some workers of each."""
        texts = []
        for host in sorted(hosts):
            times = self._times_away[host] = self._times_away.get(host, 0) + 1
            for_s = exclusion_s(times - 1, self._options)
            self._away_s[host], self._kept[host] = now_s + for_s, kept
            texts.append(f"{host} for {for_s:g} s")
        return f"going on without {', '.join(texts)}"
