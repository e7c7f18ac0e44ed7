"""Shared memory and sockets between processes, without TensorFlow."""

import contextlib
import multiprocessing
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.native_workers import PROBE_AFTER_S, run
from tests.unauthenticated_clients import attacking
from tfddl._src.comm.native import (
    Communicator,
    OpSignature,
    PeerConfig,
    ReduceOp,
    Timeouts,
    connect_local,
    tcp_backend,
)
from tfddl._src.comm.native.buffer_pool import ALIGNMENT, BufferPool
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import SeqpacketSocket
from tfddl._src.comm.native.messages import (
    DEADLOCK_FOUND,
    MAX_MESSAGE_BYTES,
    Group,
    Message,
    Tag,
    pack_message,
    stable_hash,
)
from tfddl.errors import CommunicationError, DeadlockError, PeerLostError

BY = pytest.mark.parametrize("by", ["memory", "tcp"])


@pytest.mark.parametrize(
    "size", [2, 3, 5, 16, *(pytest.param(size, marks=pytest.mark.long) for size in (7, 8, 9))]
)
@BY
def test_every_operation_dtype_and_length(size: int, by: str) -> None:
    results = run("everything", size, by=by, few=size > 3)
    assert [result["wrong"] for result in results] == [[]] * size
    assert len({result["digest"] for result in results[:-1]}) == 1


@BY
def test_sums_have_the_same_bits_everywhere_and_round_once(by: str) -> None:
    results = run("rounds_once", 3, by=by)
    again = run("rounds_once", 3, by=by)
    # In float16, 2048 + 1 is 2048 again; 2050 comes out where both ones are added up first.
    assert [ones for ones, _ in results] == [[2050.0]] * 3
    assert len({bits for _, bits in [*results, *again]}) == 1


@pytest.mark.parametrize("size", [2, 3, 6])
@BY
def test_rows_are_joined_whatever_each_has(size: int, by: str) -> None:
    assert run("rows", size, by=by) == [[]] * size


@pytest.mark.parametrize("size", [2, 6])
@BY
def test_means_are_weighted_and_their_numbers_are_not(size: int, by: str) -> None:
    assert run("weighted", size, by=by) == [[]] * size


@BY
def test_a_scale_is_multiplied_in(by: str) -> None:
    assert run("scaled", 3, by=by) == [[[4.0, 1.0]] * 4] * 3


@pytest.mark.parametrize(
    ("count", "length"),
    # Within messages, more than a mailbox holds; posted in memory of all; reduced in parts.
    [(40, 4_000), (12, 20_000), (6, 200_000)],
)
@BY
def test_threads_call_in_any_order(count: int, length: int, by: str) -> None:
    assert (
        run("threads", 3, by=by, count=count, length=length)
        == [[3.0 * n + 3 for n in range(count)]] * 3
    )


@BY
def test_ranks_that_differ_say_so_and_go_on(by: str) -> None:
    for messages in run("disagree", 3, by=by):
        assert len(messages) == 3
        assert "ranks 10..11: allreduce <loss> of 24 bytes" in messages[0]
        assert "rank 12: allreduce <loss> of 32 bytes" in messages[0]
        assert "rank 12: kind True\n" in messages[1]
        assert "rank 12: large of 800008 bytes" in messages[2]


@pytest.mark.parametrize("length", [3, 500_000])
@BY
def test_a_rank_that_dies_is_noticed_at_once(length: int, by: str) -> None:
    *others, dead = run("dies", 3, by=by, length=length)
    assert dead is None
    # One of the two may notice by the end of the other, which notices first.
    texts = [text for text, _ in others]
    assert any("waits in allreduce <gradients>, but rank 12 has ended" in text for text in texts)
    loss = {"memory": "has ended; its log says why", "tcp": "can't be reached any more; its log"}
    assert all(loss[by] in text for text in texts)


