"""TensorFlow's server runs only where it is used: real jobs, and the ports that they open."""

import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import ROOT, WorkerGroup, on_one_host, workers
from tests.hosts import HERE
from tests.launching import launch, of_ranks
from tests.unauthenticated_clients import attacking
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.ports import free_ports

SCRIPT = ROOT / "tests" / "scripts" / "no_server.py"


def _run(*arguments: str, flags: tuple[str, ...], size: int) -> tuple[list[dict[str, Any]], str]:
    """What each rank has found, and what was said beside it."""
    done = launch(*flags, sys.executable, str(SCRIPT), *arguments, cwd=ROOT, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = of_ranks(done.stdout.splitlines(), r"\{", size)
    return [json.loads(line) for line in lines], done.stderr


def _check_alike(found: list[dict[str, Any]]) -> None:
    size = len(found)
    for one in found:
        assert one["sum"] == sum(range(1, size + 1))
        assert one["rows"] == [rank for rank in range(size) for _ in range(rank + 1)]
        assert one["weights"] == found[0]["weights"]
        assert one["loss"] == found[0]["loss"]


def _started(*arguments: str, clusters: Sequence[Cluster], logs: Path) -> list[dict[str, Any]]:
    """What workers that nobody has launched have found."""
    with workers(SCRIPT.read_text(), clusters, logs, *arguments) as processes:
        codes = [process.wait(timeout=150) for process in processes]
    texts = [(logs / str(cluster.rank)).read_text() for cluster in clusters]
    assert codes == [0] * len(clusters), texts
    return [
        json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")
    ]


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    logs = tmp_path_factory.mktemp("logs")
    return _started("early", "strategy", clusters=on_one_host(2), logs=logs)


@pytest.fixture(scope="module")
def late() -> tuple[list[dict[str, Any]], str]:
    return _run("late", "strategy", flags=("-np", "2"), size=2)


def test_the_strategy_is_made_of_tf_config(early: list[dict[str, Any]]) -> None:
    _check_alike(early)
    for rank, one in enumerate(early):
        assert one["before"] == []
        assert one["cluster"] == one["addresses"]
        assert one["replicas"] == 2
        # Its server, at the address that TF_CONFIG has for this rank, and nothing else.
        assert one["listening"] == [int(one["addresses"][rank].rpartition(":")[2])]


def test_init_may_come_after_operations(
    early: list[dict[str, Any]], late: tuple[list[dict[str, Any]], str]
) -> None:
    """Models, optimizers, Dropout and datasets made before train as those made after."""
    found, said = late
    _check_alike(found)
    np.testing.assert_allclose(found[0]["loss"], early[0]["loss"], rtol=1e-6)
    for one, first in zip(found[0]["weights"], early[0]["weights"], strict=True):
        np.testing.assert_allclose(one, first, rtol=1e-5, atol=1e-7)
    for rank in range(2):
        warnings = [
            line
            for line in said.splitlines()
            if f"rank {rank}: operations of TensorFlow ran before tfddl.init()" in line
        ]
        assert len(warnings) == 1, said
        assert "its numbers of threads stay as they are, instead of 1 within an" in warnings[0]


def test_on_one_host_nothing_listens(late: tuple[list[dict[str, Any]], str]) -> None:
    """Neither TensorFlow nor we: workers of one host find each other by Unix sockets."""
    assert [one["listening"] for one in late[0]] == [[], []]


def test_a_strategy_that_comes_too_late(late: tuple[list[dict[str, Any]], str]) -> None:
    """It is an error, and the job goes on without it."""
    for one in late[0]:
        assert one["error"].startswith(
            "StartError: tfddl.strategy() was called, which starts TensorFlow's servers, but on "
            "ranks 0..1 operations of TensorFlow have run before. HINT: move "
        )
        assert re.search(r"no_server\.py, line \d+\) to the top of the script", one["error"])


def test_ring_stays_an_error_after_operations(late: tuple[list[dict[str, Any]], str]) -> None:
    """On all ranks, though only one is late; and what is refused leaves nothing behind."""
    for one in late[0]:
        assert one["ring"].startswith("StartError: rank 1 can't start: Operations of TensorFlow ha")
        assert "HINT: move tfddl.init() to the top of the script" in one["ring"]


@pytest.mark.long
def test_a_strategy_on_one_rank_alone() -> None:
    found, _ = _run("early", "one rank", flags=("-np", "2"), size=2)
    _check_alike(found)
    assert found[0]["error"].startswith("StalledError: gave up after 30 s: rank 0 waits in tfddl.")
    assert found[0]["error"].endswith("which all ranks must call together; these haven't: 1")


def test_between_hosts_only_our_own_ports_listen(tmp_path: Path) -> None:
    """Rank 0 at the address of TF_CONFIG, and each worker where it meets the other hosts."""
    first, *others = free_ports(3)
    addresses = (f"{HERE[0]}:{first}", f"{HERE[0]}:{others[0]}", f"{HERE[1]}:{others[1]}")
    clusters = [Cluster(addresses, rank) for rank in range(3)]
    found = _started("late", "nothing", clusters=clusters, logs=tmp_path)
    _check_alike(found)
    assert first in found[0]["listening"]
    assert [len(one["listening"]) for one in found] == [2, 1, 1]


def test_strangers_neither_stop_nor_join_a_job() -> None:
    """While it starts, and afterwards: rank 0 listens as long as it lives."""
    group = WorkerGroup(3, hosts=(2, 1), with_strategy=False)
    host, _, port = group.addresses[0].rpartition(":")
    try:
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(group.start)
            with attacking((host, int(port))):
                started.result(timeout=150)
                found = group.run("tests.cases.ordering:wrong", sets=[(0, 2), (1, 2)])
        assert found == [[]] * 3
    finally:
        group.close()
