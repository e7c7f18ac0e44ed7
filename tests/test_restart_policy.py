"""The restart policy: how often, when, and with how many workers of which hosts. Pure."""

import pytest

from tfddl._src.launcher.restart_policy import Failure, RestartOptions, backoff_after, workers_after
from tfddl.errors import LaunchError

OFTEN = RestartOptions(max_restarts=99, min_workers=1)


def _failures(*hosts: str, at_s: float = 0.0) -> list[Failure]:
    """One a second; "a+" is one after progress."""
    return [
        Failure(host.rstrip("+"), at_s=at_s + n, progressed=host.endswith("+"), stepped=True)
        for n, host in enumerate(hosts)
    ]


def _workers(
    failures: list[Failure], hosts: dict[str, int], *, now_s: float, options: RestartOptions = OFTEN
) -> dict[str, int] | None:
    return workers_after(failures, options, hosts=hosts, now_s=now_s)


@pytest.mark.parametrize(
    ("max_restarts", "min_workers", "restarts"),
    [(None, None, 0), (None, 1, 3), (0, None, 0), (0, 1, 0), (5, None, 5), (5, 2, 5)],
)
def test_how_often_a_job_starts_again(
    max_restarts: int | None, min_workers: int | None, restarts: int
) -> None:
    options = RestartOptions(max_restarts, min_workers)
    assert options.restarts == restarts
    hosts = {"a": 4}
    failures = _failures(*["a+"] * (restarts + 1))
    assert _workers(failures[:-1], hosts, now_s=0.0, options=options) == hosts
    assert _workers(failures, hosts, now_s=0.0, options=options) is None


def test_options_out_of_range() -> None:
    RestartOptions(max_restarts=0, min_workers=1, tolerance=1)
    with pytest.raises(LaunchError, match="--max-restarts is -1; it must be 0 or more"):
        RestartOptions(max_restarts=-1)
    with pytest.raises(LaunchError, match="--min-np is 0; it must be at least 1"):
        RestartOptions(min_workers=0)
    with pytest.raises(LaunchError, match="the tolerance is 0; it must be at least 1"):
        RestartOptions(tolerance=0)


@pytest.mark.parametrize("tolerance", [1, 2, 3])
def test_a_host_is_left_out_once_it_has_failed_so_often(tolerance: int) -> None:
    options = RestartOptions(max_restarts=99, min_workers=1, tolerance=tolerance)
    hosts = {"a": 2, "b": 2}
    failures = _failures(*["b"] * tolerance)
    assert _workers(failures[:-1], hosts, now_s=5.0, options=options) == hosts
    assert _workers(failures, hosts, now_s=5.0, options=options) == {"a": 2}


def test_it_comes_back_after_a_minute_then_two_then_four_but_within_the_hour() -> None:
    hosts = {"a": 2, "b": 2}
    failures: list[Failure] = []
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        failures += _failures("b", "b", at_s=10_000.0 * len(failures))
        until_s = failures[-1].at_s + 60.0 * minutes
        assert _workers(failures, hosts, now_s=until_s - 0.001) == {"a": 2}
        assert _workers(failures, hosts, now_s=until_s) == hosts
    options = RestartOptions(99, 1, first_exclusion_s=7.0, longest_exclusion_s=10.0)
    for until_s, count in ((1 + 7.0, 2), (3 + 10.0, 4)):
        some = _failures(*["b"] * count)
        assert _workers(some, hosts, now_s=until_s - 0.001, options=options) == {"a": 2}
        assert _workers(some, hosts, now_s=until_s, options=options) == hosts


def test_progress_anywhere_forgives_all_hosts() -> None:
    hosts = {"a": 2, "b": 2}
    assert _workers(_failures("a", "b+", "a"), hosts, now_s=3.0) == hosts
    # The one that has failed after it has failed once.
    assert _workers(_failures("a", "b+", "b"), hosts, now_s=3.0) == {"a": 2}
    assert _workers(_failures("a", "b", "a"), hosts, now_s=3.0) == {"b": 2}
    # Left out and back, it has a clean record, but is known.
    failures = [*_failures("a", "a"), *_failures("a", at_s=1000.0)]
    assert _workers(failures, hosts, now_s=1001.0) == hosts
    failures = [*_failures("a", "a"), *_failures("b+", "a", "a", at_s=1000.0)]
    assert _workers(failures, hosts, now_s=1002.0 + 119.9) == {"b": 2}


def test_the_only_host_that_is_left_loses_one_worker() -> None:
    hosts = {"a": 2, "b": 3}
    assert _workers(_failures("b", "b"), {"b": 3}, now_s=2.0) == {"b": 2}
    assert _workers(_failures("a", "a", "b", "b"), hosts, now_s=4.0) == {"b": 2}
    # Until 61 s, a is away. Then b isn't the only one any more.
    for at_s, workers in ((60.9, {"a": 2, "b": 2}), (61.0, {"a": 2})):
        failures = [*_failures("a", "a"), *_failures("b", "b", at_s=at_s - 1)]
        assert _workers(failures, hosts, now_s=at_s + 1) == workers


def test_what_is_left_out_twice_is_missing_once() -> None:
    assert _workers(_failures(*["a"] * 4), {"a": 1, "b": 5}, now_s=4.0) == {"b": 5}


def test_never_fewer_than_may_go_on() -> None:
    hosts = {"c": 1, "a": 2, "b": 2}
    for least, workers in ((2, {"c": 1, "b": 2}), (3, {"c": 1, "b": 2}), (4, hosts)):
        options = RestartOptions(99, least)
        found = _workers(_failures("a", "a"), hosts, now_s=2.0, options=options)
        assert found == workers
        assert list(found or {}) == list(workers)  # In their order.
    # Of two that are away, the one whose time ends first comes back.
    options = RestartOptions(99, 3)
    for order, workers in (("aabb", {"c": 1, "a": 2}), ("bbaa", {"c": 1, "b": 2})):
        assert _workers(_failures(*order), hosts, now_s=4.0, options=options) == workers


def test_without_a_least_number_all_stay() -> None:
    hosts = {"a": 2, "b": 2}
    options = RestartOptions(max_restarts=9)
    found = _workers(_failures(*["a"] * 6), hosts, now_s=6.0, options=options)
    assert found == hosts
    assert found is not hosts


def _starts(*steps: bool) -> list[Failure]:
    return [Failure("a", at_s=float(n), progressed=s, stepped=s) for n, s in enumerate(steps)]


def test_a_pause_grows_while_nothing_comes_to_train() -> None:
    options = RestartOptions()
    assert backoff_after([], options) == 0.0
    assert backoff_after(_starts(True), options) == 0.0
    pauses = [backoff_after(_starts(True, *[False] * n), options) for n in range(9)]
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert backoff_after(_starts(False, False, True), options) == 0.0
    assert backoff_after(_starts(False, False, True, False), options) == 1.0
    options = RestartOptions(first_backoff_s=3.0, longest_backoff_s=5.0)
    assert [backoff_after(_starts(*[False] * n), options) for n in (1, 2, 5000)] == [3.0, 5.0, 5.0]
