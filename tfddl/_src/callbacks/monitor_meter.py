"""What a rank measures of its training steps: examples, seconds, time in collectives."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStats:
    """Measurements of one rank in some training steps; NaN is what isn't known.

    All fields are numbers, so that ranks can gather it as a row of float64.
    """

    steps: float
    examples: float

    timed_steps: float
    """All but those of a fit's first execution, in which TensorFlow makes the graph."""

    timed_examples: float
    seconds: float
    """Of the timed steps, each from the end of the one before, callbacks included."""

    collective_s: float
    """Those of the seconds in which this rank was in collectives."""

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
        """The mean seconds of a step in collectives."""
        return _ratio(self.collective_s, self.timed_steps)

    @property
    def busy_s(self) -> float:
        """The mean seconds of a step outside collectives.

        In synchronous training all ranks take the same time for a step. The slowest is the one
        that waits least for the others, and so has the longest time outside collectives.
        """
        return self.step_s - self.collective_step_s

    def row(self) -> NDArray[np.float64]:
        """The fields, in order: ``StepStats.of_row(work.row()) == work``."""
        return np.array(dataclasses.astuple(self), np.float64)

    @classmethod
    def of_row(cls, row: NDArray[np.float64]) -> "StepStats":
        """The inverse of `row`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**dict(zip(names, row.tolist(), strict=True)))

    def __add__(self, later: "StepStats") -> "StepStats":
        """The sums of both; without median and percentile, which don't add up."""
        sums = self.row() + later.row()
        return dataclasses.replace(StepStats.of_row(sums), median_s=np.nan, p95_s=np.nan)


@dataclasses.dataclass(frozen=True)
class CounterValues:
    """This rank's counters; only differences between two of them mean anything."""

    examples: float
    collective_s: float


class StepMeter:
    """Measures the training steps of this rank.

    Usage::

        meter = StepMeter(read)
        meter.resume()              # steps begin
        meter.step_ended(1)         # after each
        meter.note()                # before anything that isn't part of a step
        work = meter.take()         # what was done between the two
    """

    def __init__(
        self, read: Callable[[], CounterValues], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """A meter for one `fit`.

        Args:
            read: Reads the counters; called less often than the clock, since it takes microseconds.
            clock: Seconds since any moment.
        """
        self._read = read
        self._clock = clock
        self._is_first = True
        self._start_anew()
        self.resume()

    @property
    def steps(self) -> int:
        """The number of steps since the last `take`."""
        return self._steps

    def resume(self) -> None:
        """Marks the beginning of the next step."""
        self._last = self._read()
        self._last_s = self._clock()

    def step_ended(self, steps: int) -> None:
        """Marks the end of one step, or of several that were executed together.

        Args:
            steps: Their number, >= 1.
        """
        before_s, self._last_s = self._last_s, self._clock()
        self._steps += steps
        if not self._is_first:
            # Of steps that are executed together only the sum is known.
            self._step_s += [(self._last_s - before_s) / steps] * steps
            return
        # Counted, but not timed: TensorFlow traces the step in it, for seconds.
        self._is_first = False
        before = self._last
        self.resume()
        self._examples += self._last.examples - before.examples

    def note(self) -> None:
        """Reads the counters at the end of a step."""
        before, self._last = self._last, self._read()
        examples = self._last.examples - before.examples
        self._examples += examples
        self._timed_examples += examples
        self._collective_s += self._last.collective_s - before.collective_s

    def take(self) -> StepStats:
        """The measurements up to the last `note`; starts anew."""
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
