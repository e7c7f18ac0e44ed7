"""A record of what travels: when each collective began and ended, and how much it moved."""

import collections
import dataclasses
from typing import Any

import tensorflow as tf

from tfddl.transport import service

_MOST_EVENTS = 1_000_000
_NOTE, _OFF = "tfddl/records/{}", "0 0"


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A collective, as one rank saw it."""

    name: str
    ranks: tuple[int, ...]
    """Who took part."""

    num_bytes: int
    """What this rank gave."""

    begin_s: float
    """When this rank was ready, in seconds since the epoch, by its own clock."""

    end_s: float


class Tracer:
    """Collects events while somebody wants them; the newest million of them."""

    def __init__(self) -> None:
        self.path: Any = None
        """Where the trace that is running will be written, if one is."""
        self.number = 0
        """How many traces have been begun."""
        self.joined = 0
        """Which trace of rank 0 this rank has been in last, counted from 1."""
        self._rank: int | None = None
        self._events: collections.deque[Event] = collections.deque(maxlen=_MOST_EVENTS)
        self.is_on = False
        """Whether events are collected."""
        self._running: tf.Variable | None = None

    @property
    def running(self) -> tf.Variable:
        """The same, for graphs; made when it is first asked for, after the strategy."""
        if self._running is None:
            with tf.init_scope(), tf.device("CPU:0"):
                self._running = tf.Variable(False, trainable=False, name="tfddl_tracing")
        return self._running

    def open(self, rank: int) -> None:
        """Lets the others know whether this rank records. All ranks do so, after the strategy."""
        self._rank = rank
        self.tell(None)

    def tell(self, at: int | None) -> None:
        """Notes that this rank records.

        Args:
            at: After how many operations of all ranks it began to; None where it doesn't.
        """
        if self._rank is not None:
            text = _OFF if at is None else f"{self.number} {at}"
            service.put(_NOTE.format(self._rank), text)

    @staticmethod
    def of(rank: int, *, before: int) -> int:
        """The number of the trace that a rank records.

        Args:
            rank: Which.
            before: After how many operations of all ranks we are; one that was begun later is none:
                the other one is further than we are.

        Returns:
            0 where it records none.
        """
        number, at = map(int, service.get(_NOTE.format(rank)).split())
        return number if at < before else 0

    def start(self, at: int) -> None:
        """Forgets all events, and collects new ones.

        Args:
            at: How many operations of all ranks came before.
        """
        self._events.clear()
        self.number += 1
        self.is_on = True
        self.tell(at)
        self.running.assign(True)

    def stop(self) -> list[Event]:
        """Collects no more; returns what there is, in the order in which it ended."""
        self.is_on = False
        self.running.assign(False)
        events = list(self._events)
        self._events.clear()
        return events

    def add(self, event: Event) -> None:
        """Keeps an event."""
        self._events.append(event)