@pytest.mark.parametrize(("size", "by"), [(6, "memory"), (8, "tcp")])
def test_one_of_many_differs_and_all_go_on(size: int, by: str) -> None:
    results = run("differ_among_many", size, by=by)
    assert all(result == results[0] for result in results)
    assert len(results[0]) == 9
    for number, odd in enumerate((10, 11, 9 + size)):
        same, kind, large = results[0][3 * number : 3 * number + 3]
        assert f"rank {odd}: same of 32 bytes" in same
        assert f"rank {odd}: kind True\n" in kind
        assert f"rank {odd}: large of 560008 bytes" in large


@pytest.mark.parametrize("by", [pytest.param("memory", marks=pytest.mark.long), "tcp"])
def test_of_many_ranks_the_late_one_is_named(by: str, tmp_path: Path) -> None:
    timeouts = Timeouts(warn_s=0, abort_s=12.0)
    results = run("is_late", 8, by=by, timeouts=timeouts, marks=str(tmp_path))
    told = [texts[0] for rank, texts in enumerate(results) if rank != 1]
    assert all("in allreduce <late>: rank 11 hasn't called it" in text for text in told), told


@pytest.mark.parametrize(
    ("by", "victim", "late"),
    [
        ("memory", 0, -1),
        ("tcp", 7, -1),
        ("tcp", 5, 1),
        pytest.param("tcp", 0, -1, marks=pytest.mark.long),
        pytest.param("memory", 7, -1, marks=pytest.mark.long),
        pytest.param("memory", 5, 1, marks=pytest.mark.long),
    ],
)
def test_of_many_ranks_one_is_killed(by: str, victim: int, late: int, tmp_path: Path) -> None:
    """In whatever it is at that time; and where the only one that waits for it is late."""
    marks = str(tmp_path)
    results = run("killed_among_many", 8, by=by, victim=victim, late=late, marks=marks)
    assert results.pop(victim) is None
    assert all(f"but rank {10 + victim} has ended" in text for text in results), results


@pytest.mark.parametrize(("size", "length"), [(2, 7), (3, 7), (4, 60_000), (6, 7)])
@BY
def test_ranks_that_have_joined_count_as_zeros(size: int, length: int, by: str) -> None:
    for rank, (wrong, lasts, told) in enumerate(run("joins", size, by=by, length=length)):
        assert wrong == []
        assert lasts == [size - 1, 0]
        refused = [text for text in told if text.startswith("allgather <g> needs all ranks, but ")]
        assert len(refused) == len(told) - len([t for t in told if "different things" in t])
        if rank in (0, size - 1):  # Each was the last in one of the rounds.
            alone = "rank 10 has" if size == 2 else f"ranks 10..{8 + size} have"
            if rank:
                assert any(f"but {alone} called join; until all have" in text for text in refused)
            assert len(refused) == size - 1


def test_of_ranks_that_have_done_as_much_the_last_is_the_last(tmp_path: Path) -> None:
    assert run("joins_in_order", 3, marks=str(tmp_path)) == [0] * 3


def test_a_rank_that_has_joined_is_in_no_deadlock() -> None:
    """It passes on no probe that came before."""
    join_s, late_s = 1.5 * PROBE_AFTER_S, 4 * PROBE_AFTER_S
    assert run("joins_beside_a_late_rank", 3, join_s=join_s, late_s=late_s) == [2, 2, 0]


@BY
def test_a_rank_that_has_joined_and_dies_is_noticed(by: str) -> None:
    first, second, _ = run("dies_joined", 3, by=by)
    # One of the two may notice by the end of the other, which notices first.
    assert any("waits in allreduce <step>, but rank 12 " in text for text in (first, second))


CASES = re.escape(str(Path(__file__).parent / "cases" / "native_comm.py"))


@BY
def test_a_rank_whose_script_is_over_is_told_from_one_that_has_failed(by: str) -> None:
    for problem, told in (
        ("", "has ended: its script is over. HINT: all ranks must call the same operations"),
        ("oh", "has ended with ValueError: oh"),
    ):
        first, last = run("exits", 2, by=by, problem=problem)
        assert last == []
        assert first[0].startswith(f"rank 10 waits in allreduce <first>, but rank 11 {told}")
        assert told in first[1]


