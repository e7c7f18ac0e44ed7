"""The numbers of the charts, from the ranks' measurements; what each chart shows."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from tfddl._src.callbacks.monitor_meter import StepStats

MOST_RANKS_EACH = 16
"""Up to so many ranks have a line each; of more, three lines show how far they spread."""

DESCRIPTIONS = {
    "step/loss": "The mean over the examples that all ranks trained on since the point before.",
    "step/learning_rate": "That of the next step, unless a callback changes it before.",
    "speed/examples_per_second": "Of the whole job, over the steps since the point before.",
    "speed/step_ms_median": "Half of the steps since the point before took less.",
    "speed/step_ms_p95": "95 % of the steps since the point before took less.",
    "speed/collectives_ms": "How long a step spends in collectives, waiting for slower ranks "
    "included: the mean over the ranks and over the steps since the point before.",
    "speed/collectives_percent": "Which part of a step that is.",
    "ranks/busy_ms": "How long a rank's step takes outside of collectives, the mean over the "
    "epoch. The highest line is the rank that the others wait for.",
    "ranks/step_ms": "How long a rank's step takes, the mean over the epoch. The ranks wait for "
    "each other, so that it is about the same for all.",
    "ranks/examples": "How many examples a rank has trained on in the epoch.",
    "epoch/seconds": "How long the epoch took, validation included.",
}
"""What a chart shows, by its tag."""


def sum_by_rank(works: Iterable[Sequence[StepStats]]) -> list[StepStats]:
    """Each rank's sum over several intervals, of which there is a list of all ranks each."""
    sums: list[StepStats] = []
    for interval in works:
        sums = [a + b for a, b in zip(sums, interval, strict=True)] if sums else list(interval)
    return sums


def step_values(works: Sequence[StepStats]) -> dict[str, float]:
    """The charts over the steps of training.

    Args:
        works: Each rank's since the last point.

    Returns:
        Values by tag; without those that aren't known.
    """
    # In synchronous training a step takes as long as the slowest rank: hence the maximum.
    step_ms = 1e3 * max(work.step_s for work in works)
    collectives_ms = 1e3 * float(np.mean([work.collective_step_s for work in works]))
    seconds = max(work.seconds for work in works)
    examples = sum(work.timed_examples for work in works)
    count = sum(work.loss_count for work in works)
    values = {
        "step/loss": sum(work.loss_total for work in works) / count if count else math.nan,
        "speed/examples_per_second": examples / seconds if seconds else math.nan,
        "speed/step_ms_median": 1e3 * max(work.median_s for work in works),
        "speed/step_ms_p95": 1e3 * max(work.p95_s for work in works),
        "speed/collectives_ms": collectives_ms,
        "speed/collectives_percent": 100 * collectives_ms / step_ms,
    }
    return {tag: value for tag, value in values.items() if not math.isnan(value)}


def rank_values(works: Sequence[StepStats]) -> list[tuple[str, str, float]]:
    """The charts that compare the ranks.

    Args:
        works: Each rank's in an epoch.

    Returns:
        (run, tag, value) of each point, without those that aren't known.
    """
    by_tag = {
        "ranks/busy_ms": [1e3 * work.busy_s for work in works],
        "ranks/step_ms": [1e3 * work.step_s for work in works],
        "ranks/examples": [work.examples for work in works],
    }
    points = []
    for tag, values in by_tag.items():
        if len(values) <= MOST_RANKS_EACH:
            # Leading zeros, because TensorBoard sorts runs by name.
            digits = len(str(len(values) - 1))
            runs = {f"rank_{rank:0{digits}}": value for rank, value in enumerate(values)}
        else:
            runs = {
                "ranks_highest": max(values),
                "ranks_median": float(np.median(values)),
                "ranks_lowest": min(values),
            }
        points += [(run, tag, value) for run, value in runs.items() if not math.isnan(value)]
    return points


def slowest_rank(works: Sequence[StepStats]) -> int | None:
    """The rank that the others wait for; None where there is no other, or it isn't known."""
    # All take the same time per step; the slowest waits least for the others (`StepStats.busy_s`).
    busy = [work.busy_s for work in works]
    return None if len(busy) < 2 or any(map(math.isnan, busy)) else int(np.argmax(busy))


@dataclasses.dataclass(frozen=True)
class UpdateInterval:
    """The number of steps between two points of a chart."""

    steps: int

    @classmethod
    def of_epoch(cls, num_steps: int | None, every: int) -> "UpdateInterval":
        """Cuts an epoch into about equal parts.

        Args:
            num_steps: Of the epoch; None where it isn't known.
            every: About how many steps a part should have.
        """
        if num_steps is None:
            return cls(every)
        return cls(math.ceil(num_steps / max(1, round(num_steps / every))))
