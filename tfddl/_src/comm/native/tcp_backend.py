"""What is large, between hosts: a TCP stream between each two workers, both ways at once.

One thread does all of it: it sends what the system takes, takes what has arrived, adds up, and
sleeps when there is nothing to do. So each worker sends, and gets, what it has less than twice,
whatever their number, and all get the same bits.

References:
    "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", Patarasuk, Yuan, 2009:
    a reduce-scatter and an all-gather move the least.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfddl._src.comm.native.backend import Backend, OutputBuffers
from tfddl._src.comm.native.diagnostics import format_ranks
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import OpSignature, stable_hash
from tfddl._src.comm.native.operation import Operation
from tfddl._src.comm.native.reductions import ReduceOp
from tfddl._src.comm.native.schedules import (
    AllReduceSchedule,
    BroadcastSchedule,
    Partition,
    Transfers,
)
from tfddl._src.comm.native.shm import BufferPool
from tfddl._src.comm.native.stall_timer import StallTimer
from tfddl._src.comm.native.tcp_rendezvous import TcpRendezvous
from tfddl.errors import CommunicationError, PeerLostError, StalledError

_LOOK_S = 1.0
_NOTHING = memoryview(b"")
_LOG = logging.getLogger("tfddl")


class TcpBackend(Backend):
    """TCP between hosts."""

    def __init__(self, mesh: Mesh, ranks: Sequence[int], *, lobby: TcpRendezvous) -> None:
        """Begins; nothing is sent yet.

        Args:
            mesh: connects the workers.
            ranks: who takes part, ascending, this worker among them.
            lobby: where streams are made, when something large is to be moved for the first time.
        """
        super().__init__(mesh, ranks)
        self._lobby = lobby
        self._place = Partition(self._rank, self._size)
        self._sockets: dict[int, socket.socket] = {}
        self._buffers = BufferPool()

    def room(self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]) -> OutputBuffers:
        """See `Backend.room`."""
        del assigned
        own = self._buffers.take(dtype, lengths)
        return OutputBuffers(own, own)

    def reduce(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, reduction: ReduceOp
    ) -> None:
        """See `Backend.reduce`."""
        sums = AllReduceSchedule(self._place, mine, results, reduction, self._buffers)
        self._run(session, {p: (sums.sends(p), sums.gets(p)) for p in self._place.others})
        # Of each chunk: one part per other worker, one that is added up here, those of the others.
        self.counters.written += 2 * mine.num_bytes - mine.num_bytes // self._size

    def gather(self, session: Operation, mine: np.ndarray, rows: np.ndarray) -> None:
        """See `Backend.gather`."""
        rows[self._rank] = mine
        ways = {p: (iter([rows[self._rank]]), iter([rows[p]])) for p in self._place.others}
        self._run(session, ways)

    def broadcast(
        self, session: Operation, mine: FusionBuffer, results: FusionBuffer, root: int
    ) -> None:
        """See `Backend.broadcast`."""
        if self._rank == root:
            for result, own in zip(results.arrays, mine.arrays, strict=True):
                result[:] = own
        spread = BroadcastSchedule(self._place, results, root, self._buffers)
        self._run(session, {p: (spread.sends(p), spread.gets(p)) for p in self._place.others})

    def swap(
        self,
        session: Operation,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        take: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        """See `Backend.swap`; all of it is one stretch."""
        del longest
        arrived = self._buffers.take(parts[0].dtype, expected)
        arrived[self._rank] = parts[self._rank]
        ways = {p: (iter([parts[p]]), iter([arrived[p]])) for p in self._place.others}
        self._run(session, ways)
        take(0, arrived)

    def _run(self, session: Operation, scripts: Mapping[int, tuple[Transfers, Transfers]]) -> None:
        """Runs the scripts of all others, one for what goes and one for what comes."""
        sockets = self._connected(session.call)
        lines = [
            _Connection(sockets[peer], self._ranks[peer], sends, gets)
            for peer, (sends, gets) in scripts.items()
        ]
        try:
            self._mesh.waited_s += _EventLoop(lines, self._mesh, session.call).run()
        except BaseException:
            for connected in sockets.values():  # Nobody can go on with these: let all hear it.
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
            raise

    def _connected(self, call: OpSignature) -> dict[int, socket.socket]:
        if not self._sockets:
            ranks = [self._ranks[peer] for peer in self._place.others]
            purpose = stable_hash(f"streams between {self._ranks}")
            try:
                found = self._lobby.meet(
                    ranks,
                    purpose,
                    timeout_s=self._mesh.patience.abort_s,
                    check=lambda: self._mesh.raise_if_unreachable(ranks, call),
                )
            except CommunicationError as error:
                raise PeerLostError(f"{error}, which {call} needs") from error
            self._sockets = {self._ranks.index(rank): found[rank] for rank in ranks}
            self._mesh.keep_sockets(found)
        return self._sockets


class _Direction:
    """One direction of a stream."""

    def __init__(self, script: Transfers, move: Callable[[memoryview], int]) -> None:
        self._script, self._move = script, move
        self._view = _NOTHING
        self.is_over = False

    @property
    def is_blocked(self) -> bool:
        """Whether memory is there, and the system has to move it."""
        return bool(self._view)

    def go(self) -> bool:
        """Moves what can be moved now; whether anything was, or the script has ended."""
        if not self._view and not self._find():
            return self.is_over
        try:
            count = self._move(self._view)
        except BlockingIOError:
            return False
        self._view = self._view[count:]
        if not self._view:
            self._find()  # At once: what the script does now may be what another one waits for.
        return True

    def _find(self) -> bool:
        """Takes the next memory from the script, if it is there."""
        for array in self._script:
            if array is None:
                return False
            if array.size:
                self._view = array.view(np.uint8).data
                return True
        self.is_over = True
        self._view = _NOTHING  # An empty view would keep its array, which is wanted again.
        return False


class _Connection:
    """A stream to another worker."""

    def __init__(
        self, connected: socket.socket, peer: int, sends: Transfers, gets: Transfers
    ) -> None:
        self.peer = peer
        self._socket = connected
        self._ways = {
            select.POLLOUT: _Direction(sends, connected.send),
            select.POLLIN: _Direction(gets, functools.partial(_receive, connected)),
        }

    @property
    def is_over(self) -> bool:
        return all(way.is_over for way in self._ways.values())

    @property
    def events(self) -> int:
        """What it waits for."""
        return sum(event for event, way in self._ways.items() if way.is_blocked)

    def fileno(self) -> int:
        return self._socket.fileno()

    def go(self) -> bool:
        """Moves what can be moved now, both ways; whether anything was."""
        moved = [way.go() for way in self._ways.values() if not way.is_over]
        return any(moved)


def _receive(connected: socket.socket, room: memoryview) -> int:
    count = connected.recv_into(room)
    if count == 0:
        raise ConnectionResetError
    return count


class _EventLoop:
    """Everything that goes and comes in one operation."""

    def __init__(self, lines: Sequence[_Connection], mesh: Mesh, call: OpSignature) -> None:
        self._lines, self._mesh, self._call = lines, mesh, call

    def run(self) -> float:
        """Moves everything; returns the seconds without anything to do."""
        waited_s = 0.0
        while open_lines := [line for line in self._lines if not line.is_over]:
            if not self._go(open_lines):
                begin_s = time.monotonic()
                self._wait(open_lines)
                waited_s += time.monotonic() - begin_s
        return waited_s

    def _go(self, lines: Sequence[_Connection]) -> bool:
        has_moved = False
        for line in lines:
            try:
                has_moved |= line.go()
            except OSError as error:
                raise self._mesh.lost([line.peer], self._call) from error
        return has_moved

    def _wait(self, lines: Sequence[_Connection]) -> None:
        poll = select.poll()
        for line in lines:
            if line.events:
                poll.register(line, line.events)
        waiting = StallTimer(self._mesh.patience, time.monotonic())
        while not poll.poll(_LOOK_S * 1000):
            self._mesh.raise_if_aborted()
            now_s = time.monotonic()
            if waiting.is_time_to_warn(now_s):
                _LOG.warning("%s", self._describe(lines, now_s - waiting.begin_s))
            if waiting.is_over(now_s):
                raise StalledError(self._describe(lines, now_s - waiting.begin_s))

    def _describe(self, lines: Sequence[_Connection], seconds: float) -> str:
        names = format_ranks([self._mesh.names[line.peer] for line in lines if line.events])
        own = self._mesh.names[self._mesh.rank]
        return (
            f"rank {own} has waited for {seconds:.0f} s in {self._call}, in the middle of it: "
            f"nothing comes from {names}, or nothing gets there; either is stopped, or the network "
            "between the hosts is"
        )
