"""The numbers that a launcher gives one of its processes, and the clusters that follow."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.cluster.environments import mpi
from tfddl._src.cluster.task import Task, build_local_cluster, build_partial_cluster
from tfddl.errors import ClusterError


def _task(
    rank: int,
    size: int,
    local_rank: int | None = None,
    local_size: int | None = None,
    *,
    job: str = "",
) -> Task:
    return Task("Some MPI", rank, size, local_rank, local_size, job, "X_RANK")


@pytest.mark.parametrize(
    "numbers",
    [(0, 1), (3, 4), (3, 4, 0), (3, 4, 3), (3, 4, 1, 2), (3, 4, 3, 4), (3, 4, None, 1)],
)
def test_numbers_that_agree(numbers: tuple[int, ...]) -> None:
    task = _task(*numbers)
    assert task.is_on_one_host == (len(numbers) == 4 and numbers[3] == 4)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0), "Some MPI's variables: size is 0 (X_RANK)"),
        ((4, 4), "rank is 4 among 4 workers; it must be 0..3 (X_RANK)"),
        ((-1, 4), "rank is -1 among 4 workers; it must be 0..3"),
        ((0, 4, 2, 2), "local rank is 2 among 2 workers of a host, of 4 in all; they contradict"),
        ((0, 4, 4), "local rank is 4 among None workers of a host, of 4 in all"),
        ((0, 4, -1, 2), "local rank is -1 among 2 workers of a host, of 4 in all"),
        ((0, 4, 0, 5), "local rank is 0 among 5 workers of a host, of 4 in all"),
        ((0, 4, None, 0), "local rank is None among 0 workers of a host, of 4 in all"),
    ],
)
def test_numbers_that_contradict_each_other(numbers: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        _task(*numbers)


def test_all_on_this_host() -> None:
    addresses = ("127.0.0.1:700", "127.0.0.1:701", "127.0.0.1:702")
    for local_rank in (None, 1):  # Some don't say it, and then it follows.
        task = _task(1, 3, local_rank, 3, job="j")
        assert build_local_cluster(task, {}, first_port=700) == Cluster(addresses, 1, "j")
        assert build_local_cluster(task, {"TFDDL_PORT": "700"}) == Cluster(addresses, 1, "j")
    assert build_local_cluster(task, {}).addresses[0] == "127.0.0.1:12345"
    with pytest.raises(ClusterError, match="local rank is 2 for rank 1, though all 3 workers are"):
        build_local_cluster(_task(1, 3, 2, 3), {})


@pytest.mark.parametrize(("local_rank", "local_size"), [(None, None), (0, 3), (None, 3)])
def test_a_loopback_master_where_all_are_on_one_host(
    local_rank: int | None, local_size: int | None
) -> None:
    found = build_partial_cluster(
        _task(0, 3, local_rank, local_size), "localhost:1", said_by="X_ADDR"
    )
    assert found == PartialCluster(
        0, 3, "localhost:1", local_rank, local_size, source="X_RANK, X_ADDR"
    )


@pytest.mark.parametrize("master", ["localhost:1", "LocalHost:1", "[::1]:1", "127.9.9.9:1"])
def test_a_loopback_master_of_several_hosts_is_refused(master: str) -> None:
    task = _task(0, 3, 0, 1)
    message = f"X_ADDR gives {master} as the address of rank 0, which on each host means that host"
    with pytest.raises(ClusterError, match=re.escape(message)):
        build_partial_cluster(task, master, said_by="X_ADDR")
    for other in ("hostA:1", "128.0.0.1:1", "[::2]:1", "localhost2:1"):
        assert build_partial_cluster(task, other, said_by="X_ADDR").master == other


def test_addresses_at_their_bounds() -> None:
    assert len(Cluster(("a" * 255 + ":1", "a:65535"), 0).hosts) == 2
    with pytest.raises(ClusterError, match="its port must be a number"):
        Cluster(("a:1]",), 0)


def _partial(
    master: str,
    rank: int,
    size: int,
    local_rank: int | None = None,
    local_size: int | None = None,
) -> PartialCluster:
    return PartialCluster(rank, size, master, local_rank, local_size, source="X")


@pytest.mark.parametrize("numbers", [(0, 2), (1, 2), (3, 4, 3), (3, 4, 1, 2), (3, 4, 3, 4)])
def test_partial_clusters(numbers: tuple[int, ...]) -> None:
    cluster = _partial("a:1", *numbers)
    assert (cluster.rank, cluster.size, cluster.master) == (*numbers[:2], "a:1")


@pytest.mark.parametrize(
    ("master", "numbers", "message"),
    [
        ("a", (0, 2), "the address of rank 0 is 'a', without a port"),
        ("a:1", (0, 1), "size is 1 in X; it must be at least 2"),
        ("a:1", (2, 2), "rank is 2 among 2 workers in X; it must be 0..1"),
        ("a:1", (-1, 2), "rank is -1 among 2 workers in X; it must be 0..1"),
        ("a:1", (0, 2, 2), "local rank is 2 among None workers of a host, of 2 in all, in X"),
        ("a:1", (0, 4, 2, 2), "local rank is 2 among 2 workers of a host, of 4 in all, in X"),
        ("a:1", (0, 4, 0, 5), "local rank is 0 among 5 workers of a host, of 4 in all, in X"),
    ],
)
def test_partial_clusters_that_are_refused(
    master: str, numbers: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        _partial(master, *numbers)


def test_mpi_exchange_uses_the_port_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def exchange(size: int, **options: Any) -> str:
        asked.append({"size": size, **options})
        return "a:1"

    monkeypatch.setattr("tfddl._src.cluster.environments.mpi_address.exchange", exchange)
    for local_rank, environ in ((0, {}), (None, {"TFDDL_PORT": "77"}), (1, {})):
        found = mpi.find_master(_task(3, 4, local_rank), environ)
        assert found == ("a:1", "mpi4py")
    assert [(one["port"], one["tries"]) for one in asked] == [(0, True), (77, True), (0, False)]
    assert {(one["size"], one["source"]) for one in asked} == {(4, "X_RANK")}


@pytest.mark.parametrize("name", ["PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_incomplete_mpi_variables_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="is not set; expected a number"):
        mpi.find({name: "1"})


def test_the_hint_has_the_right_number_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tfddl._src.cluster.environments.mpi_address.exchange", lambda *_, **__: None
    )
    for local_size, slots in ((None, "hostA:1,hostB:3"), (3, "hostA:3,hostB:1")):
        with pytest.raises(ClusterError, match=f"TFDDL_HOSTS={slots} …"):
            mpi.build_cluster(_task(0, 4, 0, local_size), {})


def test_slots_of_hosts() -> None:
    hosts = {"TFDDL_HOSTS": "a:2,b:1"}
    addresses = ("a:12345", "a:12346", "b:12345")
    for local_rank in (0, None):
        assert mpi.build_cluster(_task(2, 3, local_rank), hosts) == Cluster(addresses, 2)
    with pytest.raises(ClusterError, match="65536 slots, but Some MPI started 3 workers"):
        mpi.build_cluster(_task(2, 3), {"TFDDL_HOSTS": "a:65536"})
    with pytest.raises(ClusterError, match="names more than 65536 workers"):
        mpi.build_cluster(_task(2, 3), {"TFDDL_HOSTS": "a:65536,b:1"})


def test_whether_the_mpi_launcher_has_ended(tmp_path: Path) -> None:
    assert mpi.is_launcher_gone({}) is False
    assert mpi.is_launcher_gone({"PMIX_SERVER_TMPDIR": str(tmp_path)}) is False
    assert mpi.is_launcher_gone({"PMIX_SERVER_TMPDIR": str(tmp_path / "gone")})
    reader, writer = os.pipe()
    held = os.dup2(reader, 200)
    for fd in (reader, writer):
        os.close(fd)
    assert mpi.is_launcher_gone({"PMI_FD": str(held)}) is False
    os.close(held)
    assert mpi.is_launcher_gone({"PMI_FD": str(held)})
    assert mpi.is_launcher_gone({"PMI_FD": "x"})
