"""To whom each worker is connected, and when; and what all hear though few tell them."""

import contextlib
import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.namespaces import disconnect, inside, missing_for_hosts, switched_hosts
from tests.processes import wait_until
from tfddl._src.comm.native import (
    Address,
    Communicator,
    Network,
    OpSignature,
    PeerConfig,
    ReduceOp,
    TcpConnector,
    Timeouts,
    connect_hosts,
    connect_local,
    lost_peers,
    wait_tracker,
)
from tfddl._src.comm.native.broadcasts import Broadcasts, Heard
from tfddl._src.comm.native.differences import (
    merge_differences,
    pack_difference,
    unpack_differences,
)
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import (
    END_OF_MESSAGES,
    SeqpacketSocket,
    StreamSocket,
)
from tfddl._src.comm.native.messages import (
    EXIT,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    STALL_REPORT,
    Message,
    Tag,
    unpack_message,
)
from tfddl._src.comm.native.shm import MemoryFile, SharedMemory
from tfddl._src.comm.native.tree import neighbours
from tfddl.errors import CommunicationError, DisagreementError, PeerLostError, StalledError

BY = pytest.mark.parametrize("by", ["memory", "tcp"])
ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60.0
TIMEOUTS = Timeouts(warn_s=0, abort_s=30.0)
SUM = OpSignature("", "sum")


@contextlib.contextmanager
def _networks(
    size: int, by: str, *, timeouts: Timeouts = TIMEOUTS, members: range | None = None
) -> Iterator[list[Network]]:
    """Of so many workers, in one process."""
    configs = [
        PeerConfig(
            job=f"connections {os.getpid()} {threading.get_ident()}",
            rank=rank,
            size=size,
            timeouts=timeouts,
            spins=False,
        )
        for rank in range(size)
    ]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(size) as pool:
        if by == "memory":
            connected = pool.map(connect_local, configs)
        else:
            listeners = [TcpConnector(rank) for rank in range(size)]
            addresses = [Address("127.0.0.1", one.port) for one in listeners]
            for one in listeners:
                one.start(addresses, b"secret")
            connected = pool.map(
                lambda config, one: connect_hosts(config, one, members or range(size)),
                configs,
                listeners,
            )
        yield [stack.enter_context(network) for network in connected]


