"""The rendezvous, with workers as threads of one process: no TensorFlow."""

import concurrent.futures
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.unauthenticated_clients import attacking
from tfddl._src import rendezvous
from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.cluster.ports import free_ports, is_free
from tfddl._src.rendezvous import Rendezvous, base, handshake, server
from tfddl._src.rendezvous.base import Identity, dial, split_address
from tfddl._src.rendezvous.json_connection import JsonConnection
from tfddl.errors import (
    ClusterError,
    DisagreementError,
    PeerLostError,
    StalledError,
    StartError,
    TfddlError,
)

ONE_HOST, TWO_HOSTS = ("127.0.0.1",), ("127.0.0.1", "127.0.0.2")
SECRET = bytes(range(32))
TIMEOUT_S = 40.0


def _addresses(size: int, hosts: Sequence[str] = ONE_HOST) -> tuple[str, ...]:
    """Ranks in round-robin order over hosts, which are addresses of this machine."""
    return tuple(f"{hosts[i % len(hosts)]}:{port}" for i, port in enumerate(free_ports(size)))


def _clusters(size: int) -> list[Cluster]:
    addresses = _addresses(size)
    return [Cluster(addresses, rank) for rank in range(size)]


def _join(
    clusters: Sequence[Cluster | PartialCluster],
    *,
    secrets: Sequence[bytes] = (),
    timeout_s: float = TIMEOUT_S,
) -> list[Rendezvous | str]:
    """What each worker's `join` returned, or its error as text."""

    def one(number: int) -> Rendezvous | str:
        try:
            return rendezvous.join(
                clusters[number],
                secret=secrets[number] if secrets else b"",
                metadata={"number": number},
                timeout_s=timeout_s,
                warn_s=0.3,
            )
        except TfddlError as error:
            return f"{type(error).__name__}: {error}"

    with concurrent.futures.ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(one, range(len(clusters)), timeout=2 * TIMEOUT_S))


def _errors(found: Sequence[Rendezvous | str]) -> list[str]:
    _close(found)
    assert all(isinstance(one, str) for one in found), found
    return [str(one) for one in found]


def _close(found: Sequence[Rendezvous | str]) -> None:
    for one in found:
        if isinstance(one, Rendezvous):
            one.close()


@contextlib.contextmanager
def _joined(
    clusters: Sequence[Cluster | PartialCluster], **options: Any
) -> Iterator[list[Rendezvous]]:
    found = _join(clusters, **options)
    try:
        assert not [one for one in found if isinstance(one, str)], found
        yield [one for one in found if isinstance(one, Rendezvous)]
    finally:
        _close(found)


def _listening_ports() -> set[int]:
    """The TCP ports at which this process listens."""
    mine = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            mine.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    found = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/self/net/{name}") as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
                    found.add(int(words[1].rpartition(":")[2], 16))
    return found


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["open", "secret"])
@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS], ids=["one host", "two hosts"])
@pytest.mark.parametrize("size", [2, 3, 12])
def test_workers_get_the_metadata_of_all(size: int, hosts: Sequence[str], secret: bytes) -> None:
    addresses = _addresses(size, hosts)
    clusters = [Cluster(addresses, rank) for rank in reversed(range(size))]
    before = _listening_ports()
    with _joined(clusters, secrets=[secret] * size) as found:
        for number, one in enumerate(found):
            assert one.cluster == clusters[number]
            assert one.metadata == tuple({"number": n} for n in reversed(range(size)))
            assert one.secret == found[0].secret
            assert len(one.secret) == rendezvous.SECRET_BYTES
        port = int(addresses[0].rpartition(":")[2])
        # On one host there is nothing that could be reached from outside, otherwise one port.
        assert _listening_ports() - before == (set() if len(hosts) == 1 else {port})
        found[-1].stop_listening()
        assert _listening_ports() - before == set()
        found[0].put("after that", "the store stays")
        assert found[-1].get("after that") == "the store stays"


def test_each_job_has_a_secret_of_its_own() -> None:
    with _joined(_clusters(2)) as first:
        with _joined(_clusters(2)) as second:
            assert first[0].secret != second[0].secret


