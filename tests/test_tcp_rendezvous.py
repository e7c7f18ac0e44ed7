"""How workers of several hosts find each other, and messages on streams."""

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.strangers import attacking
from tfddl._src.comm.native import Address, TcpRendezvous
from tfddl._src.comm.native.message_socket import END_OF_MESSAGES, StreamSocket
from tfddl._src.rendezvous import handshake
from tfddl._src.rendezvous.handshake import dial_tcp
from tfddl.errors import CommunicationError, ConnectError, PeerLostError

PATIENCE_S = 40.0
SECRET = b"known to us only"


@contextlib.contextmanager
def _lobbies(count: int) -> Iterator[list[TcpRendezvous]]:
    lobbies = [TcpRendezvous(rank) for rank in range(count)]
    doors = [Address("127.0.0.1", lobby.port) for lobby in lobbies]
    for lobby in lobbies:
        lobby.learn(doors, SECRET)
    try:
        yield lobbies
    finally:
        for lobby in lobbies:
            lobby.close()


def _meet(lobbies: list[TcpRendezvous], purpose: int) -> list[dict[int, socket.socket]]:
    """Each in a thread of its own, as each is in a process of its own."""

    def one(rank: int) -> dict[int, socket.socket]:
        peers = [peer for peer in range(len(lobbies)) if peer != rank]
        return lobbies[rank].meet(peers, purpose, timeout_s=PATIENCE_S)

    with ThreadPoolExecutor(len(lobbies)) as pool:
        return list(pool.map(one, range(len(lobbies))))


def _close(found: list[dict[int, socket.socket]]) -> None:
    for sockets in found:
        for connected in sockets.values():
            connected.close()


def test_strangers_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their handshakes may take longer here than the others wait."""
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 10 * PATIENCE_S)
    with _lobbies(3) as lobbies, attacking(("127.0.0.1", lobbies[0].port)):
        found = _meet(lobbies, purpose=7)
        assert [sorted(sockets) for sockets in found] == [[1, 2], [0, 2], [0, 1]]
        for rank, sockets in enumerate(found):
            for peer, connected in sockets.items():
                connected.setblocking(True)
                connected.sendall(bytes([rank]))
                other = found[peer][rank]
                other.setblocking(True)
                assert other.recv(1) == bytes([rank])
        _close(found)


def test_who_does_not_know_the_secret_or_claims_another_rank_is_refused() -> None:
    with _lobbies(3) as lobbies:
        at = ("127.0.0.1", lobbies[1].port)
        with pytest.raises(ConnectError, match="hangs up"):
            dial_tcp(*at, b"another secret", {"rank": 2, "purpose": 7}, timeout_s=PATIENCE_S)
        wrong: list[dict[str, object]] = [
            {"rank": 0, "purpose": 7},  # It is rank 1 that calls rank 0.
            {"rank": 3, "purpose": 7},
            {"rank": "2", "purpose": 7},
            {"rank": [2], "purpose": 7},
            {"purpose": 7},
            {"rank": 2},
        ]
        for hello in wrong:
            with pytest.raises(ConnectError) as caught:
                dial_tcp(*at, SECRET, hello, timeout_s=PATIENCE_S)
            assert caught.value.is_refused, hello
        first = dial_tcp(*at, SECRET, {"rank": 2, "purpose": 7}, timeout_s=PATIENCE_S)
        with first, pytest.raises(ConnectError, match="rank 2 has called already for 7"):
            dial_tcp(*at, SECRET, {"rank": 2, "purpose": 7}, timeout_s=PATIENCE_S)


def test_meeting_twice_for_different_purposes() -> None:
    with _lobbies(2) as lobbies:
        for purpose in (1, 2):
            found = _meet(lobbies, purpose)
            assert [sorted(sockets) for sockets in found] == [[1], [0]]
            _close(found)


def test_who_cannot_be_reached_or_does_not_come_is_named() -> None:
    with _lobbies(2) as (first, second):
        with pytest.raises(CommunicationError, match=r"rank 1 hasn't come within 0\.3 s"):
            first.meet([1], 0, timeout_s=0.3)
        first.close()
        with pytest.raises(
            CommunicationError,
            match=r"can't reach rank 0 at 127\.0\.0\.1, port \d+: Connection refused",
        ):
            second.meet([0], 0, timeout_s=PATIENCE_S)


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
        assert receiver.offer(b"x")  # Nobody reads it any more: it's the reader who notices.
        assert receiver.flush()


def test_waiting_in_vain_ends() -> None:
    def check() -> None:
        raise PeerLostError("rank 1 has ended")

    with _lobbies(2) as (first, _), pytest.raises(PeerLostError, match="rank 1 has ended"):
        first.meet([1], 0, timeout_s=0, check=check)
