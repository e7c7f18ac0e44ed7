"""When the number of workers follows the hosts that there are, and to which. Pure."""

import math
from typing import Any

import pytest

from tfddl._src.launcher.elastic_policy import ElasticOptions, assign_workers, is_resize_due
from tfddl._src.launcher.restart_policy import Failure, RestartOptions, workers_after
from tfddl.errors import LaunchError


class NoHosts:
    def find_hosts(self) -> None:
        return None

    def pause(self) -> None:
        pass


def _options(**more: Any) -> ElasticOptions:
    given: dict[str, Any] = {"min_workers": 2, "max_workers": 8, "first_workers": 2, **more}
    return ElasticOptions(NoHosts(), **given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"min_workers": 0}, "--min-np is 0, -np 2 and --max-np 8; they must be in this order"),
        ({"first_workers": 1}, "--min-np is 2, -np 1 and --max-np 8"),
        ({"max_workers": 1}, "--min-np is 2, -np 2 and --max-np 1"),
        ({"max_workers": 1025}, "--max-np is 1025; it must be at most 1024"),
        ({"timeout_s": -1.0}, "--elastic-timeout is -1.0; it must be 0 or more seconds"),
        ({"resize_interval_s": math.nan}, "--resize-interval is nan; it must be 0 or more"),
        ({"resize_interval_s": math.inf}, "--resize-interval is inf"),
        ({"reset_limit": -1}, "--reset-limit is -1; it must be 0 or more"),
    ],
)
def test_options_out_of_range(more: dict[str, Any], message: str) -> None:
    _options(first_workers=8, timeout_s=0.0, resize_interval_s=0.0, reset_limit=0)
    with pytest.raises(LaunchError, match=message):
        _options(**more)


@pytest.mark.parametrize(
    ("hosts", "current", "most", "workers"),
    [
        ({}, {}, 8, {}),
        ({}, {"a": 2}, 8, {}),
        ({"a": 2, "b": 2}, {}, 8, {"a": 2, "b": 2}),
        ({"a": 2, "b": 2}, {}, 3, {"a": 2, "b": 1}),
        ({"a": 2, "b": 2}, {}, 2, {"a": 2}),
        # Those that train already come first, with rank 0 on the first of them.
        ({"a": 2, "b": 2}, {"b": 2}, 8, {"b": 2, "a": 2}),
        ({"c": 1, "a": 2, "b": 2}, {"b": 2, "a": 1}, 4, {"b": 2, "a": 2}),
        ({"c": 1, "a": 2}, {"b": 2, "a": 1}, 8, {"a": 2, "c": 1}),
    ],
)
def test_workers_fill_hosts_in_the_order_that_there_is(
    hosts: dict[str, int], current: dict[str, int], most: int, workers: dict[str, int]
) -> None:
    found = assign_workers(hosts, current=current, max_workers=most)
    assert found == workers
    assert list(found) == list(workers)


@pytest.mark.parametrize(
    ("hosts", "stable_s", "running_s", "is_due"),
    [
        ({"a": 2, "b": 1}, 99.0, 99.0, False),  # nothing has changed
        ({"a": 2, "b": 2}, 99.0, 99.0, True),
        ({"a": 2, "b": 1, "c": 1}, 99.0, 99.0, True),
        ({"c": 1, "b": 2, "a": 2}, 3.0, 60.0, True),
        ({"a": 2, "b": 1, "c": 1}, 2.9, 99.0, False),  # more may be about to come
        ({"a": 2, "b": 1, "c": 1}, 99.0, 59.9, False),  # it has begun only just now
        ({"b": 1, "a": 2}, 99.0, 99.0, False),  # in another order
        # What goes away is left soon, however short the workers have run.
        ({"a": 2}, 3.0, 0.0, True),
        ({"a": 1, "b": 1}, 3.0, 0.0, True),
        ({"a": 2, "c": 8}, 3.0, 0.0, True),
        ({"a": 2}, 2.9, 99.0, False),  # it may be missing in one answer
        ({}, 99.0, 99.0, False),  # nowhere to go on
    ],
)
def test_when_a_job_changes(
    hosts: dict[str, int], stable_s: float, running_s: float, is_due: bool
) -> None:
    found = is_resize_due(
        hosts,
        current={"a": 2, "b": 1},
        options=_options(settle_s=3.0, resize_interval_s=60.0),
        stable_s=stable_s,
        running_s=running_s,
    )
    assert found is is_due


def test_a_job_that_has_all_workers_it_may_have_stays() -> None:
    hosts = {"a": 2, "b": 9}
    for most, is_due in ((3, False), (4, True)):
        options = _options(max_workers=most)
        now = {"stable_s": 99.0, "running_s": 99.0}
        assert is_resize_due(hosts, current={"a": 2, "b": 1}, options=options, **now) is is_due


def test_hosts_that_have_failed_may_be_gone_or_new() -> None:
    options = RestartOptions(max_restarts=9, min_workers=1)
    failures = [Failure(host, 0.0, progressed=False, stepped=True) for host in "aabb"]
    for hosts in ({"c": 1}, {"c": 1, "d": 3}):
        assert workers_after(failures, options, hosts=hosts, now_s=1.0) == hosts
    assert workers_after(failures, options, hosts={"c": 1, "b": 2}, now_s=1.0) == {"c": 1}
    assert workers_after(failures, options, hosts={}, now_s=1.0) == {}


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_cooldown_out_of_range(bounds: tuple[float, float]) -> None:
    RestartOptions(first_exclusion_s=1.0, longest_exclusion_s=1.0)
    with pytest.raises(LaunchError, match="--blacklist-cooldown-range is .*; expected two numbers"):
        RestartOptions(first_exclusion_s=bounds[0], longest_exclusion_s=bounds[1])
