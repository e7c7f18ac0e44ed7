"""Measures training steps: plain Keras, tfddl, TensorFlow's strategy, in turns in one job."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.comm.process_group import ProcessGroup
from tfddl._src.runtime import current
from tfddl.bench import models
from tfddl.bench.config import Style, Workload
from tfddl.bench.interleave import Rounds, differences, flat, interleave, repetitions
from tfddl.bench.results import PLAIN, STRATEGY, Labels, Row, ratios
from tfddl.bench.session import Session, wait_for_devices

_NET = Path("/sys/class/net")
_DETAILED_SECONDS = 0.5
_MIN_DETAILED_STEPS = 10

Case = tuple[str, Style]
"""The label "by", and how it is trained."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A model, and what trains it for some steps, on one batch; a callback gets their ends."""

    model: keras.Model
    train: Callable[[int, keras.callbacks.Callback], object]


def fit(workload: Workload, by: str, style: Style, *, rank: int, size: int) -> Trainer:
    """Trains by `fit`: compiled by XLA or not, under the scope of tfddl's strategy or not."""
    batch = models.make_batch(workload, rank)
    scope = tf.distribute.get_strategy()  # The one of this device.
    if style is Style.SCOPE:  # It splits global batches.
        scope = tfddl.strategy()
        batches = [models.make_batch(workload, r) for r in range(size)]
        batch = tuple(tf.concat(parts, 0) for parts in zip(*batches, strict=True))
    with scope.scope():
        model, optimizer = models.make_model(workload), models.make_optimizer(workload)
        if style is not Style.SCOPE and by != PLAIN:
            optimizer = tfddl.DistributedOptimizer(optimizer)
        jit = True if style is Style.JIT else "auto"
        model.compile(optimizer, loss=models.make_loss(workload), jit_compile=jit)
    data = tf.data.Dataset.from_tensors(batch).repeat()

    def train(steps: int, callback: keras.callbacks.Callback) -> None:
        model.fit(data, steps_per_epoch=steps, callbacks=[callback], verbose=0)

    return Trainer(model, train)


def loop(
    workload: Workload, by: str, *, rank: int, strategy: tf.distribute.Strategy | None = None
) -> Trainer:
    """Trains in a loop by hand: as plain Keras, with tfddl's tape, or by TensorFlow's strategy.

    References:
        "Custom training loop with Keras and MultiWorkerMirroredStrategy", TensorFlow tutorials,
        https://www.tensorflow.org/tutorials/distribute/multi_worker_with_ctl
    """
    scope = strategy or tf.distribute.get_strategy()
    with scope.scope():
        model = models.make_model(workload)
        optimizer = models.make_optimizer(workload)
        optimizer.build(model.trainable_variables)
    loss_fn = models.make_loss(workload)
    x, y = models.make_batch(workload, rank)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True)) / scope.num_replicas_in_sync
        if by not in (PLAIN, STRATEGY):
            tape = tfddl.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    compiled = tf.function(lambda: scope.run(step) if strategy else step())

    def train(steps: int, callback: keras.callbacks.Callback) -> None:
        callback.set_params({"steps": steps})
        for number in range(steps):
            compiled()
            callback.on_train_batch_end(number)

    return Trainer(model, train)


class StepClock(keras.callbacks.Callback):
    """Notes when each step ends, and what the process group had counted until then."""

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        super().__init__()
        self._process_group = process_group
        self.ends: list[float] = []
        self.collective_s: list[float] = []
        self.counters: list[list[int]] = []
        """Bytes reduced, written, and sent by this host, after the first step and the last."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by a `Trainer`."""
        is_last = batch + 1 == self.params["steps"]
        if is_last:
            wait_for_devices()
        # Outside of what is timed: the files of the network cards take as long as a small step.
        if not batch:
            self._count()
        self.ends.append(time.perf_counter())
        if self._process_group is not None:
            self.collective_s.append(current().instrumentation.seconds())
        if is_last:
            self._count()

    def _count(self) -> None:
        if self._process_group is not None:
            moved = self._process_group.counters
            self.counters.append([moved.reduced, moved.written, sent_bytes()])


def time_steps(trainer: Trainer, steps: int, *, clock: StepClock | None = None) -> list[float]:
    """Trains; returns the seconds of each step.

    They come after one that doesn't count: a `fit` begins with what tfddl compares before it, and
    with the input pipeline.
    """
    clock = clock or StepClock()
    trainer.train(steps + 1, clock)
    return differences(clock.ends)


