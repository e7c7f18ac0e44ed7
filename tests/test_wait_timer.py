"""When a wait is reported, warned of, and given up; with a clock that the test sets."""

import math

import pytest

from tfddl._src import wait_timer
from tfddl._src.wait_timer import WaitTimer


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wait_timer, "time", clock)
    return clock


def _events(timer: WaitTimer, clock: Clock, until_s: int) -> dict[str, list[int]]:
    """The seconds at which each is due, asked once a second."""
    found: dict[str, list[int]] = {"report": [], "warn": [], "expired": []}
    for second in range(until_s + 1):
        clock.now_s = 1000.0 + second
        assert timer.elapsed_s == second
        for name, is_due in (
            ("report", timer.should_report()),
            ("warn", timer.should_warn()),
            ("expired", timer.is_expired()),
        ):
            if is_due:
                found[name].append(second)
    return found


@pytest.mark.parametrize(
    ("warn_s", "abort_s", "report", "warn", "expired"),
    [
        (10.0, 25.0, [9], [10, 20, 30], [25, 26, 27, 28, 29, 30]),
        (20.0, 10.0, [9], [20], list(range(10, 31))),  # Reported before whichever is first.
        (0.0, 20.0, [18], [], list(range(20, 31))),  # 0 is never.
        (20.0, 0.0, [18], [20], []),
        (0.0, 0.0, [], [], []),
    ],
)
def test_what_is_due_when(  # noqa: PLR0913
    clock: Clock,
    warn_s: float,
    abort_s: float,
    report: list[int],
    warn: list[int],
    expired: list[int],
) -> None:
    timer = WaitTimer(warn_s=warn_s, abort_s=abort_s)
    assert timer.abort_s == abort_s
    events = _events(timer, clock, until_s=30)
    assert events == {"report": report, "warn": warn, "expired": expired}
    assert timer.has_reported == bool(report)


def test_a_warning_that_is_late_is_not_made_up_for(clock: Clock) -> None:
    timer = WaitTimer(warn_s=10.0)
    clock.now_s += 35.0
    assert timer.should_warn()
    assert not timer.should_warn()
    clock.now_s += 10.0
    assert timer.should_warn()


def test_time_that_remains(clock: Clock) -> None:
    timer = WaitTimer(abort_s=5.0)
    assert timer.remaining_s == 5.0
    clock.now_s += 7.0
    assert timer.remaining_s == -2.0
    assert timer.is_expired(grace_s=2.0)
    assert not timer.is_expired(grace_s=2.5)
    assert WaitTimer().remaining_s == math.inf
