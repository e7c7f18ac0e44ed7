"""A record of what travels: when each collective began and ended, and how much it moved."""

import collections
import dataclasses
from typing import Any

import tensorflow as tf

from tfddl._src.comm.lazy_variable import LazyVariable
from tfddl._src.rendezvous import Rendezvous

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
        self.notes: Rendezvous | None = None
        """Where ranks tell each other that they record; None for one worker."""
        self._events: collections.deque[Event] = collections.deque(maxlen=_MOST_EVENTS)
        self.is_on = False
        """Whether events are collected."""
        self._running = LazyVariable(self._new_flag)

    @property
    def running(self) -> tf.Variable:
        """The same, for graphs."""
        return self._running.value

    def _new_flag(self) -> tf.Variable:
        with tf.device("CPU:0"):
            return tf.Variable(self.is_on, trainable=False, name="tfddl_tracing")

    def tell(self, at: int | None) -> None:
        """Notes that this rank records.

        Args:
            at: After how many operations of all ranks it began to; None where it doesn't.
        """
        if self.notes is not None:
            text = _OFF if at is None else f"{self.number} {at}"
            self.notes.put(_NOTE.format(self.notes.cluster.rank), text)

    def of(self, rank: int, *, before: int) -> int:
        """The number of the trace that a rank records.

        Args:
            rank: Which.
            before: After how many operations of all ranks we are; one that was begun later is none:
                the other one is further than we are.

        Returns:
            0 where it records none.
        """
        assert self.notes is not None
        number, at = map(int, (self.notes.get(_NOTE.format(rank)) or _OFF).split())
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
        self._running.set(True)

    def stop(self) -> list[Event]:
        """Collects no more; returns what there is, in the order in which it ended."""
        self.is_on = False
        self._running.set(False)
        events = list(self._events)
        self._events.clear()
        return events

    def add(self, event: Event) -> None:
        """Keeps an event."""
        self._events.append(event)