def measure_training(session: Session, workload: Workload) -> list[Row]:
    """Trains a model in all styles that are asked for. All ranks must call it together."""
    trainers = _make_trainers(session, workload)
    runs = {case: functools.partial(time_steps, trainer) for case, trainer in trainers.items()}
    taken = interleave(session, workload.model, runs, seconds=session.config.round_seconds)
    rows = []
    for case, trainer in trainers.items():
        by, style = case
        if by != PLAIN:
            labels: Labels = {"workers": session.cluster.size, "by": by, "style": str(style)}
            values = _speed(case, workload.batch_size, taken)
            values["gradient_mb"] = models.gradient_mb(trainer.model)
            if by != STRATEGY:
                each_s = values["step_ms"] / 1e3
                steps = max(repetitions(_DETAILED_SECONDS, each_s), _MIN_DETAILED_STEPS)
                values |= _details(session, trainer, steps)
            rows.append(Row("training", workload.describe() | labels, values))
    keras.utils.clear_session()
    return rows


def _make_trainers(session: Session, workload: Workload) -> dict[Case, Trainer]:
    """Those that are compared, and plain Keras as the baseline of each."""
    cluster, styles = session.cluster, session.config.styles
    cases = [case for style in styles for case in (_baseline(style), (session.by, style))]
    if session.compares:
        cases += [_baseline(Style.LOOP), (STRATEGY, Style.LOOP)]

    def make(by: str, style: Style) -> Trainer:
        if style is Style.LOOP:
            strategy = tfddl.strategy() if by == STRATEGY else None
            return loop(workload, by, rank=cluster.rank, strategy=strategy)
        return fit(workload, by, style, rank=cluster.rank, size=cluster.size)

    return {case: make(*case) for case in dict.fromkeys(cases)}


def _baseline(style: Style) -> Case:
    return PLAIN, Style.FIT if style is Style.SCOPE else style


def _speed(case: Case, batch_size: int, taken: Mapping[Case, Rounds]) -> dict[str, float]:
    def per_s(case: Case) -> list[float]:
        return [examples_per_s(ranks, batch_size) for ranks in taken[case]]

    baseline, strategy = _baseline(case[1]), (STRATEGY, Style.LOOP)
    over_plain = ratios(per_s(case), per_s(baseline))
    values = {
        "examples_per_s": statistics.median(per_s(case)),
        "step_ms": 1e3 * statistics.median(flat(taken[case])),
        "plain_step_ms": 1e3 * statistics.median(flat(taken[baseline])),
        "ratio": statistics.median(over_plain),
        "ratio_min": min(over_plain),
        "ratio_max": max(over_plain),
    }
    if strategy in taken and case != strategy:
        values["over_strategy"] = statistics.median(ratios(per_s(case), per_s(strategy)))
    return values


def _details(session: Session, trainer: Trainer, steps: int) -> dict[str, float]:
    """What some more steps tell, with the clock of collectives running."""
    instrumentation = current().instrumentation
    clock = StepClock(session.process_group)
    can_measure = instrumentation.measure(True)
    step_s = time_steps(trainer, steps, clock=clock)
    instrumentation.measure(False)
    collective_s = differences(clock.collective_s) if can_measure else []
    counted = np.subtract(clock.counters[-1], clock.counters[0])
    of_ranks = tfddl.allgather_object((step_s, collective_s, counted))
    values = step_parts([s for s, _, _ in of_ranks], [c for _, c, _ in of_ranks])
    moved = np.array([counters for _, _, counters in of_ranks])
    reduced, written, _ = moved.sum(axis=0)
    if reduced:
        values["written"] = float(written / reduced)
    if len(session.leaders) > 1:
        values["sent_mb"] = float(moved[session.leaders, 2].max() / steps / 1e6)
    return values


def step_parts(
    step_s: Sequence[Sequence[float]], collective_s: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Where the time of a step goes: medians over the steps, in milliseconds.

    From seconds of steps, and of them within collectives, both of shape (ranks, steps).
    ``compute_ms``: outside collectives, mean over the ranks. ``waiting_ms``: in collectives, beyond
    the rank that was in them for the shortest time: for slower ranks. ``moving_ms``: on that rank:
    the last to come waits for nobody. Nothing where not every rank could measure collectives, or
    there were none.
    """
    if not all(collective_s) or not np.any(collective_s):
        return {}
    steps, collectives = np.array(step_s), np.array(collective_s)
    moving = collectives.min(axis=0)
    parts = {
        "compute_ms": (steps - collectives).mean(axis=0),
        "waiting_ms": (collectives - moving).mean(axis=0),
        "moving_ms": moving,
    }
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in parts.items()}


def examples_per_s(ranks: Sequence[Sequence[float]], batch_size: int) -> float:
    """Of all ranks together, from the seconds of each one's steps in a round."""
    return sum(batch_size * len(steps) / sum(steps) for steps in ranks)


def sent_bytes(net: Path = _NET) -> int:
    """What has left this host so far, through all its interfaces but the loopback."""
    counters = net.glob("*/statistics/tx_bytes")
    return sum(int(path.read_text()) for path in counters if path.parts[-3] != "lo")