@BY
def test_a_deadlock_raises_with_the_line_of_each_rank(by: str) -> None:
    first, second = run("stalls", 2, by=by, timeouts=Timeouts(warn_s=0, abort_s=0, deadlock_s=0))
    assert first == second
    told = r"in different operations, and none can go on:\n"
    for rank, name in ((10, "left"), (11, "right")):
        told += rf"  rank {rank}: allreduce <{name}> of float64 \(3\) "
        told += rf"\({CASES}, line \d+: communicator.all_reduce\(\)\n"
    assert re.search(f"{told}All ranks must call the same operations", first), first


def test_a_deadlock_of_sets_is_reported_to_a_rank_that_is_late(tmp_path: Path) -> None:
    timeouts = Timeouts(warn_s=0, abort_s=0)
    results = run("deadlock_of_sets", 4, timeouts=timeouts, marks=str(tmp_path))
    assert len(set(results[:3])) == 1
    for rank in (10, 11, 12):
        assert f"  rank {rank}: allreduce <of two>" in results[0]
    # The last has waited for all of them: they have told it, or have ended.
    assert "none can go on" in results[3] or "has ended" in results[3]


@BY
def test_a_thread_or_a_rank_that_is_late_is_waited_for(by: str) -> None:
    """Longer than it takes to find a deadlock."""
    first, *others = run("another_thread_calls", 3, by=by, after_s=2.5 * PROBE_AFTER_S)
    assert others == [[3.0, 3.0]] * 2
    assert first[0] == 3.0


def test_threads_that_could_still_call_are_waited_for_until_a_limit() -> None:
    timeouts = Timeouts(warn_s=0, abort_s=0, deadlock_s=2 * PROBE_AFTER_S)
    first, second = run("another_thread_calls", 2, timeouts=timeouts, after_s=90.0)
    assert first == second
    assert re.match(r"For \d+ s, ranks have waited for each other in different operations:", first)
    assert "  rank 10: allreduce <first> (" in first
    assert "  rank 11: allreduce <second> (" in first


def test_stall_errors_say_what_every_rank_waits_in(tmp_path: Path) -> None:
    timeouts = Timeouts(warn_s=1.0, abort_s=5.0)
    first, second, third = run("stalls_in_sets", 3, timeouts=timeouts, marks=str(tmp_path))
    assert len(first) == 2
    assert "in allreduce <a>: ranks 11..12 haven't called it" in first[0]
    assert "rank 12 waits in allreduce <d> itself" in first[0]
    (text,) = second
    assert "in allreduce <c>: ranks 10, 12 haven't called it" in text
    assert "allreduce <a>" in text
    assert "allreduce <b>" in text
    assert "rank 12 waits in allreduce <d> itself" in text
    (text,) = third
    assert "in allreduce <d>: rank 11 hasn't called it; rank 11 waits in allreduce <c>" in text


@BY
def test_after_a_failure_in_an_operation_all_further_ones_raise(by: str, tmp_path: Path) -> None:
    timeouts = Timeouts(warn_s=1.0, abort_s=2.0)
    first, last = run("fails", 2, by=by, timeouts=timeouts, mark=str(tmp_path / "given up"))
    assert last[0].startswith("StalledError: rank 11 has waited")
    for errors in (first, last):
        assert len(errors) == 4
        # Slots and turns aren't alike any more; threads that wait for their turns have to hear it.
        for error in errors[1:]:
            assert "can't go on together, since an operation before has failed" in error


@BY
def test_warnings_that_are_errors_end_nobody(by: str) -> None:
    assert run("overflows", 2, by=by) == [[True, True, True]] * 2


def test_what_is_posted_fails_in_the_middle() -> None:
    """After no memory, which all ranks see, they go on; after the other nothing is posted."""
    (short, total, interrupted, *after), others = run("fails_posted", 2)
    assert "the host has no memory for arrays of 240000 bytes: Cannot allocate" in short
    assert others == [short, total, "[3.]"]
    assert total == "[3.]"
    assert interrupted == "InterruptedError: a signal's handler"
    assert len(set(after[:3])) == 1
    assert "can't go on together, since an operation before has failed in the" in after[0]
    assert after[3:] == ["0 more posts"]