def _on_each(ranks: list[int], call: Callable[[int], Any]) -> list[Any]:
    """What a call returns for each rank, each in a thread of its own."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(call, ranks, timeout=TIMEOUT_S))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 33, 64])
@BY
def test_connections_grow_with_the_logarithm(size: int, by: str) -> None:
    with _networks(size, by) as networks:
        groups = [Communicator(network, range(size)) for network in networks]
        most = 2 * math.log2(size) + 4
        assert max(group.num_connections for group in groups) <= most

        def call(rank: int) -> None:
            group = groups[rank]
            for length in (3, 20_000):
                array = np.ones(length, np.float32)
                [total] = group.all_reduce([array], ReduceOp.SUM, SUM)
                assert (total == size).all()
                [own] = group.broadcast([array * rank], 0, SUM)
                assert not own.any()
            rows = group.all_gather(np.full(20_000, rank), SUM)
            assert (rows == np.arange(size)[:, None]).all()

        _on_each(list(range(size)), call)
        counts = [group.num_connections for group in groups]
        assert max(counts) <= most, counts


@BY
def test_whoever_has_something_to_send_connects(by: str) -> None:
    """All at the same time, in several threads each: so that pairs make two connections."""
    size, num_threads, num_messages = 8, 3, 4
    with _networks(size, by) as networks:
        begin = threading.Barrier(size * num_threads)

        def call(number: int) -> list[list[int]]:
            thread, rank = divmod(number, size)
            mesh = networks[rank].mesh
            others = [other for other in range(size) if other != rank]
            found = []
            begin.wait(TIMEOUT_S)
            for step in range(num_messages):
                tag = Tag(1 + thread, 0, step)
                mesh.send(others, tag, Message(0, 100 * rank + step, b"x" * 1000 * step))
                received = mesh.collect(tag, others, SUM)
                found.append([received[other].value for other in others])
            return found

        for number, found in enumerate(_on_each(list(range(size * num_threads)), call)):
            rank = number % size
            assert found == [
                [100 * other + step for other in range(size) if other != rank]
                for step in range(num_messages)
            ]
        for network in networks:
            assert size - 1 <= network.mesh.num_connections <= 2 * (size - 1)


@BY
def test_messages_of_one_worker_stay_in_order_whoever_has_connected(by: str) -> None:
    with _networks(6, by) as networks:
        ends = [networks[4].mesh, networks[5].mesh]  # Leaves, not connected.
        begin = threading.Barrier(2)

        def call(end: int) -> list[int]:
            own, other = ends[end], 5 - end
            begin.wait(TIMEOUT_S)
            for number in range(200):
                own.send([other], Tag(1, 0, 0), Message(0, number, b""))
                own.send([other], Tag(2, number, 0), Message(0, number, b""))
            # Of one tag the last message stays: it is that which was sent last.
            own.collect(Tag(2, 199, 0), [other], SUM)
            return [message.value for message in own.collect(Tag(1, 0, 0), [other], SUM).values()]

        assert _on_each([0, 1], call) == [[199], [199]]


@pytest.mark.parametrize(
    ("size", "dead", "busy"),
    [
        (6, [0], []),
        (16, [0, 1], []),  # The first one, and one that tells others of it.
        (16, [0, 1, 2, 3], []),  # Each of those that are left has lost its parent, but one.
        (16, [15, 2], []),  # Far from each other.
        (16, [7], [1, 0]),  # Those between it and most others take part in nothing.
    ],
)
@BY
def test_all_notice_those_that_have_ended(
    size: int, dead: list[int], busy: list[int], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever they wait for, and sooner than those that may still come; and they name them."""
    monkeypatch.setattr(lost_peers, "_KILLED_S", 0.5)
    with _networks(size, by) as networks:
        groups = [Communicator(network, range(size)) for network in networks]
        ranks = list(range(size))
        waiting = [rank for rank in ranks if rank not in dead + busy]
        _on_each(ranks, lambda rank: groups[rank].all_reduce([np.ones(3)], ReduceOp.SUM, SUM))

        def call(rank: int) -> str:
            with pytest.raises(PeerLostError) as caught:
                groups[rank].all_reduce([np.ones(3)], ReduceOp.SUM, SUM)
            return str(caught.value)

        with ThreadPoolExecutor(size) as pool:
            running = [pool.submit(call, rank) for rank in waiting]
            for rank in dead:
                networks[rank].close()
            texts = [one.result(timeout=20.0) for one in running]
            # Whoever comes later knows at once.
            texts += [pool.submit(call, rank).result(timeout=5.0) for rank in busy]
        named = [f"but rank {rank} has ended" for rank in dead]
        assert all(any(name in text for name in named) for text in texts), texts


