"""The first messages of an operation: what each worker is about to do, and its small tensors.

Between few workers each tells each other one. Between many, what they tell is put together along a
tree, up to the first of them, and goes back on the same way; so does that something isn't alike.
Where a worker has joined, each tells each other one nevertheless: so that all know of all, and go
on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import (
    LAST_FIRST_STEP,
    Group,
    Message,
    OpSignature,
    Tag,
)
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE, Tree

# Added to the value of a message: each has to tell each other one; or something isn't alike.
_DIRECT, _DIFFERENT = 1 << 63, 1 << 62


class Contribution(NamedTuple):
    """What one worker tells in the first messages of an operation."""

    signature: OpSignature
    """Of the operation."""

    value: int
    """A number that has to be alike everywhere, below 2 ** 62."""

    row: Callable[[], bytes]
    """What it tells each other worker; called only where that is needed."""

    start: Callable[[], bytes]
    """What `merge` takes of this worker."""

    merge: Callable[[bytes, bytes], bytes]
    """Puts together what one or several workers tell, and what another subtree of the tree does."""


class FirstMessages(NamedTuple):
    """What all workers have told."""

    merged: bytes | None
    """Put together; None where each has told each other one, or something isn't alike."""

    received: Mapping[int, Message]
    """Where each has told each other one, by rank: the messages of the others. Those that have
    joined have sent none."""

    is_different: bool = False
    """Whether something isn't alike, as all know, and nobody has joined."""


class FirstExchange:
    """Exchanges the first messages of operations of some workers."""

    def __init__(self, mesh: Mesh, rank: int, group: Group) -> None:
        """Sends nothing yet.

        Args:
            mesh: connects the workers.
            rank: index of this worker among them.
            group: the workers.
        """
        self._mesh, self._group = mesh, group
        ranks = sorted([mesh.rank, *group.others])
        self.is_direct = len(ranks) <= MAX_DIRECT_SIZE
        place = Tree.of(rank, len(ranks))
        self._children = [ranks[child] for child in place.children]
        self._parents = [] if place.parent is None else [ranks[place.parent]]

    def exchange(self, tag: Tag, excuse: Tag, own: Contribution) -> FirstMessages:
        """Tells the others, and hears what they tell.

        Args:
            tag: of the operation's first step.
            excuse: of messages of those that have joined, see `Mesh.collect`.
            own: what this worker tells.
        """
        if not self.is_direct:
            merged, flag = self._merge(tag, excuse, own)
            if not flag & _DIRECT:
                return FirstMessages(None if flag else merged, {}, is_different=bool(flag))
            tag = tag._replace(step=LAST_FIRST_STEP)
        return FirstMessages(None, self._tell_each(tag, excuse, own))

    def _tell_each(self, tag: Tag, excuse: Tag, own: Contribution) -> Mapping[int, Message]:
        mesh, peers = self._mesh, self._group.others
        if mesh.has_arrived(excuse):
            # Not to these, unless a thread of theirs has begun this operation before.
            gone, begun = mesh.excused(excuse, tag), mesh.arrived(tag)
            peers = [rank for rank in peers if rank not in gone or rank in begun]
        signature = own.signature
        mesh.send(peers, tag, Message(signature.digest, own.value, own.row()))
        return mesh.collect(tag, self._group.others, signature, group=self._group, excuse=excuse)

    def _merge(self, tag: Tag, excuse: Tag, own: Contribution) -> tuple[bytes, int]:
        """What all have told, put together; and a flag where it isn't alike, or one has joined."""
        # All workers come to the same conclusion: flags go up to the first one, and down to all.
        # That a worker has joined those below it see by themselves.
        merged, flags = own.start(), 0
        received = self._collect(tag, self._children, excuse, own)
        for child in self._children:
            payload, more = self._read(received.get(child), own)
            flags |= more
            if not flags:
                merged = own.merge(merged, payload)
        self._send(tag, self._parents, excuse, own, merged, flags)
        tag = tag._replace(step=tag.step + 1)
        if self._parents:
            [parent] = self._parents
            received = self._collect(tag, [parent], excuse, own)
            merged, flags = self._read(received.get(parent), own)
        self._send(tag, self._children, excuse, own, merged, flags)
        return merged, flags

    def _send(  # noqa: PLR0913 - whose, to whom, and what
        self,
        tag: Tag,
        peers: Sequence[int],
        excuse: Tag,
        own: Contribution,
        merged: bytes,
        flags: int,
    ) -> None:
        if self._mesh.has_arrived(excuse):
            gone = self._mesh.excused(excuse, tag)
            peers = [peer for peer in peers if peer not in gone]
        message = Message(own.signature.digest, own.value | flags, b"" if flags else merged)
        self._mesh.send(peers, tag, message)

    def _collect(
        self, tag: Tag, peers: Sequence[int], excuse: Tag, own: Contribution
    ) -> Mapping[int, Message]:
        if not peers:
            return {}
        return self._mesh.collect(tag, peers, own.signature, group=self._group, excuse=excuse)

    def _read(self, message: Message | None, own: Contribution) -> tuple[bytes, int]:
        """What a message has, and its flags; that of one that hasn't come is that it is direct."""
        if message is None:
            return b"", _DIRECT
        flags = message.value & (_DIRECT | _DIFFERENT)
        if (message.digest, message.value ^ flags) != (own.signature.digest, own.value):
            flags |= _DIFFERENT
        return message.payload, flags
