"""What virtual workers cost: steps of `fit` that end in the same bits, beside those that don't.

With several workers each runs one virtual worker, against `DistributedOptimizer` without them. A
single worker runs `ALONE` of them, against as many batches that plain Keras accumulates.
"""

import statistics
from collections.abc import Callable, Sequence

import keras
import numpy as np

import tfddl
from tfddl.bench import models
from tfddl.bench.config import Workload
from tfddl.bench.interleave import Rounds, differences, interleave
from tfddl.bench.results import Labels, Row
from tfddl.bench.session import Session
from tfddl.bench.training import StepClock, Trainer

ALONE = 8
"""Virtual workers of a single worker."""

_PLAIN, _VIRTUAL = "plain", "virtual"
_MAX_DATA_BYTES = 2**27


def measure_virtual_cost(session: Session, workload: Workload) -> list[Row]:
    """Trains by `fit` in both ways in turns. All ranks must call it together.

    Returns:
        A row with milliseconds of a step, of the slowest rank: medians over the rounds.
    """
    size = session.cluster.size
    number = size if size > 1 else ALONE
    trainers = {
        _PLAIN: _fit(workload, None, alone=size == 1),
        _VIRTUAL: _fit(workload, number, alone=size == 1),
    }
    # Plain Keras accumulates: so many of its steps are one.
    every = {_PLAIN: number if size == 1 else 1, _VIRTUAL: 1}
    runs = {name: _seconds(trainer, every[name]) for name, trainer in trainers.items()}
    rounds = interleave(session, workload.model, runs, seconds=session.config.round_seconds)
    step_ms = {name: _median_ms(rounds[name]) for name in trainers}
    keras.utils.clear_session()
    values = {
        "plain_ms": step_ms[_PLAIN],
        "step_ms": step_ms[_VIRTUAL],
        "times_plain": step_ms[_VIRTUAL] / step_ms[_PLAIN],
    }
    labels: Labels = {"workers": size, "virtual_workers": number}
    return [Row("virtual", workload.describe() | labels, values)]


def _fit(workload: Workload, virtual_workers: int | None, *, alone: bool) -> Trainer:
    """Trains on `shard_dataset`: for so many steps, or as many as there is memory for.

    Args:
        workload: What is trained.
        virtual_workers: None is without them.
        alone: Whether one worker does what several do elsewhere, by accumulation.
    """
    batch = tuple(part.numpy() for part in models.make_batch(workload, tfddl.rank()))
    most = max(2, _MAX_DATA_BYTES // sum(part.nbytes for part in batch))
    model, optimizer = models.make_model(workload), models.make_optimizer(workload)
    if virtual_workers is None and alone:
        optimizer.gradient_accumulation_steps = ALONE
    else:
        optimizer = tfddl.DistributedOptimizer(optimizer, virtual_workers=virtual_workers)
    model.compile(optimizer, loss=models.make_loss(workload))
    in_step = ALONE if alone else tfddl.size()

    def train(steps: int, callback: keras.callbacks.Callback) -> None:
        times = min(steps * in_step, most // in_step * in_step or in_step)
        x, y = (np.concatenate([part] * times) for part in batch)
        data = tfddl.shard_dataset(
            x, y, batch_size=workload.batch_size, virtual_workers=virtual_workers
        )
        model.fit(data, callbacks=[callback], verbose=0)

    return Trainer(model, train)


def _seconds(trainer: Trainer, every: int) -> Callable[[int], Sequence[float]]:
    """Trains, and returns the seconds of each so many steps."""

    def run(times: int) -> Sequence[float]:
        clock = StepClock()
        trainer.train(times + 1, clock)
        return differences(clock.ends[every - 1 :: every])

    return run


def _median_ms(rounds: Rounds) -> float:
    """The median over the rounds of the slowest rank's median over its steps."""
    slowest = [max(statistics.median(steps) for steps in ranks) for ranks in rounds]
    return 1e3 * statistics.median(slowest)