@pytest.mark.long
@pytest.mark.skipif(bool(missing_for_hosts()), reason=missing_for_hosts())
@pytest.mark.parametrize("length", [3, 2_000_000])
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_all_notice_a_host_that_is_cut_off(cut: int, length: int, tmp_path: Path) -> None:
    """In small sums, and in the middle of large ones; nothing closes its connections."""
    size = 8
    with switched_hosts(size) as hosts, contextlib.ExitStack() as stack:
        for rank, host in enumerate(hosts):
            command = [sys.executable, "-m", "tests.cases.cut_off", str(rank), str(size)]
            process = subprocess.Popen(
                [*inside(host), *command, str(tmp_path), str(length)], cwd=ROOT
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        ranks = [rank for rank in range(size) if rank != cut]
        wait_until(lambda: all((tmp_path / f"begun {rank}").exists() for rank in range(size)))
        disconnect(hosts[cut])
        since_s = time.time()
        errors = [tmp_path / f"error {rank}" for rank in ranks]
        wait_until(lambda: all(path.exists() for path in errors))
        for path in errors:
            at_s, _, text = path.read_text().partition(" ")
            assert f"but rank {cut} has ended, or can't be reached any more" in text
            assert float(at_s) - since_s < 25.0


def test_how_a_script_has_ended_is_known_to_those_that_were_not_connected() -> None:
    with _networks(12, "memory") as networks:
        pair = [Communicator(networks[rank], (10, 11)) for rank in (10, 11)]
        networks[10].mesh.announce_exit("has ended with ValueError: no data")
        networks[10].close()
        with pytest.raises(PeerLostError, match="rank 10 has ended with ValueError: no data"):
            pair[1].all_reduce([np.ones(3)], ReduceOp.SUM, SUM)


@BY
def test_whoever_ends_before_it_has_connected_is_noticed(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is connected to it, or has been: in a set of ranks of two hosts, it may be so."""
    monkeypatch.setattr(wait_tracker, "CONNECT_AFTER_S", 0.1)
    size = 8
    with _networks(size, by, members=range(4)) as networks:
        last = Communicator(networks[6], (6, 7))
        networks[7].close()
        with pytest.raises(PeerLostError, match="rank 6 waits in sum, but rank 7 has ended"):
            last.all_reduce([np.ones(3)], ReduceOp.SUM, SUM)
        with pytest.raises(PeerLostError, match="rank 5 waits in sum, but rank 7 has ended"):
            networks[5].mesh.collect(Tag(1, 0, 0), [7], SUM)  # Sends nothing.


@BY
def test_a_stopped_worker_that_is_not_connected_is_missed_in_time(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts no connection: what listens belongs to it, and does nothing."""
    with _networks(6, by, timeouts=Timeouts(warn_s=0, abort_s=1.5)) as networks:
        stopped = networks[4].mesh._owned[0]
        endpoint: Any = stopped._endpoint  # type: ignore[attr-defined]
        go_on = threading.Event()
        endpoint._do(lambda: go_on.wait(TIMEOUT_S) and None)
        try:
            with pytest.raises(StalledError, match="rank 4 has accepted no connection of rank 5"):
                networks[5].mesh.send([4], Tag(1, 0, 0), Message(0, 0, b""))
        finally:
            go_on.set()


def test_a_worker_that_neighbours_reach_but_others_do_not_is_found_at_the_start() -> None:
    """As behind a firewall that lets a part of the hosts through."""
    size = 8
    listeners = [TcpConnector(rank) for rank in range(size)]
    addresses = [Address("127.0.0.1", one.port) for one in listeners]

    def error_of(rank: int) -> str:
        # Rank 6, a leaf, isn't at its port for ranks 2, 4 and 5, which aren't its neighbours.
        seen = [*addresses[:6], Address("127.0.0.1", 1), addresses[7]]
        listeners[rank].start(seen if rank in (2, 4, 5) else addresses, b"secret")
        config = PeerConfig(job="", rank=rank, size=size, connect_timeout_s=2.0)
        try:
            connect_hosts(config, listeners[rank], range(size)).close()
        except CommunicationError as error:
            return str(error)
        return ""

    texts = _on_each(list(range(size)), error_of)
    assert all(texts[rank] for rank in (2, 4, 5)), texts
    # Others may meet those that have given up for it.
    text = "can't reach rank 6 at 127.0.0.1, port 1: Connection refused"
    assert text in [texts[rank] for rank in (2, 4, 5)], texts


def test_all_say_who_has_not_connected() -> None:
    size = 8

    def error_of(rank: int) -> str:
        config = PeerConfig(
            job=f"missing {os.getpid()}", rank=rank, size=size, connect_timeout_s=1.0
        )
        with pytest.raises(CommunicationError) as caught:
            connect_local(config)
        return str(caught.value)

    texts = _on_each([rank for rank in range(size) if rank != 6], error_of)
    assert texts == ["local rank 6 of 8 hasn't connected within 1 s"] * (size - 1)


def test_a_difference_of_many_takes_no_further_connections() -> None:
    size = 16
    with _networks(size, "memory") as networks:
        groups = [Communicator(network, range(size)) for network in networks]
        before = [group.num_connections for group in groups]

        def call(rank: int) -> str:
            differing = OpSignature("", f"sum of {int(rank == 9)}")
            with pytest.raises(DisagreementError) as caught:
                groups[rank].all_reduce([np.ones(3)], ReduceOp.SUM, differing)
            [total] = groups[rank].all_reduce([np.ones(3)], ReduceOp.SUM, SUM)
            return f"{total} {caught.value}"

        texts = _on_each(list(range(size)), call)
        assert len(set(texts)) == 1
        assert "[16. 16. 16.]" in texts[0]
        assert "ranks 0..8, 10..15: sum of 0" in texts[0]
        assert "rank 9: sum of 1" in texts[0]
        assert [group.num_connections for group in groups] == before


def test_a_message_to_all_comes_once_and_in_order() -> None:
    """Along a ring with a chord: each hears it in two ways."""
    size = 7
    links = {(r, (r + 1) % size) for r in range(size)} | {(0, 3)}
    relays = [
        sorted({b for a, b in links if a == r} | {a for a, b in links if b == r})
        for r in range(size)
    ]
    workers = [Broadcasts(rank, relays[rank]) for rank in range(size)]
    heard: list[list[Heard]] = [[] for _ in range(size)]
    queues: list[list[tuple[int, bytes]]] = [[] for _ in range(size)]
    for number in range(300):  # More than are kept in mind.
        data = workers[2].pack(EXIT, Message(0, number, b""))
        for relay in workers[2].relays:
            queues[relay].append((2, data))
        while any(queues):
            for rank in range(size):
                for sender, packed in queues[rank]:
                    found = workers[rank].receive(unpack_message(packed)[1])
                    if found is not None:
                        heard[rank].append(found)
                        for relay in set(workers[rank].relays) - {sender, 2}:
                            queues[relay].append((rank, packed))
                queues[rank] = []
    assert heard[2] == []
    expected = [Heard(2, EXIT, Message(0, number, b"")) for number in range(300)]
    assert all(found == expected for rank, found in enumerate(heard) if rank != 2)


def test_messages_to_all_of_several_workers_are_told_apart() -> None:
    first, second, third = (Broadcasts(rank, ()) for rank in range(3))
    ones = [worker.pack(STALL_REPORT, Message(0, 5, b"text")) for worker in (first, second, first)]
    found = [third.receive(unpack_message(data)[1]) for data in [*ones, *ones]]
    report = Message(0, 5, b"text")
    assert [one and one.origin for one in found] == [0, 1, 0, None, None, None]
    assert {one.message for one in found if one} == {report}


@pytest.mark.parametrize("size", [2, 4, 5, 6, 21, 22, 64, 1000])
def test_neighbours_are_so_in_both_directions_and_connect_all(size: int) -> None:
    ranks = list(range(10, 10 + 3 * size, 3))
    of = {rank: neighbours(ranks, rank) for rank in ranks}
    assert all(rank in of[other] for rank in ranks for other in of[rank])
    assert max(map(len, of.values())) <= 5
    known = {ranks[0]}
    for _ in range(size):
        known |= {other for rank in known for other in of[rank]}
    assert known == set(ranks)


def test_differences_that_are_too_long_for_a_message_are_cut() -> None:
    texts = [os.urandom(60_000).hex() for _ in range(3)]
    packed = [pack_difference(text, 8, rank) for rank, text in enumerate(texts)]
    merged = merge_differences(packed[0], merge_differences(packed[1], packed[2]))
    assert len(merged) <= MAX_PAYLOAD_BYTES
    found = unpack_differences(merged)
    assert sorted(found) == [0, 1, 2]
    assert all(text.startswith(found[rank]) for rank, text in enumerate(texts))
    assert all(len(text) > 5_000 for text in found.values())


def test_sizes_are_told_where_nothing_else_differs() -> None:
    one, other = pack_difference("sum", 8, 0), pack_difference("sum", 16, 1)
    assert unpack_differences(merge_differences(one, other)) == {
        0: "sum\n8 bytes",
        1: "sum\n16 bytes",
    }
    other = pack_difference("mean", 16, 1)
    assert unpack_differences(merge_differences(one, other)) == {0: "sum", 1: "mean"}


def test_windows_of_a_memory_file_are_apart_and_end_at_the_limit_of_files() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, limits[1]))
    try:
        with contextlib.closing(MemoryFile(4)) as file:
            assert file.window_bytes == 2**20
            areas = []
            for rank in range(4):
                memory = SharedMemory(file, rank)
                offset, area = memory.allocate(2**20)
                assert offset == rank * 2**20
                area[:] = rank
                areas.append((offset, area))
                with pytest.raises(OSError, match="File too large"):
                    memory.allocate(1)
            for rank, (offset, area) in enumerate(areas):
                assert (area == rank).all()
                assert (file.map_shared(offset, 2**20) == rank).all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_memory_file_takes_only_what_is_allocated() -> None:
    with contextlib.closing(MemoryFile(1000)) as file:
        SharedMemory(file, 999).allocate(2**16)
        assert os.fstat(file.fileno()).st_blocks * 512 == 2**16
        assert file.window_bytes == 2**40


