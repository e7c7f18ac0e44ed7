"""Control messages to all workers, each of which is connected to few others.

A worker passes a message on to its neighbours when it hears of it first. So it comes to all that
are connected in any way. Workers that have ended part the others into pieces; in each of these,
some were connected to one that has ended, and tell the rest. A message may be lost where a queue is
full; the order of one worker's messages is kept on each connection, and so for all that come.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from tfddl._src.comm.native.messages import BROADCAST, Message, Tag, pack_message, unpack_message

# How many of one worker's messages are told from new ones.
_MAX_KNOWN = 256


class Heard(NamedTuple):
    """A message to all."""

    origin: int
    """The worker that it is of, as the mesh numbers them."""

    tag: Tag
    message: Message


class Broadcasts:
    """One worker's part in it. The caller guards `receive` by a lock.

    Attributes:
        relays: whom this worker passes messages on to, where it is connected to them.
    """

    def __init__(self, rank: int, relays: Iterable[int]) -> None:
        """Has heard of none yet.

        Args:
            rank: this worker, as the mesh numbers them.
            relays: the first ones.
        """
        self.relays = dict.fromkeys(relays)
        self._rank = rank
        self._numbers = itertools.count()
        self._known: dict[int, collections.deque[int]] = {}

    def pack(self, tag: Tag, message: Message) -> bytes:
        """A message of this worker, to be sent to its relays."""
        wrapped = Message(self._rank, next(self._numbers), pack_message(tag, message))
        return pack_message(BROADCAST, wrapped)

    def receive(self, wrapped: Message) -> Heard | None:
        """What has arrived in a `BROADCAST`; None where this worker has had it before."""
        origin = wrapped.digest
        known = self._known.setdefault(origin, collections.deque(maxlen=_MAX_KNOWN))
        if origin == self._rank or wrapped.value in known:
            return None
        known.append(wrapped.value)
        return Heard(origin, *unpack_message(wrapped.payload))