def test_a_forked_child_posts_nothing(tmp_path: Path) -> None:
    assert run("forked", 2, mark=str(tmp_path / "mark")) == [[[11.0], [0.0]], [[11.0]]]


@BY
def test_a_rank_that_dies_before_anything_large_is_moved_is_noticed(by: str) -> None:
    """The last rank has message that it comes; the others wait for it in other ways then."""
    *others, dead = run("dies_late", 3, by=by)
    assert dead is None
    assert all(text.startswith("PeerLostError: ") for text in others)


@pytest.mark.long
@BY
def test_a_rank_that_is_busy_for_long_is_waited_for(by: str) -> None:
    """Longer than it takes TCP to miss a host that is cut off."""
    assert run("busy", 2, by=by, seconds=16.0) == [[2.0] * 40] * 2


def test_results_of_streams_are_kept_in_the_same_memory() -> None:
    """Fresh memory for each step would cost more than the sums."""
    assert run("addresses", 2, by="tcp") == [1, 1]


def _pair() -> tuple[Mesh, Mesh]:
    sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    timeouts = Timeouts(warn_s=0, abort_s=20.0)
    first, second = (
        Mesh(
            PeerConfig(job="pair", rank=rank, size=2, timeouts=timeouts),
            {1 - rank: SeqpacketSocket(sockets[rank], max_bytes=MAX_MESSAGE_BYTES)},
        )
        for rank in range(2)
    )
    return first, second


def test_messages_sent_before_the_end_are_delivered() -> None:
    ending, staying = _pair()
    signature, message = OpSignature("", "barrier"), Message(0, 7, b"")
    with contextlib.closing(staying):
        staying.send([0], Tag(9, 9, 9), message)  # Isn't read: the socket is reset.
        ending.send([1], Tag(1, 0, 0), message)
        ending.close()
        for _ in range(2):
            staying.send([0], Tag(1, 0, 0), message)
        assert staying.collect(Tag(1, 0, 0), [0], signature) == {0: message}
        with pytest.raises(PeerLostError, match="rank 0 has ended"):
            staying.collect(Tag(1, 1, 0), [0], signature)


def test_who_is_said_to_be_lost_has_lost_the_one_that_says_so() -> None:
    """A connection between two has broken, and both are there."""
    first, second = _pair()
    with contextlib.closing(first), contextlib.closing(second):
        first._lost_peers.error([1], OpSignature("", "sum"), Group(5, (1,)))
        with pytest.raises(PeerLostError, match="rank 1 waits in sum, but rank 0 has ended"):
            second.collect(Tag(1, 0, 0), [0], OpSignature("", "sum"), group=Group(5, (0,)))


def test_of_several_that_have_ended_the_first_is_named() -> None:
    """Rank 2 has ended of the end of rank 1, for which only rank 2 has waited."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    sockets = {
        rank: SeqpacketSocket(ours, max_bytes=MAX_MESSAGE_BYTES)
        for rank, (ours, _) in enumerate(pairs, 1)
    }
    mesh = Mesh(PeerConfig(job="four", rank=0, size=4, spins=False), sockets)
    signature, group = OpSignature("", "sum"), Group(5, (1, 2, 3))
    with contextlib.closing(mesh):
        for rank, (_, theirs) in enumerate(pairs[:2], 1):
            theirs.close()
            with contextlib.suppress(PeerLostError):
                while True:
                    mesh.raise_if_unreachable([rank], signature)
        with pytest.raises(PeerLostError, match="rank 0 waits in sum, but rank 1 has ended"):
            mesh.collect(Tag(1, 0, 0), [2], signature, group=group)
        pairs[2][1].close()


class LateSocket(SeqpacketSocket):
    """Read just before the first message arrives."""

    is_early = True

    def receive(self) -> list[bytes]:
        if self.is_early:
            self.is_early = False
            return []
        return super().receive()


def test_a_deadlock_is_reported_though_an_end_is_received_before() -> None:
    """Rank 1 has told ranks 0 and 2 of a deadlock, and rank 2 has ended of it."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    (first, finder), (second, ended) = pairs
    sockets = {
        1: LateSocket(first, max_bytes=MAX_MESSAGE_BYTES),
        2: SeqpacketSocket(second, max_bytes=MAX_MESSAGE_BYTES),
    }
    mesh = Mesh(PeerConfig(job="three", rank=0, size=3, spins=False), sockets)
    with contextlib.closing(mesh), finder:
        finder.send(pack_message(DEADLOCK_FOUND, Message(0, 0, b"a cycle of ranks 1, 2")))
        ended.close()
        with pytest.raises(DeadlockError, match="a cycle of ranks 1, 2"):
            mesh.collect(Tag(1, 0, 0), [1, 2], OpSignature("", "barrier"))


