"""How workers of several hosts connect to each other, and messages over TCP."""

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unauthenticated_clients import attacking
from tfddl._src.comm.native import Address, TcpConnector
from tfddl._src.comm.native.message_socket import END_OF_MESSAGES, StreamSocket
from tfddl._src.rendezvous import handshake
from tfddl._src.rendezvous.handshake import dial_tcp
from tfddl.errors import CommunicationError, ConnectError, PeerLostError

TIMEOUT_S = 40.0
SECRET = b"known to us only"


@contextlib.contextmanager
def _connectors(count: int) -> Iterator[list[TcpConnector]]:
    workers = [TcpConnector(rank) for rank in range(count)]
    addresses = [Address("127.0.0.1", worker.port) for worker in workers]
    for worker in workers:
        worker.start(addresses, SECRET)
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _connect(workers: list[TcpConnector], purpose: int) -> list[dict[int, socket.socket]]:
    """Each in a thread of its own, as each is in a process of its own."""

    def one(rank: int) -> dict[int, socket.socket]:
        peers = [peer for peer in range(len(workers)) if peer != rank]
        return workers[rank].connect(peers, purpose, timeout_s=TIMEOUT_S)

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(one, range(len(workers))))


def _close(found: list[dict[int, socket.socket]]) -> None:
    for sockets in found:
        for connected in sockets.values():
            connected.close()


def test_unauthenticated_clients_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes may take longer here than the workers wait."""
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 10 * TIMEOUT_S)
    with _connectors(3) as workers, attacking(("127.0.0.1", workers[0].port)):
        found = _connect(workers, purpose=7)
        assert [sorted(sockets) for sockets in found] == [[1, 2], [0, 2], [0, 1]]
        for rank, sockets in enumerate(found):
            for peer, connected in sockets.items():
                connected.setblocking(True)
                connected.sendall(bytes([rank]))
                other = found[peer][rank]
                other.setblocking(True)
                assert other.recv(1) == bytes([rank])
        _close(found)


def test_a_client_without_the_secret_or_with_a_wrong_rank_is_refused() -> None:
    with _connectors(3) as workers:
        at = ("127.0.0.1", workers[1].port)
        with pytest.raises(ConnectError, match="closed the connection"):
            dial_tcp(*at, b"another secret", {"rank": 2, "purpose": 7}, timeout_s=TIMEOUT_S)
        wrong: list[dict[str, object]] = [
            {"rank": 0, "purpose": 7},  # Rank 1 connects to rank 0.
            {"rank": 3, "purpose": 7},
            {"rank": "2", "purpose": 7},
            {"rank": [2], "purpose": 7},
            {"purpose": 7},
            {"rank": 2},
        ]
        for hello in wrong:
            with pytest.raises(ConnectError) as caught:
                dial_tcp(*at, SECRET, hello, timeout_s=TIMEOUT_S)
            assert caught.value.is_refused, hello
        first = dial_tcp(*at, SECRET, {"rank": 2, "purpose": 7}, timeout_s=TIMEOUT_S)
        with first, pytest.raises(ConnectError, match="rank 2 is connected already for purpose 7"):
            dial_tcp(*at, SECRET, {"rank": 2, "purpose": 7}, timeout_s=TIMEOUT_S)


def test_connecting_twice_for_different_purposes() -> None:
    with _connectors(2) as workers:
        for purpose in (1, 2):
            found = _connect(workers, purpose)
            assert [sorted(sockets) for sockets in found] == [[1], [0]]
            _close(found)


def test_a_worker_that_cannot_be_reached_or_does_not_connect_is_named() -> None:
    with _connectors(2) as (first, second):
        with pytest.raises(
            CommunicationError, match=r"rank 1 hasn't connected to rank 0 within 0\.3 s"
        ):
            first.connect([1], 0, timeout_s=0.3)
        first.close()
        with pytest.raises(
            CommunicationError,
            match=r"can't reach rank 0 at 127\.0\.0\.1, port \d+: Connection refused",
        ):
            second.connect([0], 0, timeout_s=TIMEOUT_S)


def test_messages_stay_whole_however_the_stream_is_cut() -> None:
    first, second = socket.socketpair()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender, receiver = StreamSocket(first), StreamSocket(second)
    messages = [os.urandom(n) for n in (1, 30_000, 7, 32_000, 5)]
    waiting, found = list(messages), list[bytes]()
    refused = 0
    with contextlib.closing(receiver):
        while len(found) < len(messages):
            if waiting and sender.offer(waiting[0]):
                waiting.pop(0)
            else:
                refused += bool(waiting)
                sender.flush()
            found += receiver.receive()
        assert sender.flush()
        assert found == messages
        assert refused > 0  # There was no room for a while, and nothing was lost.
        sender.close()
        assert receiver.receive() == [END_OF_MESSAGES]
        assert receiver.offer(
            b"x"
        )  # The other end is closed: receiving reports it, sending doesn't.
        assert receiver.flush()


def test_a_wait_that_cannot_end_raises() -> None:
    def check() -> None:
        raise PeerLostError("rank 1 has ended")

    with _connectors(2) as (first, _), pytest.raises(PeerLostError, match="rank 1 has ended"):
        first.connect([1], 0, timeout_s=0, check=check)
