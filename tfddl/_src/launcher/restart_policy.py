"""Whether a job that has failed starts again, and with how many workers of which hosts: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfddl.errors import LaunchError

_RESTARTS_OF_ELASTIC_JOBS = 3


@dataclass(frozen=True)
class RestartOptions:
    """How much is put up with.

    Attributes:
        max_restarts: how often a job starts again, at least 0. None: 3 where it may go on with
            fewer workers, otherwise never.
        min_workers: as few workers may go on; None: never fewer than at first.
        tolerance: after so many failures of its own, with no step done in between that had not
            been done before, a host loses its part; at least 1.
        first_leave_s: for so many seconds, the first time; each further time is twice as long.
        longest_leave_s: but never longer than this.
        first_pause_s: before the next start there are so many seconds where a start has failed
            before its first step; each further time in a row twice as many.
        longest_pause_s: but never more than this.

    Raises:
        LaunchError: a value is out of its range.
    """

    max_restarts: int | None = None
    min_workers: int | None = None
    tolerance: int = 2
    first_leave_s: float = 60.0
    longest_leave_s: float = 3600.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts is not None and self.max_restarts < 0:
            raise LaunchError(f"--max-restarts is {self.max_restarts}; it must be 0 or more")
        if self.min_workers is not None and self.min_workers < 1:
            raise LaunchError(f"--min-np is {self.min_workers}; it must be at least 1")
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
    """What a host has done: failures without progress, and how often it was left out for them."""

    failures: int = 0
    offences: int = 0


def workers_after(
    failures: Sequence[Failure],
    options: RestartOptions,
    *,
    hosts: Mapping[str, int],
    now_s: float,
) -> dict[str, int] | None:
    """With how many workers of each host a job starts again.

    A host that fails again and again without progress is left out for a time that grows; of the
    only host that is left, one worker. Where too few workers would be left, those come back whose
    time ends first.

    Args:
        failures: all of the job, in their order.
        options: how much is put up with.
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
    leaves = _leaves(failures, options, hosts)
    # What could be left out, the longest first: whoever is at the end comes back first.
    pending = sorted(
        ((until_s, host, count) for until_s, host, count in leaves if until_s > now_s),
        reverse=True,
    )
    workers = dict(hosts)
    for _, host, count in pending:
        lost = min(count, workers[host])
        if sum(workers.values()) - lost >= least:
            workers[host] -= lost
    return {host: count for host, count in workers.items() if count}


def pause_after(failures: Sequence[Failure], options: RestartOptions) -> float:
    """Seconds to wait before the next start.

    None where the last one had come to train; otherwise more and more, so that a job that can't
    start doesn't keep its hosts busy, and what it lacks has time to come back.

    Args:
        failures: all of the job, in their order.
        options: how much is put up with.
    """
    in_vain = 0
    for failure in reversed(failures):
        if failure.stepped:
            break
        in_vain += 1
    if not in_vain:
        return 0.0
    return _doubled(options.first_pause_s, in_vain - 1, most=options.longest_pause_s)


def _leaves(
    failures: Sequence[Failure], options: RestartOptions, hosts: Mapping[str, int]
) -> list[tuple[float, str, int]]:
    """Until when, whose, and how many workers are left out."""
    records = {host: _Record() for host in hosts}
    leaves: list[tuple[float, str, int]] = []
    for failure in failures:
        if failure.progressed:
            for record in records.values():
                record.failures = 0
        record = records[failure.host]
        record.failures += 1
        if record.failures < options.tolerance:
            continue
        record.failures = 0
        record.offences += 1
        until_s = failure.at_s + _doubled(
            options.first_leave_s, record.offences - 1, most=options.longest_leave_s
        )
        away = {host for end_s, host, _ in leaves if end_s > failure.at_s}
        is_last = not set(hosts) - away - {failure.host}
        leaves.append((until_s, failure.host, 1 if is_last else hosts[failure.host]))
    return leaves


def _doubled(value: float, times: int, *, most: float) -> float:
    # Beyond a thousand times it would be more than a float can be.
    return min(value * 2.0 ** min(times, 1000), most)
