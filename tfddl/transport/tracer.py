"""A record of what travels: when each collective began and ended, and how much it moved."""

import collections
import dataclasses
from typing import Any

import tensorflow as tf

_MOST_EVENTS = 1_000_000


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

    def start(self) -> None:
        """Forgets all events, and collects new ones."""
        self._events.clear()
        self.is_on = True
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
