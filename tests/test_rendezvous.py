"""How workers meet, as threads of one process: no TensorFlow."""

import concurrent.futures
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence

import pytest

from tfddl.cluster import Cluster, rendezvous
from tfddl.errors import DisagreementError, StartError, TfddlError
from tfddl.launcher.ports import free_ports, is_free


def _addresses(size: int) -> tuple[str, ...]:
    return tuple(f"127.0.0.1:{port}" for port in free_ports(size))


def _meet(clusters: Sequence[Cluster], *, timeout_s: float = 20.0) -> list[str]:
    """What each worker's meeting ended with: "met", or its error."""

    def one(cluster: Cluster) -> str:
        try:
            rendezvous.meet(cluster, timeout_s=timeout_s, report_s=0.3)
        except TfddlError as error:
            return f"{type(error).__name__}: {error}"
        return "met"

    with concurrent.futures.ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(one, clusters, timeout=60))


@contextlib.contextmanager
def _taken(port: int) -> Iterator[None]:
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        yield


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_workers_meet_and_leave_the_ports_free(size: int) -> None:
    addresses = _addresses(size) if size > 1 else ()
    clusters = [Cluster(addresses, rank) for rank in reversed(range(size))]
    assert _meet(clusters) == ["met"] * size
    assert all(is_free(int(address.split(":")[1])) for address in addresses)


def test_workers_that_were_told_differently_all_say_so() -> None:
    first, second = _addresses(2)
    other = second.replace("127.0.0.1", "localhost")
    for message in _meet([Cluster((first, second), 0), Cluster((first, other), 1)]):
        assert message.startswith("DisagreementError: the workers were told of different clusters")
        assert f"rank 0: ['{first}', '{second}']" in message
        assert f"rank 1: ['{first}', '{other}']" in message
        assert "give every worker the same list" in message


def test_other_numbers_of_workers() -> None:
    addresses = _addresses(3)
    messages = _meet([Cluster(addresses[:2], 0), Cluster(addresses, 2)])
    assert all("told of different clusters" in message for message in messages)


def test_rank_0_names_who_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    addresses = _addresses(4)
    clusters = [Cluster(addresses, rank) for rank in (0, 2)]
    with caplog.at_level(logging.WARNING, "tfddl"):
        first, second = _meet(clusters, timeout_s=1.0)
    expected = (
        f"rank 0 of 4 is waiting for rank 1 ({addresses[1]}), rank 3 ({addresses[3]}); check that "
        f"each has been started, with the same list of addresses, and can reach {addresses[0]}"
    )
    assert first == f"StartError: gave up after 1 s: {expected}"
    assert second == first, "rank 0 tells the others why"
    assert expected in [record.message for record in caplog.records]


def test_the_others_name_rank_0(caplog: pytest.LogCaptureFixture) -> None:
    addresses = _addresses(2)
    with caplog.at_level(logging.WARNING, "tfddl"):
        (message,) = _meet([Cluster(addresses, 1)], timeout_s=1.0)
    assert message.startswith("StartError: gave up after 1 s: rank 1 of 2 is waiting for rank 0 at")
    assert f"{addresses[0]} (Connection refused)" in message
    assert [record.message for record in caplog.records]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_port_that_is_taken(rank: int) -> None:
    addresses = _addresses(2)
    port = int(addresses[rank].split(":")[1])
    with _taken(port):
        (message,) = _meet([Cluster(addresses, rank)])
    assert message.startswith(f"StartError: rank {rank} can't listen on port {port} (127.0.0.1)")
    assert "another program has it" in message


def test_strangers_do_not_disturb() -> None:
    addresses = _addresses(2)
    host, port = "127.0.0.1", int(addresses[0].split(":")[1])

    def disturb() -> str:
        for words in (b"GET / HTTP/1.1\r\n\r\n\n", b'{"rank": "x"}\n', b"[]\n", b""):
            for _ in range(100):
                with contextlib.suppress(ConnectionError):
                    with socket.create_connection((host, port), timeout=5) as connection:
                        connection.sendall(words)
                    break
        rendezvous.meet(Cluster(addresses, 1), timeout_s=20)
        return "met"

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        stranger = pool.submit(disturb)
        rendezvous.meet(Cluster(addresses, 0), timeout_s=20)
        assert stranger.result(timeout=30) == "met"


def test_something_else_at_the_address_of_rank_0() -> None:
    addresses = _addresses(2)
    with socket.create_server(("127.0.0.1", int(addresses[0].split(":")[1]))) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"220 welcome\n")
                    connection.close()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            (message,) = _meet([Cluster(addresses, 1)], timeout_s=1.0)
            server.shutdown(socket.SHUT_RDWR)
    assert "something else answers there" in message


def test_errors_are_of_the_kinds_promised() -> None:
    assert issubclass(DisagreementError, RuntimeError)
    assert issubclass(StartError, RuntimeError)
