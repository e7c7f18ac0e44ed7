"""Fixtures that tests share, and those that hold for all: none leaves anything behind."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests import fork_server
from tests.group import ROOT, Groups
from tests.hosts import sshd, stand_in
from tfddl._src.cluster import ports

# How long an example takes is the machine's; what must be soon has a test of its own.
settings.register_profile("tfddl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tfddl")

# Of the files that share groups, these are the second part.
_OTHER_GROUPS = ("test_resume", "test_s")
_PATIENCE_S = 40.0
# These live until the session ends: the groups' workers, what they are forked from, and
# multiprocessing's own helper.
_LONG_LIVED = ("tests.fork_server", "multiprocessing.resource_tracker")
_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# pytest's own, and those that importing TensorFlow and Keras sets.
_OTHERS_VARIABLES = ("PYTEST_", "TF2_", "TPU_ML_", "KMP_", "HDF5_", "ENABLE_RUNTIME_UPTIME_")

# Hundreds of processes would each compile what they import. Modules with a defect must be.
if "TFDDL_TEST_MUTANT" not in os.environ:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class _Scheduling(LoadScopeScheduling):
    """Keeps a file in one process, and the files that share groups of workers in two.

    Starting groups takes seconds, in each process that has them. All that shares groups takes more
    than half of the whole: one process would still be at it when the other has done the rest.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return ("groups", "other groups", file)[_place(file)]


@functools.cache
def _place(file: str) -> int:
    """Of a file in the order of all: 0 and 1 share groups of workers, 2 doesn't."""
    if "groups: Groups" not in (ROOT / file).read_text():
        return 2
    return int(Path(file).name.startswith(_OTHER_GROUPS))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share groups come first: two long parts; then what either process comes to."""
    items.sort(key=lambda item: _place(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def _adopted_orphans() -> Iterator[None]:
    """Makes processes whose parent has died children of pytest, so that they are found.

    Such a process stays a zombie once it is dead: a test that waits for it asks `is_running`
    of `tests.processes`, not `os.kill(pid, 0)`.
    """
    fork_server.adopt_orphans()
    yield
    fork_server.close()
    left = {pid: name for pid, name in _children().items() if "resource_tracker" not in name}
    _kill(left)
    assert not left, f"the tests left processes behind: {left}"


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_children() -> Iterator[None]:
    """Lets children be interrupted though pytest was started by `nohup … &`.

    What is ignored stays so across exec, and what has a handler becomes the default again.
    """
    ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def _ports_of_our_own() -> Iterator[None]:
    """Keeps two processes of pytest-xdist from choosing the same ports at once.

    Launchers choose among all, and start again on others where one is taken.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = ports._candidates()[number::count]
    with mock.patch.object(ports, "_candidates", return_value=ours):
        yield


@pytest.fixture(scope="session")
def groups(
    _adopted_orphans: None, _signals_reach_children: None, _ports_of_our_own: None
) -> Iterator[Groups]:
    """Real worker processes that many tests share."""
    made = Groups()
    yield made
    made.close()


@pytest.fixture(params=["stand-in", "sshd"])
def ssh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What stands for ssh, or ssh itself with a real sshd behind it."""
    if request.param == "stand-in":
        yield stand_in(tmp_path / "ssh")
    else:
        with sshd(tmp_path / "ssh", address="0.0.0.0") as command:
            yield command


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    variables = _variables()
    before = set(_children())
    yield
    left = _wait_for_end(before)
    _kill(left)
    assert not left, f"the test left processes behind: {left}"
    changed = {name for name, _ in variables.items() ^ _variables().items()}
    assert not changed, f"the test changed environment variables: {sorted(changed)}"


def _variables() -> dict[str, str]:
    return {n: value for n, value in os.environ.items() if not n.startswith(_OTHERS_VARIABLES)}


def _wait_for_end(before: set[int]) -> dict[int, str]:
    """The processes that are new, live on, and shouldn't."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        left = {
            pid: name
            for pid, name in _children().items()
            if pid not in before and not any(word in name for word in _LONG_LIVED)
        }
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _children() -> dict[int, str]:
    """The children of this process that are not zombies, with their command lines."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            for pid in (task / "children").read_text().split():
                line = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a zombie
                if line:
                    found[int(pid)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def _kill(processes: dict[int, str]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
