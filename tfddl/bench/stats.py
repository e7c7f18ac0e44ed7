"""Medians and ratios of timings."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
    """The distribution of some values."""

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
    """Values over those of a baseline that was measured in alternation with them.

    Each is divided by its neighbour in time, so that what slows the machine for a while slows both.
    """
    return Spread.of([value / base for value, base in zip(values, baseline, strict=True)])


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Where the time of a step goes, in seconds: medians over the steps."""

    compute_s: float
    """Outside collectives, mean over the ranks."""

    waiting_s: float
    """In collectives, beyond the rank that was in them for the shortest time: for slower ranks."""

    moving_s: float
    """In collectives, on that rank: the last to come waits for nobody."""

    @classmethod
    def of(
        cls, step_s: Sequence[Sequence[float]], collective_s: Sequence[Sequence[float]]
    ) -> "StepTimes | None":
        """From what each rank measured of the same steps.

        Args:
            step_s: Shape (ranks, steps), seconds of each step.
            collective_s: Shape (ranks, steps), seconds of it within collectives.

        Returns:
            None where not every rank could measure collectives, or there were none.
        """
        if not all(collective_s) or not any(any(of_rank) for of_rank in collective_s):
            return None
        steps, collectives = np.array(step_s), np.array(collective_s)
        moving = collectives.min(axis=0)
        return cls(
            compute_s=float(np.median((steps - collectives).mean(axis=0))),
            waiting_s=float(np.median((collectives - moving).mean(axis=0))),
            moving_s=float(np.median(moving)),
        )