def test_a_peer_that_is_cut_off_in_the_middle_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream stays silent, and doesn't fail; the mesh's connection does."""
    monkeypatch.setattr(tcp_backend, "_SILENCE_S", 0.0)
    ending, staying = _pair()
    ending.close()
    first, second = socket.socketpair()
    with contextlib.closing(staying), first, second:
        first.setblocking(False)
        stream = tcp_backend._Connection(first, 0, iter([]), iter([np.zeros(4)]))
        with pytest.raises(PeerLostError, match="rank 0 has ended"):
            tcp_backend._EventLoop([stream], staying, OpSignature("", "sum")).run()


def test_children_keep_no_sockets() -> None:
    ending, staying = _pair()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        ending.close()
        with contextlib.closing(staying), pytest.raises(PeerLostError, match="rank 0 has ended"):
            staying.collect(Tag(1, 0, 0), [0], OpSignature("", "barrier"))
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_what_many_ranks_cannot_put_into_a_message_is_posted() -> None:
    """Rows that are too long together; sums that travel with twice as many bits."""
    size, length = 5, 17_000
    configs = [PeerConfig(job=f"many {os.getpid()}", rank=r, size=size) for r in range(size)]

    def call(one: Communicator) -> tuple[float, float, int]:
        ones = np.ones(length, np.float16)
        rows = one.all_gather(ones * np.float16(one.rank), OpSignature("", "rows"))
        [total] = one.all_reduce([ones], ReduceOp.SUM, OpSignature("", "sum"))
        posts = one._backend.posts
        assert posts is not None
        return float(rows.sum(dtype=np.float64)), float(total.min()), posts._number

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(size) as pool:
        networks = [stack.enter_context(n) for n in pool.map(connect_local, configs)]
        results = pool.map(call, [Communicator(network, range(size)) for network in networks])
        assert list(results) == [(10.0 * length, 5.0, 2)] * size


@BY
def test_sets_of_ranks_side_by_side(by: str) -> None:
    everyone = [1111.0] * 2
    assert run("sets", 4, by=by) == [
        [11.0, 11.0, *everyone, 111.0, 111.0, 1001.0, 1001.0],
        [11.0, 11.0, *everyone, 111.0, 111.0, 1110.0, 1110.0],
        [1100.0, 1100.0, *everyone, 111.0, 111.0, 1110.0, 1110.0],
        [1100.0, 1100.0, *everyone, 1110.0, 1110.0, 1001.0, 1001.0],
    ]


@BY
def test_writes_to_a_result_are_private(by: str) -> None:
    assert run("written_to", 3, by=by) == [[[6.0], [1.0, 2.0, 3.0], [1.0]]] * 3


@pytest.mark.parametrize("size", [2, 4])
def test_a_byte_is_written_for_each_that_is_reduced(size: int) -> None:
    for ratio in run("counted", size):
        assert ratio == pytest.approx(1.0, rel=0.01)


def test_a_worker_that_does_not_connect_is_named() -> None:
    with pytest.raises(CommunicationError, match="local rank 1 of 2 hasn't connected within 0.2 s"):
        connect_local(PeerConfig(job=f"alone {os.getpid()}", rank=0, size=2, connect_timeout_s=0.2))
    with pytest.raises(CommunicationError, match="local rank 0 of 2 hasn't connected within 0.2 s"):
        connect_local(PeerConfig(job=f"alone {os.getpid()}", rank=1, size=2, connect_timeout_s=0.2))


def _listen_as_nobody(name: str, ready: Any, done: Any) -> None:
    os.setuid(65534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(name)
        listener.listen(1)
        ready.set()
        done.wait(30)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_not_trusted() -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    name = f"\0tfddl-{os.getuid()}-{stable_hash('stolen'):016x}-0"
    stranger = context.Process(target=_listen_as_nobody, args=(name, ready, done))
    stranger.start()
    try:
        assert ready.wait(30)
        with pytest.raises(CommunicationError, match="a process of another user listens"):
            connect_local(PeerConfig(job="stolen", rank=1, size=2, connect_timeout_s=40.0))
    finally:
        done.set()
        stranger.join(30)
        stranger.close()


def test_unauthenticated_clients_keep_nobody_waiting() -> None:
    """Processes of this user, even, that don't know the secret; some of them silent."""
    configs = [
        PeerConfig(
            job=f"attacked {os.getpid()}",
            rank=rank,
            size=3,
            secret=b"s" * 16,
            connect_timeout_s=60.0,
        )
        for rank in range(3)
    ]
    name = f"\0tfddl-{os.getuid()}-{stable_hash(configs[0].job):016x}-0"
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(connect_local, configs[0])
        with attacking(name, kind=socket.SOCK_SEQPACKET):
            networks = [first, *(pool.submit(connect_local, config) for config in configs[1:])]
            found = [network.result(timeout=90) for network in networks]
        signature = OpSignature("", "a sum")
        sums = list(
            pool.map(
                lambda network: Communicator(network, range(3)).all_reduce(
                    [np.ones(2, np.float32)], ReduceOp.SUM, signature
                ),
                found,
            )
        )
    for network in found:
        network.close()
    assert [total.tolist() for [total] in sums] == [[3.0, 3.0]] * 3