def test_jobs_of_one_address_with_other_names_or_secrets_stay_apart() -> None:
    addresses = _addresses(2)
    jobs = [("a", b""), ("b", b""), ("b", SECRET)]
    clusters = [Cluster(addresses, rank, name) for name, _ in jobs for rank in range(2)]
    with _joined(clusters, secrets=[secret for _, secret in jobs for _ in range(2)]) as found:
        assert [one.metadata[0]["number"] for one in found] == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("told", [True, False], ids=["local ranks", "no local ranks"])
@pytest.mark.parametrize("size", [2, 5])
def test_rank_0_collects_the_addresses(size: int, told: bool) -> None:
    [port] = free_ports(1)
    partial = [
        PartialCluster(rank, size, f"localhost:{port}", local_rank=rank if told else None, job="j")
        for rank in range(size)
    ]
    with _joined(partial) as found:
        addresses = found[0].cluster.addresses
        assert addresses[0] == f"127.0.0.1:{port}"
        assert len(set(addresses)) == size
        assert found[0].cluster.hosts == ("127.0.0.1",)
        assert [one.cluster for one in found] == [Cluster(addresses, r, "j") for r in range(size)]


def test_local_ranks_that_contradict_the_launcher() -> None:
    [port] = free_ports(1)
    partial = [PartialCluster(r, 2, f"localhost:{port}", local_rank=0) for r in range(2)]
    for message in _errors(_join(partial)):
        assert message.startswith("ClusterError: rank 1 has local rank 0 by its launcher")
        assert "but 1 by the addresses" in message
    assert issubclass(ClusterError, ValueError)


@pytest.mark.parametrize("other", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("number", [0, 1])
def test_workers_with_different_addresses_all_raise(other: str, number: int) -> None:
    """Also where one was told of one host, and the other of two."""
    first, second, third = _addresses(3)
    name = second.replace("127.0.0.1", other) if other == "localhost" else third
    told = [(first, second), (first, name)]
    for message in _errors(_join([Cluster(told[number], 0), Cluster(told[1 - number], 1)])):
        assert message.startswith(
            "DisagreementError: the workers have different descriptions of the cluster"
        )
        assert f"rank 0: {list(told[number])}" in message
        assert f"rank 1: {list(told[1 - number])}" in message
        assert "give every worker the same list" in message


def test_other_numbers_of_workers() -> None:
    addresses = _addresses(3)
    messages = _errors(_join([Cluster(addresses[:2], 0), Cluster(addresses, 2)]))
    assert all("different descriptions of the cluster" in message for message in messages)


@pytest.mark.parametrize(("hosts", "rank"), [(ONE_HOST, 0), (TWO_HOSTS, 1)])
def test_two_jobs_with_the_same_addresses(hosts: Sequence[str], rank: int) -> None:
    """The second rank of that number is refused, and the start of both ends."""
    addresses = _addresses(3, hosts)
    clusters = [Cluster(addresses, 0), Cluster(addresses, 1), Cluster(addresses, rank)]
    for message in _errors(_join(clusters)):
        assert message.startswith(
            f"DisagreementError: two processes say that they are rank {rank} of this job: process "
        )
        assert "HINT: were two jobs started with the same addresses (TF_CONFIG)" in message


@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS], ids=["one host", "two hosts"])
def test_a_second_job_that_comes_soon_after_the_first_ends_both(hosts: Sequence[str]) -> None:
    addresses = _addresses(2, hosts)
    clusters = [Cluster(addresses, rank) for rank in range(2)]
    with _joined(clusters) as found:
        ended = threading.Event()
        said: list[str] = []

        def end(text: str) -> None:
            said.append(text)
            ended.set()

        found[0].on_conflict(end)
        for message in _errors(_join(clusters)):
            assert "DisagreementError: two processes say that they are rank" in message
        assert ended.wait(10)
        assert "two processes say that they are rank" in said[0]


