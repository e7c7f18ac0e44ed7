"""Holds a training between its steps until the next order comes, and measures the steps."""

import time

import keras

from tfddl._src.comm import ProcessGroup
from tfddl._src.runtime import current
from tfddl.bench.devices import wait_for_devices
from tfddl.bench.line import Line
from tfddl.bench.orders import Ran, Steps, Stop, Trains
from tfddl.bench.usage import Usage


class Pacer:
    """Between the steps of one training.

    A pause costs the training nothing but time: graphs, data and other workers stay as they are.
    So several jobs can take turns without any of them starting anew.
    """

    def __init__(self, line: Line, *, transport: ProcessGroup | None) -> None:
        """Begins before the model is made.

        Args:
            line: Where orders come from.
            transport: Whose clock and counters are read.
        """
        self.gradient_bytes = 0
        """Of one step; to be set before the first one."""
        self._line, self._transport = line, transport
        self._began_s = time.perf_counter()
        self._order: Steps | None = None
        self._ends: list[float] = []
        self._collectives: list[float] = []
        self._before: dict[str, int] = {}

    def step_ended(self) -> bool:
        """Called after each step; returns, with the next order, whether to train on."""
        now_s = time.perf_counter()
        if self._order is None:
            self._line.answer(
                Trains(first_step_s=now_s - self._began_s, gradient_bytes=self.gradient_bytes)
            )
            return self._take_order()
        if not self._ends:
            self._before = counters_of(self._transport)
        if len(self._ends) == self._order.number:
            wait_for_devices()
            now_s = time.perf_counter()
        self._ends.append(now_s)
        if self._order.with_clock and self._transport is not None:
            self._collectives.append(current().instrumentation.seconds())
        if len(self._ends) <= self._order.number:
            return True
        self._answer()
        return self._take_order()

    def _answer(self) -> None:
        if self._transport is not None:
            current().instrumentation.measure(False)
        counted = counters_of(self._transport)
        self._line.answer(
            Ran(
                step_s=_differences(self._ends),
                collective_s=_differences(self._collectives),
                counters={name: n - self._before.get(name, 0) for name, n in counted.items()},
                kept_bytes=Usage.now().kept,
            )
        )

    def _take_order(self) -> bool:
        """Waits for the next order, which is to train on or to stop."""
        order = self._line.take()
        if isinstance(order, Stop):
            return False
        assert isinstance(order, Steps)
        self._order = order
        self._ends, self._collectives = [], []
        if self._order.with_clock and self._transport is not None:
            running = current().instrumentation.measure(True)
            assert running, "nothing here makes operations deterministic"
        return True


class PacerCallback(keras.callbacks.Callback):
    """A pacer in a `fit`."""

    def __init__(self, pacer: Pacer) -> None:
        super().__init__()
        self._pacer = pacer
        self._goes_on = True

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Goes on with the next step once it is ordered."""
        # All ranks are told to stop after the same step, and may yet do another to agree on it.
        self._goes_on = self._goes_on and self._pacer.step_ended()
        if not self._goes_on:
            self.model.stop_training = True


def counters_of(transport: ProcessGroup | None) -> dict[str, int]:
    """What a transport has counted so far; nothing where it counts nothing."""
    if transport is None:
        return {}
    counters = transport.counters
    return {"bytes_reduced": counters.reduced, "bytes_written": counters.written}


def _differences(values: list[float]) -> tuple[float, ...]:
    return tuple(b - a for a, b in zip(values, values[1:], strict=False))