def test_a_worker_with_another_secret_is_not_connected() -> None:
    job = f"secret {os.getpid()}"
    configs = [
        PeerConfig(job=job, rank=rank, size=2, secret=secret, connect_timeout_s=1.0)
        for rank, secret in enumerate([b"s" * 16, b"t" * 16])
    ]

    def error_of(config: PeerConfig) -> str:
        with pytest.raises(CommunicationError) as caught:
            connect_local(config)
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(error_of, configs)
    assert first == "local rank 1 of 2 hasn't connected within 1 s"
    assert second == "local rank 0 of 2 hasn't connected within 1 s"


def test_buffers_are_taken_again_once_they_are_free() -> None:
    buffers = BufferPool()
    first, second = buffers.take(np.dtype(np.float32), [100_000, 7])
    assert first.ctypes.data % ALIGNMENT == second.ctypes.data % ALIGNMENT == 0
    at = first.ctypes.data
    other = buffers.take(np.dtype(np.float32), [100_000, 7])[0]
    assert not np.shares_memory(first, other)
    del first  # The second still holds the memory.
    third = buffers.take(np.dtype(np.float32), [100_000, 7])[0]
    assert third.ctypes.data != at
    del second
    assert buffers.take(np.dtype(np.float32), [100_000, 7])[0].ctypes.data == at


def test_buffers_of_many_lengths_do_not_pile_up() -> None:
    buffers = BufferPool()
    for length in range(100_000, 400_000, 1_000):
        assert len(buffers.take(np.dtype(np.uint8), [length])[0]) == length
    assert len(buffers._buffers) < 10
    # A step's, all in use until its end.
    packs = [500_000] * 40 + list(range(1_000_000, 3_000_000, 100_000))
    places = []
    for _ in range(5):
        step = [buffers.take(np.dtype(np.uint8), [n])[0] for n in packs]
        places.append({array.ctypes.data for array in step})
        del step
    assert all(there == places[0] for there in places)
    assert len(buffers._buffers) == len(packs)
