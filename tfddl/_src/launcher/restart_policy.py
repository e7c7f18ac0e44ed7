"""Whether a job that has failed starts again, when, and with which hosts. Pure.

A host on which the job keeps failing is excluded for a time that doubles (Horovod's blocklist with
a cooldown), and a start that fails before its first step is followed by an exponential back-off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfddl.errors import LaunchError

_RESTARTS_OF_ELASTIC_JOBS = 3


@dataclass(frozen=True)
class RestartOptions:
    """Restart policy.

    Attributes:
        max_restarts: how often a job starts again, at least 0. None: 3 where it may go on with
            fewer workers, otherwise never.
        min_workers: as few workers may go on; None: never fewer than at first.
        tolerance: after so many failures of its own, with no step done in between that had not
            been done before, a host is excluded; at least 1.
        first_exclusion_s: for how long the first time; each further time is twice as long.
        longest_exclusion_s: the longest time for which a host is excluded.
        first_backoff_s: how long to wait for the next start where one has failed before its first
            step; each further time in a row is twice as long.
        longest_backoff_s: the longest time to wait.

    Raises:
        LaunchError: a value is out of its range.
    """

    max_restarts: int | None = None
    min_workers: int | None = None
    tolerance: int = 2
    first_exclusion_s: float = 60.0
    longest_exclusion_s: float = 3600.0
    first_backoff_s: float = 1.0
    longest_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts is not None and self.max_restarts < 0:
            raise LaunchError(f"--max-restarts is {self.max_restarts}; it must be 0 or more")
        if self.min_workers is not None and self.min_workers < 1:
            raise LaunchError(f"--min-np is {self.min_workers}; it must be at least 1")
        if not 0 < self.first_exclusion_s <= self.longest_exclusion_s < math.inf:
            raise LaunchError(
                f"--blacklist-cooldown-range is {self.first_exclusion_s:g} "
                f"{self.longest_exclusion_s:g}; expected two numbers of seconds above 0, the "
                "smaller one first"
            )
        if self.tolerance < 1:
            raise LaunchError(f"the tolerance is {self.tolerance}; it must be at least 1")

    @property
    def restarts(self) -> int:
        """How often a job starts again."""
        if self.max_restarts is not None:
            return self.max_restarts
        return 0 if self.min_workers is None else _RESTARTS_OF_ELASTIC_JOBS


@dataclass(frozen=True)
class Failure:
    """A failure of the job.

    Attributes:
        host: where the first worker failed.
        at_s: when, on a clock that only goes forward.
        progressed: whether steps had been done before that no earlier start had done.
        stepped: whether any step had been done.
    """

    host: str
    at_s: float
    progressed: bool
    stepped: bool


@dataclass
class _Record:
    """A host's failures without progress, and how often it was excluded for them."""

    failures: int = 0
    exclusions: int = 0


def workers_after(
    failures: Sequence[Failure],
    options: RestartOptions,
    *,
    hosts: Mapping[str, int],
    now_s: float,
) -> dict[str, int] | None:
    """With how many workers of each host a job starts again.

    A host that fails again and again without progress is excluded for a time that grows; of the
    only host that is left, one worker. Where too few workers would be left, the host whose time
    ends first comes back.

    Args:
        failures: all of the job, in their order.
        options: the restart policy.
        hosts: how many workers each host has at full strength.
        now_s: on the clock of the failures.

    Returns:
        The hosts that take part, in their order, with at least one worker each; None: the job has
        failed.
    """
    if len(failures) > options.restarts:
        return None
    least = options.min_workers
    if least is None:
        return dict(hosts)
    exclusions = _exclusions(failures, options, hosts)
    # The longest first: where too few would be left, the last of them come back.
    pending = sorted(
        ((until_s, host, count) for until_s, host, count in exclusions if until_s > now_s),
        reverse=True,
    )
    workers = dict(hosts)
    for _, host, count in pending:
        lost = min(count, workers.get(host, 0))
        if lost and sum(workers.values()) - lost >= least:
            workers[host] -= lost
    return {host: count for host, count in workers.items() if count}


def backoff_after(failures: Sequence[Failure], options: RestartOptions) -> float:
    """Seconds to wait before the next start.

    Returns 0.0 if the last start completed a step, otherwise the back-off, so that a job that can't
    start doesn't keep its hosts busy.

    Args:
        failures: all of the job, in their order.
        options: the restart policy.
    """
    num_failed = 0
    for failure in reversed(failures):
        if failure.stepped:
            break
        num_failed += 1
    if not num_failed:
        return 0.0
    return _doubled(options.first_backoff_s, num_failed - 1, most=options.longest_backoff_s)


def _exclusions(
    failures: Sequence[Failure], options: RestartOptions, hosts: Mapping[str, int]
) -> list[tuple[float, str, int]]:
    """Until when, of which host, and how many workers are excluded."""
    # Hosts that have failed may be gone by now, where others are found while the job runs.
    records = {host: _Record() for host in (*hosts, *(failure.host for failure in failures))}
    exclusions: list[tuple[float, str, int]] = []
    for failure in failures:
        # Any progress clears all hosts: whatever failed before, the job gets on with them.
        if failure.progressed:
            for record in records.values():
                record.failures = 0
        record = records[failure.host]
        record.failures += 1
        if record.failures < options.tolerance:
            continue
        record.failures = 0
        record.exclusions += 1
        until_s = failure.at_s + exclusion_s(record.exclusions - 1, options)
        away = {host for end_s, host, _ in exclusions if end_s > failure.at_s}
        is_last = not set(hosts) - away - {failure.host}
        count = hosts.get(failure.host, 0)
        exclusions.append((until_s, failure.host, min(1, count) if is_last else count))
    return exclusions


def exclusion_s(times: int, options: RestartOptions) -> float:
    """For how many seconds a host is excluded that was excluded so often before."""
    return _doubled(options.first_exclusion_s, times, most=options.longest_exclusion_s)


def _doubled(value: float, times: int, *, most: float) -> float:
    # Beyond a thousand times it would be more than a float can be.
    return min(value * 2.0 ** min(times, 1000), most)