def test_a_second_job_that_comes_later_leaves_the_first_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_CONFLICT_WINDOW_S", 0.0)
    addresses = _addresses(2)
    clusters = [Cluster(addresses, rank) for rank in range(2)]
    with _joined(clusters) as found:
        said: list[str] = []
        found[0].on_conflict(said.append)
        assert all("two processes say" in text for text in _errors(_join(clusters)))
        # A rank beyond those that there are, too.
        [text] = _errors(_join([Cluster((*addresses, *_addresses(1)), 2)]))
        assert "two processes say that they are rank 2" in text
        found[1].put("still", "there")
        assert found[0].get("still") == "there"
        assert not said


def test_a_worker_that_ends_before_the_start_may_connect_again() -> None:
    addresses = _addresses(3, TWO_HOSTS)
    identity = Identity.of(Cluster(addresses, 1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_join, [Cluster(addresses, 0)])
        for _ in range(3):  # Each connects, joins, and ends.
            gone = _until_there(lambda: dial(identity, b"", by_unix=False))
            connection = JsonConnection(gone)
            connection.send(
                {"join": 1, "size": 3, "addresses": addresses, "facts": {}, "port": None}
            )
            gone.close()
            time.sleep(0.05)
        others = _join([Cluster(addresses, rank) for rank in (1, 2)])
        found = [*first.result(timeout=2 * TIMEOUT_S), *others]
    _close(found)
    assert all(isinstance(one, Rendezvous) for one in found), found


def _until_there(dial: Any) -> socket.socket:
    for _ in range(2000):
        with contextlib.suppress(ConnectionError):
            connection: socket.socket = dial()
            return connection
        time.sleep(0.02)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS], ids=["one host", "two hosts"])
def test_rank_0_names_who_is_missing(
    hosts: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    addresses = _addresses(4, hosts)
    clusters = [Cluster(addresses, rank) for rank in (0, 2)]
    with caplog.at_level(logging.WARNING, "tfddl"):
        first, second = _errors(_join(clusters, timeout_s=1.0))
    expected = (
        f"rank 0 of 4 is waiting for rank 1 ({addresses[1]}), rank 3 ({addresses[3]}); check that "
        f"each has been started, with the same list of addresses, and can reach {addresses[0]}"
    )
    assert first == f"StartError: gave up after 1 s: {expected}"
    assert second == first, "rank 0 tells the others why"
    assert expected in [record.message for record in caplog.records]


def test_many_that_are_missing_are_counted() -> None:
    [message] = _errors(_join([Cluster(_addresses(20), 0)], timeout_s=0.3))
    assert message.count("127.0.0.1:") == 11  # Ten that are missing, and rank 0 itself.
    assert "and 9 more; check that each" in message


@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS], ids=["one host", "two hosts"])
def test_the_others_name_rank_0(hosts: Sequence[str], caplog: pytest.LogCaptureFixture) -> None:
    addresses = _addresses(2, hosts)
    with caplog.at_level(logging.WARNING, "tfddl"):
        [message] = _errors(_join([Cluster(addresses, 1)], timeout_s=1.0))
    assert message.startswith("StartError: gave up after 1 s: rank 1 of 2 is waiting for rank 0 at")
    assert f"{addresses[0]} (Connection refused)" in message
    assert [record.message for record in caplog.records]


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that says nothing when it is asked whether it belongs to a job."""
    monkeypatch.setattr(base, "_DIAL_S", 0.5)
    addresses = _addresses(2, TWO_HOSTS)
    port = int(addresses[0].rpartition(":")[2])
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        [message] = _errors(_join([Cluster(addresses, 0)]))
    assert message.startswith(f"StartError: rank 0 can't listen on port {port} (127.0.0.1)")
    assert "another program has it" in message


def test_tensorflow_needs_a_port_that_is_free() -> None:
    addresses = _addresses(2)
    port = int(addresses[1].rpartition(":")[2])
    rendezvous.check_port_free(Cluster(addresses, 1))
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        with pytest.raises(StartError, match=f"rank 1 can't listen on port {port}"):
            rendezvous.check_port_free(Cluster(addresses, 1))
    assert is_free(port)


def test_another_secret_is_refused() -> None:
    addresses = _addresses(2, TWO_HOSTS)
    clusters = [Cluster(addresses, rank) for rank in range(2)]
    first, second = _errors(_join(clusters, secrets=[SECRET, b"x" * 32], timeout_s=1.0))
    assert "rank 0 of 2 is waiting for rank 1" in first
    assert "closed the connection: it belongs to another job, or isn't tfddl" in second


@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS], ids=["one host", "two hosts"])
def test_unauthenticated_clients_neither_stop_nor_delay_a_start(
    hosts: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handshakes may take longer here than a start."""
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 10 * TIMEOUT_S)
    addresses = _addresses(3, hosts)
    identity = Identity.of(Cluster(addresses, 0))
    target: tuple[str, int] | str = split_address(addresses[0])
    if hosts is ONE_HOST:
        target = f"\0{identity.socket_name(SECRET)}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_join, [Cluster(addresses, 0)], secrets=[SECRET])
        with attacking(target):
            others = _join([Cluster(addresses, rank) for rank in (1, 2)], secrets=[SECRET] * 2)
        found = [*first.result(timeout=2 * TIMEOUT_S), *others]
    _close(found)
    assert all(isinstance(one, Rendezvous) for one in found), found


