"""Workers that have joined take part in no operation until all have.

A worker that has nothing more to give tells it to each other one, once, and waits. Whoever waits
for its message in an operation finds that one instead: sockets keep the order, so that all others
agree about the operations in which it takes no part, and nobody asks before.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Sequence
from typing import NamedTuple

from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import (
    Message,
    Operation,
    OpSignature,
    Tag,
    pack_operations,
    stable_hash,
)

_LAST = 1
"""The step in which the first worker tells which one was the last."""

_MOST = struct.Struct("<Q")


class JoinResult(NamedTuple):
    """What workers know once all have joined."""

    last: int
    """The one that has taken part in most operations; of several, the one that joined last, as the
    first worker has seen it. The same on all workers."""

    missed: int
    """In how many operations of the last one this worker has taken no part."""


class JoinState:
    """Who of some workers has joined.

    Attributes:
        rounds: how often all of them have. Operations before and after don't match: those that had
            joined haven't counted the others' operations.
        tag: of the messages by which workers join.
    """

    def __init__(self, mesh: Mesh, ranks: Sequence[int], key: str) -> None:
        """Sends nothing yet.

        Args:
            mesh: connects the workers.
            ranks: who takes part, ascending, this worker among them.
            key: of these workers.
        """
        self.rounds = 0
        self._mesh, self._ranks = mesh, tuple(ranks)
        self._others = [rank for rank in ranks if rank != mesh.rank]
        self.tag = Tag(stable_hash(f"join {key}"), 0, 0)

    def join(
        self,
        num_operations: int,
        signature: OpSignature,
        *,
        active: Collection[Operation],
        lock: threading.Lock,
    ) -> JoinResult:
        """Waits, without a limit, until all have joined.

        Args:
            num_operations: how many this worker has taken part in since all had joined before.
            signature: of the call, for messages.
            active: in which operations other threads of this worker still take part.
            lock: no operation begins while it is held, and the others are told.

        Returns:
            The last one is a rank, as the mesh numbers them.
        """
        tag = self.tag
        were_first = list(self._mesh.arrived(tag))
        with lock:
            payload = pack_operations(tuple(active))  # Copied: others may end meanwhile.
            self._mesh.send(self._others, tag, Message(0, num_operations, payload))
        received = self._mesh.collect(tag, self._others, signature, is_timed=False)
        self.rounds += 1
        self.tag = tag._replace(occurrence=self.rounds % 2**32)
        first = self._ranks[0]
        tag = tag._replace(step=_LAST)
        if self._mesh.rank != first:
            message = self._mesh.collect(tag, [first], signature)[first]
            [most] = _MOST.unpack(message.payload)
            return JoinResult(message.value, most - num_operations)
        later = [rank for rank in received if rank not in were_first]
        numbers = {rank: message.value for rank, message in received.items()}
        numbers[first] = num_operations
        # `max` takes the first of those that are alike.
        last = max([*reversed(later), first, *reversed(were_first)], key=numbers.__getitem__)
        most = numbers[last]
        self._mesh.send(self._others, tag, Message(0, last, _MOST.pack(most)))
        return JoinResult(last, most - num_operations)
