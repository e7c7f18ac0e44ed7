"""Large arrays between hosts: TCP connections between workers, used in both directions.

The calling thread does all of it in one event loop: it sends what the system takes, receives what
has arrived, reduces, and sleeps when there is nothing to do.
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

from tfddl._src.comm.native.backend import Backend
from tfddl._src.comm.native.buffer_pool import BufferPool
from tfddl._src.comm.native.diagnostics import format_ranks
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import Group, OpSignature, stable_hash
from tfddl._src.comm.native.operation import OperationContext, OutputBuffers
from tfddl._src.comm.native.reductions import ReduceOp
from tfddl._src.comm.native.schedules import BroadcastSchedule, Partition, Transfers
from tfddl._src.comm.native.sparse_schedules import (
    GatherSchedule,
    TreeBroadcastSchedule,
    choose_all_reduce,
)
from tfddl._src.comm.native.tcp_connector import TcpConnector
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import CommunicationError, PeerLostError, StalledError

# How often an event loop that sleeps looks whether it should go on.
_POLL_S = 1.0

# After how long without a byte a peer may be cut off. TCP doesn't probe a connection that has
# unacknowledged data, and sends that again for up to fifteen minutes (tcp(7), tcp_retries2). The
# mesh's connection to the same peer is idle meanwhile: its keepalive probes tell. Where there is
# none, one is made, which tells at once.
_SILENCE_S = 10.0

_EMPTY = memoryview(b"")
_LOG = logging.getLogger("tfddl")


class TcpBackend(Backend):
    """TCP between hosts. Connections are made by the first large operation that needs them."""

    def __init__(
        self, mesh: Mesh, ranks: Sequence[int], purpose: str = "", *, connector: TcpConnector
    ) -> None:
        """Sends nothing yet.

        Args:
            mesh: connects the workers.
            ranks: who takes part, ascending, this worker among them.
            purpose: tells it from other backends of the same ranks.
            connector: makes the connections.
        """
        super().__init__(mesh, ranks, purpose)
        self._connector = connector
        self._partition = Partition(self._rank, self._size)
        self._sockets: dict[int, socket.socket] = {}
        self._pool = BufferPool()

    @property
    def num_connections(self) -> int:
        return len(self._sockets)

    def map_outputs(
        self, assigned: bytes, dtype: np.dtype, lengths: Sequence[int]
    ) -> OutputBuffers:
        del assigned
        # No other process sees this memory: what the caller writes to it needs no private view.
        own = self._pool.take(dtype, lengths)
        return OutputBuffers(own, own)

    def all_reduce(
        self,
        operation: OperationContext,
        inputs: FusionBuffer,
        outputs: FusionBuffer,
        reduction: ReduceOp,
    ) -> None:
        schedule = choose_all_reduce(self._partition, inputs, outputs, reduction, self._pool)
        self._run(operation, schedule.sends, schedule.receives, schedule.peers)
        # What arrives to be reduced, this worker's results, and those of the others.
        self.counters.written += 2 * inputs.num_bytes - inputs.num_bytes // self._size

    def all_gather(self, operation: OperationContext, row: np.ndarray, rows: np.ndarray) -> None:
        rows[self._rank] = row
        if self._size > MAX_DIRECT_SIZE:
            schedule = GatherSchedule(self._partition, rows)
            self._run(operation, schedule.sends, schedule.receives, schedule.peers)
            return
        self._run(operation, lambda _: iter([rows[self._rank]]), lambda peer: iter([rows[peer]]))

    def broadcast(
        self, operation: OperationContext, inputs: FusionBuffer, outputs: FusionBuffer, root: int
    ) -> None:
        if self._rank == root:
            for output, own in zip(outputs.arrays, inputs.arrays, strict=True):
                output[:] = own
        if self._size > MAX_DIRECT_SIZE:
            tree = TreeBroadcastSchedule(self._partition, outputs, root, self._pool)
            self._run(operation, tree.sends, tree.receives, tree.peers)
            return
        schedule = BroadcastSchedule(self._partition, outputs, root, self._pool)
        self._run(operation, schedule.sends, schedule.receives)

    def all_to_all(
        self,
        operation: OperationContext,
        parts: Sequence[np.ndarray],
        expected: Sequence[int],
        longest: int,
        consume: Callable[[int, list[np.ndarray]], None],
    ) -> None:
        del longest  # One span has everything: memory of this process isn't scarce.
        arrived = self._pool.take(parts[0].dtype, expected)
        arrived[self._rank] = parts[self._rank]
        self._run(operation, lambda peer: iter([parts[peer]]), lambda peer: iter([arrived[peer]]))
        consume(0, arrived)

    def _run(
        self,
        operation: OperationContext,
        sends: Callable[[int], Transfers],
        receives: Callable[[int], Transfers],
        peers: Sequence[int] | None = None,
    ) -> None:
        """Runs what is sent to, and received from, some other workers; each one by default."""
        peers = self._partition.others if peers is None else peers
        sockets = self._connect(peers, operation)
        connections = [
            _Connection(sockets[peer], self._ranks[peer], sends(peer), receives(peer))
            for peer in peers
        ]
        loop = _EventLoop(connections, self._mesh, operation.signature, operation.group)
        self._mesh.waited_s += loop.run()

    def abandon(self) -> None:
        # What is in the connections belongs to a broken operation: nobody can use them again.
        # Shut down, so that the others raise, too, instead of waiting for this worker.
        for connected in self._sockets.values():
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _connect(
        self, peers: Sequence[int], operation: OperationContext
    ) -> Mapping[int, socket.socket]:
        """The connections; makes those that there aren't yet."""
        missing = [self._ranks[peer] for peer in peers if peer not in self._sockets]
        if missing:
            signature = operation.signature
            try:
                found = self._connector.connect(
                    missing,
                    stable_hash(f"streams between {self._ranks} {self._purpose}"),
                    timeout_s=self._mesh.timeouts.abort_s,
                    check=lambda: self._mesh.raise_if_unreachable(
                        missing, signature, operation.group
                    ),
                )
            except CommunicationError as error:
                raise PeerLostError(f"{error}, which {signature} needs") from error
            self._sockets |= {self._ranks.index(peer): found[peer] for peer in missing}
            self._mesh.adopt_sockets(found)
        return self._sockets