@BY
def test_networks_leave_neither_descriptors_nor_threads(by: str) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def call(network: Network) -> None:
        group = Communicator(network, range(6))
        group.all_reduce([np.ones(100_000)], ReduceOp.SUM, SUM)

    before = count()
    for _ in range(2):
        with _networks(6, by) as networks, ThreadPoolExecutor(6) as pool:
            list(pool.map(call, networks))
        del networks
    wait_until(lambda: count() <= before)


def test_whoever_closes_says_of_nobody_that_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a thread finds a connection closed before the others are."""
    with _networks(8, "memory") as networks:
        mesh = networks[1].mesh
        close = mesh._sockets.close

        def close_slowly() -> None:
            mesh._sockets.by_peer[7].close()
            mesh._deliver(7, END_OF_MESSAGES)  # As a thread would that reads from it.
            close()

        monkeypatch.setattr(mesh._sockets, "close", close_slowly)
        networks[1].close()
        others = [networks[rank].mesh._lost_peers for rank in (0, 2, 5, 7)]
        wait_until(lambda: all(one._killed for one in others))
        time.sleep(0.5)  # For what else comes.
        assert [list(one._killed) for one in others] == [[1]] * 4


@BY
def test_a_connection_that_its_maker_has_given_up_is_no_end(by: str) -> None:
    """The maker has taken the other for stopped, which then accepts what is no more."""
    with _networks(6, by) as networks:
        first, second = networks[4].mesh, networks[5].mesh
        assert first._dialer._dial is not None
        before = second.num_connections
        for _ in range(3):
            given_up = first._dialer._dial(5, timeout_s=TIMEOUT_S, check=lambda: None)
            assert given_up is not None
            given_up.close()

        def has_received_the_ends() -> bool:
            second.raise_if_unreachable([4], SUM)
            return second.num_connections == before

        wait_until(has_received_the_ends)
        second.send([4], Tag(1, 0, 0), Message(0, 7, b""))
        assert first.collect(Tag(1, 0, 0), [5], SUM)[5].value == 7
        first.send([5], Tag(1, 0, 0), Message(0, 8, b""))
        assert second.collect(Tag(1, 0, 0), [4], SUM)[4].value == 8


def test_what_is_acknowledged_arrives_though_the_sender_leaves_something_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = StreamSocket(socket.create_connection(server.getsockname()))
        sender = StreamSocket(server.accept()[0])
    with contextlib.closing(reader):
        assert reader.offer(b"unread")
        messages = [bytes([number]) * 10_000 for number in range(5)]
        assert all(map(sender.offer, messages))
        wait_until(lambda: not sender.is_unacknowledged)
        sender.close()
        time.sleep(0.1)
        assert reader.offer(b"too late")
        found: list[bytes] = []
        while END_OF_MESSAGES not in found:
            found += reader.receive()
        assert found == [*messages, END_OF_MESSAGES]


@pytest.mark.parametrize("size", [3, 6])
def test_what_was_sent_before_the_end_arrives(size: int) -> None:
    """More than buffers hold, at a peer that reads late, and hears meanwhile that others end."""
    with _networks(size, "tcp") as networks:
        numbers = range(60)

        def send(number: int) -> None:
            message = Message(0, number, bytes(MAX_PAYLOAD_BYTES))
            networks[0].mesh.send([1], Tag(1, number, 0), message)

        with ThreadPoolExecutor(len(numbers) + size) as pool:
            sent = [pool.submit(send, number) for number in numbers]
            closing = [pool.submit(networks[2].close)]
            reading = networks[1].mesh.collect(Tag(1, 0, 0), [0], SUM)
            assert reading[0].value == 0
            for one in sent:
                one.result(TIMEOUT_S)
            closing.append(pool.submit(networks[0].close))
            for number in numbers[1:]:
                received = networks[1].mesh.collect(Tag(1, number, 0), [0], SUM)
                assert received[0].value == number
            for one in closing:
                one.result(TIMEOUT_S)


class SentSocket(SeqpacketSocket):
    """As if the other host hadn't confirmed what was sent."""

    is_unacknowledged = True


