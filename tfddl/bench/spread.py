"""What many timings come to."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of some values."""

    median: float
    p95: float
    least: float
    most: float
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(
            median=float(np.median(values)),
            p95=float(np.percentile(values, 95)),
            least=min(values),
            most=max(values),
            number=len(values),
        )


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How values compare to others that were taken in alternation with them.

    Each is divided by its neighbour in time, so that what makes the machine slow for a while
    slows both.
    """
    return Spread.of([value / base for value, base in zip(values, baseline, strict=True)])


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Where the time of a step goes, in seconds: medians over the steps."""

    compute_s: float
    """Outside collectives, in the mean over the ranks."""

    waiting_s: float
    """In collectives, longer than the rank that was there least: for slower ranks."""

    moving_s: float
    """In collectives on the rank that was there least: the last to come waits for nobody."""

    @classmethod
    def of(
        cls, step_s: Sequence[Sequence[float]], collective_s: Sequence[Sequence[float]]
    ) -> "StepTimes":
        """From what each rank measured of the same steps.

        Args:
            step_s: By rank and step, how long it took.
            collective_s: By rank and step, how long the rank was in collectives.
        """
        steps, collectives = np.array(step_s), np.array(collective_s)
        moving = collectives.min(axis=0)
        return cls(
            compute_s=float(np.median((steps - collectives).mean(axis=0))),
            waiting_s=float(np.median((collectives - moving).mean(axis=0))),
            moving_s=float(np.median(moving)),
        )
