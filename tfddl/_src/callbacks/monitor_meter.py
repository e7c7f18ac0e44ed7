"""What a rank measures of its training steps."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStats:
    """What one rank did in some training steps; NaN is what isn't known.

    All fields are numbers, so that it travels as a row of float64.
    """

    steps: float
    examples: float

    timed_steps: float
    """All but the first execution of a `fit`, which waits for TensorFlow to make the graph."""

    timed_examples: float
    seconds: float
    """Of the timed steps, each from the end of the one before, callbacks included."""

    collective_s: float
    """How many of the seconds this rank was in collectives."""

    median_s: float
    """Of the timed steps."""

    p95_s: float
    """Of the timed steps: the 95th percentile."""

    loss_total: float
    """The sum of the examples' losses."""

    loss_count: float

    @property
    def step_s(self) -> float:
        """The mean over the timed steps."""
        return _ratio(self.seconds, self.timed_steps)

    @property
    def collective_step_s(self) -> float:
        """The seconds in collectives of a step, in the mean."""
        return _ratio(self.collective_s, self.timed_steps)

    @property
    def busy_s(self) -> float:
        """The seconds of a step outside collectives, in the mean.

        In synchronous training all ranks take the same time for a step. The slowest is the one
        that waits least for the others, and so has the longest time outside collectives.
        """
        return self.step_s - self.collective_step_s

    def row(self) -> NDArray[np.float64]:
        """The fields, in order: ``StepStats.of_row(work.row()) == work``."""
        return np.array(dataclasses.astuple(self), np.float64)

    @classmethod
    def of_row(cls, row: NDArray[np.float64]) -> "StepStats":
        """From what `row` returned."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**dict(zip(names, row.tolist(), strict=True)))

    def __add__(self, later: "StepStats") -> "StepStats":
        """Both together; of two medians or percentiles there is none."""
        sums = self.row() + later.row()
        return dataclasses.replace(StepStats.of_row(sums), median_s=np.nan, p95_s=np.nan)


@dataclasses.dataclass(frozen=True)
class CounterValues:
    """What the counters of this rank show; only differences between two readings mean anything."""

    examples: float
    collective_s: float


class StepMeter:
    """Measures the training steps of this rank.

    Usage::

        meter = Meter(read)
        meter.resume()              # steps begin
        meter.step_ended(1)         # after each
        meter.note()                # before anything that isn't part of a step
        work = meter.take()         # what was done between the two
    """

    def __init__(
        self, read: Callable[[], CounterValues], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Makes a meter for one `fit`.

        Args:
            read: Reads the counters; takes some microseconds, unlike the clock.
            clock: Seconds since any moment.
        """
        self._read = read
        self._clock = clock
        self._is_first = True
        self._start_anew()
        self.resume()

    @property
    def steps(self) -> int:
        """How many steps ended since the last `take`."""
        return self._steps

    def resume(self) -> None:
        """The next step begins now."""
        self._last = self._read()
        self._last_s = self._clock()

    def step_ended(self, steps: int) -> None:
        """Steps that were executed together have ended.

        Args:
            steps: How many, >= 1.
        """
        before_s, self._last_s = self._last_s, self._clock()
        self._steps += steps
        if not self._is_first:
            self._step_s += [(self._last_s - before_s) / steps] * steps
            return
        self._is_first = False
        before = self._last
        self.resume()
        self._examples += self._last.examples - before.examples

    def note(self) -> None:
        """Takes in what the counters say of the steps so far."""
        before, self._last = self._last, self._read()
        examples = self._last.examples - before.examples
        self._examples += examples
        self._timed_examples += examples
        self._collective_s += self._last.collective_s - before.collective_s

    def take(self) -> StepStats:
        """What was done up to the last `note`; counting starts anew."""
        timed = self._step_s
        work = StepStats(
            steps=self._steps,
            examples=self._examples,
            timed_steps=len(timed),
            timed_examples=self._timed_examples,
            seconds=float(np.sum(timed)),
            collective_s=self._collective_s,
            median_s=float(np.median(timed)) if timed else np.nan,
            p95_s=float(np.percentile(timed, 95)) if timed else np.nan,
            loss_total=np.nan,
            loss_count=np.nan,
        )
        self._start_anew()
        return work

    def _start_anew(self) -> None:
        self._steps = 0
        self._examples = self._timed_examples = self._collective_s = 0.0
        self._step_s: list[float] = []


def _ratio(amount: float, number: float) -> float:
    return amount / number if number else np.nan
