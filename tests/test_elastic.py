"""The starts of an elastic job: without processes, on a clock of the test's."""

import signal
from collections.abc import Mapping
from typing import Any

import pytest

from tfddl._src.heartbeat import SAVED_STATUS, WorkerFlags, WorkerProgress
from tfddl._src.launcher.elastic_policy import ElasticOptions
from tfddl._src.launcher.elastic_recovery import ElasticRecovery
from tfddl._src.launcher.fleet import UnreachableError
from tfddl._src.launcher.report import Outcome, WorkerExit
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl._src.launcher.signals import Signals
from tfddl.errors import LaunchError


class Clock(Signals):
    """Time that passes only where somebody waits; a signal ends the waiting at `interrupted_s`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.interrupted_s = 1000.0, float("inf")

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> bool:
        self.now_s += duration_s
        return self.now_s < self.interrupted_s


class Hosts:
    """A discovery by a table: from when on there are which hosts."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.num_pauses = clock, 0
        self.table: dict[float, dict[str, int]] = {}

    def find_hosts(self) -> Mapping[str, int] | None:
        begun = [at_s for at_s in self.table if at_s <= self.clock.now_s]
        return self.table[max(begun)] if begun else None

    def pause(self) -> None:
        self.num_pauses += 1


class Job:
    """A recovery with all that it needs."""

    def __init__(self, clock: Clock, restarts: RestartOptions | None = None, **more: Any) -> None:
        self.clock, self.hosts, self.said = clock, Hosts(clock), list[str]()
        given: dict[str, Any] = {"min_workers": 2, "max_workers": 6, "first_workers": 2, **more}
        options = ElasticOptions(self.hosts, **given)
        self.recovery = ElasticRecovery(
            options, restarts or RestartOptions(max_restarts=2), say=self.said.append
        )

    def start(self, hosts: dict[str, int]) -> dict[str, int]:
        """The workers of a start, where these hosts are there."""
        self.hosts.table[self.clock.now_s] = hosts
        assert self.recovery.wait_to_start(self.clock)
        return self.recovery.workers

    def resize(self, outcome: Outcome) -> str:
        return self.recovery.resize(outcome, now_s=self.clock.now_s)

    def fail(self, host: str) -> str:
        end = WorkerExit(0, 3, 1.0, (), ended_with=None, host=host)
        outcome = Outcome(exits=(end,), root=end, interrupted_by=None, num_oom_kills=0)
        assert not self.resize(outcome)
        return self.recovery.start_again(outcome, now_s=self.clock.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    return clock


def _saved(*sigterm: str, **more: Any) -> Outcome:
    """All workers have saved, those of some hosts since SIGTERM had come to them."""
    ends = []
    for rank, host in enumerate(("a", "b")):
        flags = WorkerFlags.PREEMPTED
        if host in sigterm:
            flags |= WorkerFlags.GOT_SIGTERM
        reading = WorkerProgress(steps=7, step=7, flags=flags)
        end = WorkerExit(rank, SAVED_STATUS, 1.0, (), ended_with=None, host=host, reading=reading)
        ends.append(end)
    given: dict[str, Any] = {"root": None, "interrupted_by": None, "num_oom_kills": 0, **more}
    return Outcome(exits=tuple(ends), **given)


def test_it_waits_for_hosts_of_enough_workers(clock: Clock) -> None:
    job = Job(clock, first_workers=4)
    job.hosts.table = {1001.0: {}, 1031.0: {"a": 3}, 1045.0: {"a": 3, "b": 2}}
    assert job.recovery.wait_to_start(clock)
    assert job.recovery.workers == {"a": 3, "b": 2}
    assert clock.now_s == pytest.approx(1045.0, abs=0.2)
    assert job.said == [
        "waiting for hosts, 570 s more: there are hosts for 0 workers (none), and at least 4 are "
        "needed (-np)",
        "the hosts are now a:3",
        "the hosts are now a:3,b:2",
    ]
    assert job.hosts.num_pauses == 1
    assert job.recovery.starts_again


def test_it_does_not_wait_for_ever(clock: Clock) -> None:
    job = Job(clock, timeout_s=20.0)
    job.hosts.table = {0.0: {"a": 1}}
    message = (
        r"after 20 s there are hosts for 1 workers \(a:1\), and at least 2 are needed "
        r"\(--min-np\). HINT: what does the host discovery script print"
    )
    with pytest.raises(LaunchError, match=message):
        job.recovery.wait_to_start(clock)
    assert clock.now_s == pytest.approx(1020.0, abs=0.2)
    assert job.hosts.num_pauses == 1


def test_a_signal_ends_the_waiting(clock: Clock) -> None:
    job = Job(clock)
    clock.interrupted_s = 1003.0
    assert not job.recovery.wait_to_start(clock)
    assert clock.now_s == pytest.approx(1003.0, abs=0.2)


def test_hosts_that_come_and_go(clock: Clock) -> None:
    job = Job(clock, settle_s=3.0, resize_interval_s=60.0)
    assert job.start({"a": 2}) == {"a": 2}
    begun_s = clock.now_s
    job.hosts.table |= {begun_s + 50: {"b": 2, "a": 2}, begun_s + 58: {"b": 2, "a": 2, "c": 9}}
    due_s = None
    while due_s is None:
        clock.now_s += 0.5
        due_s = clock.now_s if job.recovery.is_due() else None
    assert due_s == pytest.approx(begun_s + 61, abs=0.5)  # c has been there for three seconds
    assert job.resize(_saved()) == (
        "saved (step 7 of epoch 1); starting again on the hosts that there are now"
    )
    assert job.start({"b": 2, "a": 2, "c": 9}) == {"a": 2, "b": 2, "c": 2}
    assert job.said[-1] == "with 6 workers instead of 2: a:2,b:2,c:2"
    assert job.recovery.num_restarts == 1
    # It counts as no failure: two may follow, and the third is one too many.
    assert not job.recovery.is_due()
    job.hosts.table[clock.now_s] = {"b": 2, "c": 9}
    assert not job.recovery.is_due()  # The next answer may have a again.
    clock.now_s += 3.0
    assert job.recovery.is_due()
    assert job.resize(_saved())
    assert job.start({"b": 2, "c": 9}) == {"b": 2, "c": 4}
    assert "starting again on other ports, in 1 s (restart 1 of 2)" in job.fail("c")
    assert job.fail("a") == "a is gone; starting again on the hosts that there are now"
    assert job.recovery.backoff_s == 0.0
    assert "starting again on other ports, in 2 s (restart 2 of 2)" in job.fail("b")
    assert job.recovery.num_restarts == 5
    assert job.fail("b") == ""


def test_fewer_than_enough_wait_for_more(clock: Clock) -> None:
    job = Job(clock, first_workers=3)
    job.start({"a": 2, "b": 1})
    assert job.resize(_saved())
    job.hosts.table |= {clock.now_s: {"b": 1}, clock.now_s + 9: {"b": 1, "d": 1}}
    assert not job.recovery.is_due()
    clock.now_s += 3
    assert job.recovery.is_due()
    assert job.recovery.wait_to_start(clock)
    assert job.recovery.workers == {"b": 1, "d": 1}  # --min-np is enough, -np was for the first


def test_a_host_that_keeps_failing_is_left_out(clock: Clock) -> None:
    restarts = RestartOptions(max_restarts=9, first_exclusion_s=30.0, longest_exclusion_s=40.0)
    job = Job(clock, restarts, resize_interval_s=0.0)
    both = {"a": 2, "b": 2}
    job.start(both)
    assert job.fail("b")
    assert job.start(both) == both
    assert job.fail("b")
    assert job.start(both) == {"a": 2}
    clock.now_s += 20.0
    assert not job.recovery.is_due()
    clock.now_s += 20.0
    assert job.recovery.is_due()  # It may come back.
    assert job.recovery.backoff_s == 2.0
    assert job.resize(_saved())
    assert job.recovery.backoff_s == 0.0
    assert job.start(both) == both


def test_a_host_that_gets_sigterm_is_left(clock: Clock) -> None:
    job = Job(clock)
    both = {"a": 2, "b": 2}
    job.start(both)
    assert job.resize(_saved("a")) == (
        "saved (step 7 of epoch 1), by SIGTERM to a worker; going on without a for 60 s"
    )
    assert job.start(both) == {"b": 2}
    clock.now_s += 61
    assert job.recovery.is_due()
    # But not where tfddlrun itself has got it, a worker has failed, or nobody else is left.
    failed = WorkerExit(1, 3, 1.0, (), ended_with=None, host="b")
    for more in ({"interrupted_by": signal.SIGTERM}, {"root": failed}):
        assert job.resize(_saved("a", **more)) == ""
    assert job.resize(_saved("a", "b")) == ""


def test_hosts_that_can_not_take_part_are_left_out(clock: Clock) -> None:
    job = Job(clock, resize_interval_s=0.0)
    both = {"a": 2, "b": 2}
    assert job.start(both) == both
    lost = UnreachableError({"b": "can't reach b by ssh"})
    for for_s in (60, 120):
        assert job.recovery.leave_out(lost, now_s=clock.now_s) == (
            f"can't reach b by ssh\ngoing on without b for {for_s} s"
        )
        assert job.start(both) == {"a": 2}
    # Another error is that of hosts that have come only now; before any start, it is the job's.
    other = LaunchError("a can't resolve c")
    assert job.recovery.leave_out(other, now_s=clock.now_s) == ""
    assert job.resize(_saved())
    job.start({"a": 2, "c": 1})
    assert job.recovery.leave_out(other, now_s=clock.now_s).endswith("without c for 60 s")
    assert job.start({"a": 2, "c": 1}) == {"a": 2}
    assert job.recovery.leave_out(other, now_s=clock.now_s) == ""


def test_the_reset_limit_counts_everything(clock: Clock) -> None:
    job = Job(clock, RestartOptions(max_restarts=9), reset_limit=2, resize_interval_s=0.0)
    job.start({"a": 2})
    assert job.fail("a")
    job.start({"a": 2, "b": 2})
    assert job.resize(_saved("b"))
    job.start({"a": 2, "b": 2, "c": 2})
    clock.now_s += 99
    assert not job.recovery.is_due()
    assert job.resize(_saved("a")) == ""
    assert job.fail("a") == ""
    assert job.said[-1] == "--reset-limit is 2: no other start"
