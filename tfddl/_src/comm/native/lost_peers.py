"""Which peers have ended, and what a worker says, and tells others, of those that it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfddl._src.comm.native.messages import (
    GROUP_FAILED,
    PEER_LOST,
    Group,
    Message,
    OpSignature,
    Tag,
)
from tfddl._src.comm.native.peer_sockets import PeerSockets
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl._src.comm.native.wait_tracker import Wait
from tfddl.errors import PeerLostError

# A rank that has ended without a word may have had its part in an operation that others are in:
# they get so long to finish it. If it hadn't, those that wait for it directly tell them sooner.
_KILLED_S = 5.0


class LostPeers:
    """What is known of peers that have ended."""

    def __init__(
        self,
        rank: int,
        global_ranks: Sequence[int],
        sockets: PeerSockets,
        *,
        tell: Callable[[Tag, Message], None],
    ) -> None:
        """Knows of none yet.

        Args:
            rank: this worker.
            global_ranks: the rank in the job of each worker, for messages.
            sockets: to the peers; they know which have ended.
            tell: sends a control message to all, without waiting.
        """
        self._rank, self._global_ranks = rank, global_ranks
        self._sockets, self._tell = sockets, tell
        self._exit_texts: dict[int, str] = {}
        # Those that have ended without a word, in that order, as far as this worker knows: those
        # that are connected to one tell all.
        self._killed: dict[int, None] = {}
        # By the key of a group: the peer that was lost in the middle of an operation of it.
        self._failed: dict[int, int] = {}

    def note_exit(self, peer: int, text: str) -> None:
        """A peer has said how its script has ended."""
        self._exit_texts[peer] = text

    def note_end(self, peer: int, *, tells: bool) -> None:
        """The connection to a peer has ended.

        Args:
            peer: which.
            tells: whether to tell all, where it hasn't said why.
        """
        if peer not in self._exit_texts and peer not in self._killed:
            self._killed[peer] = None
            if tells:
                self._tell(PEER_LOST, Message(0, peer, b""))

    def note_killed(self, peer: int) -> None:
        """A peer has ended without a word, as another one has said."""
        if peer != self._rank and peer not in self._exit_texts:
            self._killed.setdefault(peer)

    @property
    def any_ended(self) -> bool:
        """Whether any has, or was lost in the middle of an operation."""
        return bool(self._exit_texts or self._killed or self._failed or self._sockets.lost)

    def has_ended(self, peer: int) -> bool:
        """Whether a peer has said so, or its connection has."""
        return peer in self._exit_texts or peer in self._sockets.lost

    def is_lost(self, peer: int) -> bool:
        """Whether nothing more can come from a peer."""
        # What it has sent before may be unread in its socket, where there is one.
        is_unconnected = peer not in self._sockets.by_peer
        return peer in self._sockets.lost or (is_unconnected and peer in self._killed)

    def note_failed(self, peer: int, group_key: int, lost: int) -> None:
        """A peer has said whom it has lost in the middle of an operation."""
        # A peer that names this rank has lost the connection to it: so has this rank, to the peer.
        self._failed.setdefault(group_key, peer if lost == self._rank else lost)

    def knows_why(self, peer: int, group: Group | None) -> bool:
        """Whether it is known how a peer has ended, or that another one of a group was killed."""
        if peer in self._exit_texts or peer in self._killed:
            return True
        return group is not None and bool(self._killed_of(group))

    def error(
        self, peers: Sequence[int], signature: OpSignature, group: Group | None = None
    ) -> PeerLostError:
        """The error to raise where peers have ended; tells the group, too.

        Not all of the group wait for these: others wait for this worker, which gives up. All of
        the job hear it, as the way to some of the group may lead by others.

        Args:
            peers: who.
            signature: in what this worker waits.
            group: whom that is of.
        """
        if group is not None and group.key not in self._failed:
            self._failed[group.key] = peers[0]
            self._tell(GROUP_FAILED, Message(group.key, peers[0], b""))
        ranks = ", ".join(str(self._global_ranks[peer]) for peer in peers)
        loss = self._exit_texts.get(peers[0]) or self._sockets.loss(peers[0])
        own = self._global_ranks[self._rank]
        return PeerLostError(f"rank {own} waits in {signature}, but rank {ranks} {loss}")

    def raise_if_failed(self, group: Group, signature: OpSignature) -> None:
        """Raises if a rank of the group was lost in the middle of an operation of it."""
        if group.key in self._failed:
            raise self.error([self._failed[group.key]], signature)

    def raise_if_killed(self, wait: Wait, group: Group) -> None:
        """Raises if a rank of the group was killed that nobody may wait for directly.

        Whoever does may be late itself.
        """
        if not self._killed or len(group.others) < MAX_DIRECT_SIZE:
            return
        killed = self._killed_of(group)
        if not killed:
            return
        if wait.killed_s is None:
            wait.killed_s = wait.timer.elapsed_s
        elif wait.timer.elapsed_s - wait.killed_s >= _KILLED_S:
            raise self.error(killed[:1], wait.signature, group)

    def cause(self, lost: list[int], group: Group) -> list[int]:
        """Of whom to say that they are lost, where some that this worker waits for have ended."""
        # The first of those that were killed is the cause: others have ended since, as they had
        # waited for it, and may have had no time to tell.
        killed = self._killed_of(group)
        if not killed:
            return lost
        return [peer for peer in killed if peer in lost] if killed[0] in lost else killed[:1]

    def _killed_of(self, group: Group) -> list[int]:
        """Those of a group that have ended without a word, in that order."""
        return [peer for peer in list(self._killed) if peer in group.others]
