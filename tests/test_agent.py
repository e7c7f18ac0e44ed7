"""The agent of a host without a supervisor, and a worker's handle without an agent."""

import os
import selectors
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.launching import worker
from tests.processes import wait_until
from tfddl._src.launcher import agent as module
from tfddl._src.launcher.agent import Agent, start_message
from tfddl._src.launcher.frames import Unpacker, pack
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.log_sink import LogSink
from tfddl._src.launcher.output import Console, Stream
from tfddl._src.launcher.plan import ProcessPlan, local_allocation, plan_processes
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.worker_handle import WorkerHandle


class _Reports:
    """An agent, and what it has sent, as it arrives on another host."""

    def __init__(self, store: HostStore) -> None:
        self.found: list[dict[str, Any]] = []
        self._unpacker = Unpacker()
        self.agent = Agent(
            self._take, selector=selectors.PollSelector(), environment={}, store=store
        )

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [report for report in self.found if report["is"] == kind]

    def start(self, script: str) -> None:
        (plan,) = plan_processes(
            worker(script), allocations=[local_allocation((500,))], environment=os.environ
        )
        ((message, _),) = Unpacker().feed(pack(start_message(plan)))
        self.agent.receive(message)

    def wait_for(self, kind: str, count: int = 1) -> None:
        def has_come() -> bool:
            self.agent.turn(0.01)
            return len(self.of(kind)) >= count

        wait_until(has_come)

    def _take(self, message: dict[str, Any], data: bytes = b"") -> None:
        for report, payload in self._unpacker.feed(pack(message, data)):
            self.found.append({**report, "data": payload})


@pytest.fixture
def reports() -> Iterator[_Reports]:
    with closing(HostStore()) as store:
        found = _Reports(store)
        yield found
        found.agent.receive({"do": "reap", "worker": 0})
        assert not found.agent.has_workers


def test_output_that_is_held_is_not_lost(
    reports: _Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may have ended long before its output can be sent."""
    monkeypatch.setattr(module, "_DRAIN_S", 0.0)
    reports.agent.hold_output(True)
    reports.start("sys.stdout.write('x' * 60_000); sys.exit(3)")
    reports.wait_for("ended")
    assert reports.of("ended")[0]["returncode"] == 3
    for _ in range(3):
        reports.agent.turn(0.01)
    assert not reports.of("output") + reports.of("closed")
    reports.agent.hold_output(False)
    reports.wait_for("closed", 2)
    assert b"".join(report["data"] for report in reports.of("output")) == b"x" * 60_000


def test_orders_for_a_worker_that_is_gone_do_nothing(reports: _Reports) -> None:
    for order in ("signal", "show stacks", "save", "reap"):
        reports.agent.receive({"do": order, "worker": 7, "number": signal.SIGKILL})
    reports.start("time.sleep(60)")
    reports.agent.receive({"do": "save", "worker": 0})  # It can't.
    assert not reports.agent.ask_to_save()
    reports.agent.receive({"do": "signal", "worker": 0, "number": signal.SIGKILL})
    reports.wait_for("ended")
    assert reports.of("ended")[0]["returncode"] == -signal.SIGKILL
    # Its number may be another process's, once it is reaped.
    reports.agent.receive({"do": "reap", "worker": 0})
    reports.agent.receive({"do": "signal", "worker": 0, "number": signal.SIGKILL})
    assert len(reports.of("closed")) == 2


def test_a_worker_that_has_ended_is_not_lost_with_its_host() -> None:
    orders: list[dict[str, Any]] = []
    plan = ProcessPlan(rank=0, argv=("true",), environment={}, host="a")
    handle = WorkerHandle(plan, [], send=orders.append)
    handle.receive({"is": "ended", "worker": 0, "returncode": 3}, b"")
    ended_s = handle.ended_s
    handle.lose("the connection has ended", last_heard_s=0.0)
    assert (handle.returncode, handle.lost, handle.ended_s) == (3, None, ended_s)
    assert not handle.was_lost_before(1.0)
    handle.signal_group(signal.SIGTERM)
    assert orders == [{"do": "signal", "worker": 0, "number": signal.SIGTERM}]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_cuda_s_failure_is_shown_where_the_worker_s_host_has_a_gpu(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "has_gpu", lambda: has_gpu)
    failure = "E0000 00:00:1.2    3 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)"
    plan = ProcessPlan(rank=0, argv=("true",), environment={"TF_CPP_MIN_LOG_LEVEL": "1"}, host="a")
    with (
        Signals() as signals,
        (tmp_path / "shown").open("w+") as shown,
        closing(HostStore()) as store,
    ):
        console = Console(signals, stdout_fd=shown.fileno(), stderr_fd=shown.fileno())
        sinks = [LogSink(plan, s, console=console, log_folder=None) for s in Stream]
        handle = WorkerHandle(plan, sinks, send=lambda message: None)
        reports = _Reports(store)
        reports.start(f"print({failure!r}, file=sys.stderr)")
        reports.wait_for("closed", 2)
        reports.agent.receive({"do": "reap", "worker": 0})
        for report in reports.found:
            handle.receive(report, report["data"])
        text = shown.seek(0) or shown.read()
    assert text == (f"[0] {failure}\n" if has_gpu else "")
    assert list(sinks[1].tail()) == ([failure] if has_gpu else [])