class _Direction:
    """One direction of a connection."""

    def __init__(self, transfers: Transfers, move: Callable[[memoryview], int]) -> None:
        self._transfers, self._move = transfers, move
        self._view = _EMPTY
        self.is_done = False

    @property
    def is_blocked(self) -> bool:
        """Whether there is memory to send or fill, and the system can't do more now."""
        return bool(self._view)

    def advance(self) -> bool:
        """Moves what can be moved now; returns whether anything was moved, or all is done."""
        if not self._view and not self._next():
            return self.is_done
        try:
            count = self._move(self._view)
        except BlockingIOError:
            return False
        self._view = self._view[count:]
        if not self._view:
            # Not only when called again: advancing may reduce a chunk that others wait for.
            self._next()
        return True

    def _next(self) -> bool:
        """Takes the next array, if it is ready."""
        for array in self._transfers:
            if array is None:
                return False
            if array.size:
                self._view = array.view(np.uint8).data
                return True
        self.is_done = True
        # An empty slice of a view would still refer to its array, which the pool wants back.
        self._view = _EMPTY
        return False


class _Connection:
    """A TCP connection to another worker, in both directions."""

    def __init__(
        self, connected: socket.socket, peer: int, sends: Transfers, receives: Transfers
    ) -> None:
        self.peer = peer
        self._socket = connected
        self._directions = {
            select.POLLOUT: _Direction(sends, connected.send),
            select.POLLIN: _Direction(receives, functools.partial(_receive, connected)),
        }

    @property
    def is_done(self) -> bool:
        return all(direction.is_done for direction in self._directions.values())

    @property
    def events(self) -> int:
        """The poll events that it waits for."""
        return sum(event for event, one in self._directions.items() if one.is_blocked)

    def fileno(self) -> int:
        return self._socket.fileno()

    def advance(self) -> bool:
        """Moves what can be moved now; returns whether anything was."""
        # Not `any` of a generator, which would leave the second direction out.
        moved = [one.advance() for one in self._directions.values() if not one.is_done]
        return any(moved)


def _receive(connected: socket.socket, view: memoryview) -> int:
    count = connected.recv_into(view)
    if count == 0:
        # The other end has shut down, though its schedule still owes us something.
        raise ConnectionResetError
    return count


class _EventLoop:
    """Runs all connections of one operation."""

    def __init__(
        self,
        connections: Sequence[_Connection],
        mesh: Mesh,
        signature: OpSignature,
        group: Group | None = None,
    ) -> None:
        self._connections, self._mesh = connections, mesh
        self._signature, self._group = signature, group

    def run(self) -> float:
        """Returns when everything was sent and received; the seconds that it slept."""
        slept_s = 0.0
        while active := [one for one in self._connections if not one.is_done]:
            # All connections, one after the other, as long as any moves: the first to block must
            # not keep the others idle. Only then poll, which costs a system call.
            if not self._advance(active):
                begin_s = time.monotonic()
                self._sleep(active)
                slept_s += time.monotonic() - begin_s
        return slept_s

    def _advance(self, connections: Sequence[_Connection]) -> bool:
        has_moved = False
        for one in connections:
            try:
                has_moved |= one.advance()
            except OSError as error:
                raise self._mesh.stream_lost_error(
                    one.peer, self._signature, self._group
                ) from error
        return has_moved

    def _sleep(self, connections: Sequence[_Connection]) -> None:
        """Waits until the system can send or receive for a connection."""
        poll = select.poll()
        for one in connections:
            # POLLERR and POLLHUP are reported whatever is asked for (poll(2)): a lost peer wakes
            # us, and the next `advance` raises.
            if one.events:
                poll.register(one, one.events)
        timeouts = self._mesh.timeouts
        timer = WaitTimer(warn_s=timeouts.warn_s, abort_s=timeouts.abort_s)
        connect_s = 1.5 * _SILENCE_S  # Its neighbours know sooner, and tell.
        while not poll.poll(_POLL_S * 1000):
            self._mesh.raise_if_aborted()
            # Not sooner: the mesh's connection may end while the rest of what that peer has sent
            # here is on its way.
            if timer.elapsed_s >= _SILENCE_S:
                peers = [one.peer for one in connections]
                self._mesh.raise_if_unreachable(peers, self._signature, self._group)
                if timer.elapsed_s >= connect_s:
                    connect_s = 2 * timer.elapsed_s
                    self._mesh.connect_to(peers)
            if timer.should_warn():
                _LOG.warning("%s", self._describe(connections, timer.elapsed_s))
            if timer.is_expired():
                raise StalledError(self._describe(connections, timer.elapsed_s))

    def _describe(self, connections: Sequence[_Connection], waited_s: float) -> str:
        ranks = self._mesh.global_ranks
        peers = format_ranks([ranks[one.peer] for one in connections if one.events])
        return (
            f"rank {ranks[self._mesh.rank]} has waited for {waited_s:.0f} s in {self._signature}, "
            f"in the middle of it: nothing comes from {peers}, or nothing gets there; either is "
            "stopped, or the network between the hosts is"
        )