def test_something_else_at_the_address_of_rank_0() -> None:
    addresses = _addresses(2, TWO_HOSTS)
    with socket.create_server(("127.0.0.1", int(addresses[0].split(":")[1]))) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"220 welcome to a server of mail\n")
                    connection.close()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            [message] = _errors(_join([Cluster(addresses, 1)], timeout_s=1.0))
            server.shutdown(socket.SHUT_RDWR)
    assert "what listens there isn't tfddl" in message


def test_the_key_value_store() -> None:
    with _joined(_clusters(3)) as found:
        for writer in found:
            for reader in found:
                writer.put("key", f"of {writer.cluster.rank}")
                assert reader.get("key") == f"of {writer.cluster.rank}"
        assert found[1].get("never written") == ""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            late = pool.submit(found[2].get, "late", wait_s=TIMEOUT_S)
            time.sleep(0.3)
            assert not late.done()
            found[0].put("late", "but there")
            assert late.result(timeout=2 * TIMEOUT_S) == "but there"
        found[0].close()
        with pytest.raises(
            PeerLostError, match="rank 0, which has the job's key-value store, has ended"
        ):
            found[1].put("key", "x")
        with pytest.raises(PeerLostError):
            found[1].get("key")


def test_gather() -> None:
    with (
        _joined(_clusters(3)) as found,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        for key in ("first", "second"):
            futures = [
                pool.submit(one.gather, key, f"{key} {one.cluster.rank}", timeout_s=TIMEOUT_S)
                for one in found
            ]
            expected = (f"{key} 0", f"{key} 1", f"{key} 2")
            assert [future.result(timeout=2 * TIMEOUT_S) for future in futures] == [expected] * 3
        stalled = [pool.submit(one.gather, "third", "", timeout_s=0.5) for one in found[:2]]
        for rank, future in enumerate(stalled):
            with pytest.raises(StalledError) as caught:
                future.result(timeout=2 * TIMEOUT_S)
            assert f"rank {rank} waits in third, which all ranks must call" in str(caught.value)
            assert str(caught.value).endswith("these haven't: 2")
        waiting = [pool.submit(one.gather, "fourth", "", timeout_s=TIMEOUT_S) for one in found[:2]]
        found[2].close()
        for future in waiting:
            with pytest.raises(PeerLostError, match=r"rank 2 \(process \d+ on .*\) has ended"):
                future.result(timeout=2 * TIMEOUT_S)


def test_gather_returns_last_on_rank_0() -> None:
    """What it does next may hold the interpreter, and then it answers nobody."""
    with (
        _joined(_clusters(2)) as found,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(found[0].gather, "key", "", timeout_s=TIMEOUT_S)
        found[1].put("key/1", "")  # It has called gather, and hasn't got the texts.
        time.sleep(0.3)
        assert not first.done()
        found[1].gather("key", "", timeout_s=TIMEOUT_S)
        assert first.result(timeout=2 * TIMEOUT_S) == ("", "")


def test_errors_are_of_the_kinds_promised() -> None:
    assert issubclass(DisagreementError, RuntimeError)
    assert issubclass(StartError, RuntimeError)
    assert issubclass(PeerLostError, ConnectionError)