@pytest.mark.parametrize("kind", [SeqpacketSocket, SentSocket])
def test_a_host_that_has_confirmed_nothing_is_looked_for(
    kind: type[SeqpacketSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_tracker, "REACH_AFTER_S", 0.1)
    asked = []

    def reach(peer: int) -> str:
        asked.append(peer)
        return "can't be reached"

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = PeerConfig(
        job="", rank=0, size=2, timeouts=Timeouts(warn_s=0, abort_s=2.5), spins=False
    )
    sockets = {1: kind(ours, max_bytes=MAX_MESSAGE_BYTES)}
    with theirs, contextlib.closing(Mesh(config, sockets, reach=reach)) as mesh:
        text = "rank 1 hasn't called it"
        if kind is SentSocket:
            text = "rank 0 waits in sum, but rank 1 can't be reached"
        with pytest.raises((PeerLostError, StalledError), match=text):
            mesh.collect(Tag(1, 0, 0), [1], SUM)
    assert asked == ([1] if kind is SentSocket else [])


def test_what_has_arrived_is_acknowledged_though_nobody_reads_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = StreamSocket(socket.create_connection(server.getsockname()))
        reader, _ = server.accept()
        with contextlib.closing(sender), reader:
            assert not sender.is_unacknowledged
            assert sender.offer(b"x" * 1000)
            wait_until(lambda: not sender.is_unacknowledged)
            while sender.offer(b"x" * 60_000):
                pass
            time.sleep(0.5)
            assert sender.is_unacknowledged  # Its buffer is full.
        assert not sender.is_unacknowledged
