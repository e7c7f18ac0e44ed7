"""Measures training steps: plain Keras, tfddl, TensorFlow's strategy, in turns in one job."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

import tfddl
from tfddl._src.comm.process_group import ProcessGroup
from tfddl._src.runtime import current
from tfddl.bench import models
from tfddl.bench.config import Style
from tfddl.bench.devices import wait_for_devices
from tfddl.bench.interleave import Rounds, Run, differences, flat, interleave
from tfddl.bench.results import TrainingSpeed
from tfddl.bench.session import STRATEGY, Session
from tfddl.bench.stats import Spread, StepTimes, ratios
from tfddl.bench.workloads import Workload

_NET = Path("/sys/class/net")
_DETAILED_STEPS = 10


class StepClock(keras.callbacks.Callback):
    """Notes when each step of a `fit` ends, and what the process group had counted until then."""

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        super().__init__()
        self._process_group = process_group
        self.ends: list[float] = []
        self.collective_s: list[float] = []
        self.counters: list[dict[str, int]] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by Keras."""
        if batch + 1 == self.params["steps"]:
            wait_for_devices()
        self.ends.append(time.perf_counter())
        if self._process_group is not None:
            moved = self._process_group.counters
            self.collective_s.append(current().instrumentation.seconds())
            self.counters.append(
                {"reduced": moved.reduced, "written": moved.written, "sent": sent_bytes()}
            )


class Fit:
    """A model that `fit` trains on synthetic batches, in any style but `Style.STRATEGY`."""

    def __init__(self, style: Style, workload: Workload, *, rank: int, size: int) -> None:
        if style is Style.SCOPE:  # It deals global batches out.
            batches = [models.make_batch(workload, r) for r in range(size)]
            batch = tuple(tf.concat(parts, 0) for parts in zip(*batches, strict=True))
            with tfddl.strategy().scope():
                self.model = _compiled(workload, models.make_optimizer(workload))
        else:
            batch = models.make_batch(workload, rank)
            optimizer = models.make_optimizer(workload)
            if style is Style.OPTIMIZER:
                optimizer = tfddl.DistributedOptimizer(optimizer)
            self.model = _compiled(workload, optimizer)
        self._data = tf.data.Dataset.from_tensors(batch).repeat()

    def train(self, steps: int, callback: keras.callbacks.Callback) -> None:
        """Trains for so many steps."""
        self.model.fit(self._data, steps_per_epoch=steps, callbacks=[callback], verbose=0)

    def run(self, steps: int, clock: StepClock | None = None) -> list[float]:
        """Trains; returns the seconds of each step.

        They come after one that doesn't count: a `fit` begins with what tfddl compares before it,
        and with the input pipeline.
        """
        clock = clock or StepClock()
        self.train(steps + 1, clock)
        return differences(clock.ends)


class StrategyLoop:
    """`tf.distribute.MultiWorkerMirroredStrategy` in a loop by hand.

    References:
        "Custom training loop with Keras and MultiWorkerMirroredStrategy", TensorFlow tutorials,
        https://www.tensorflow.org/tutorials/distribute/multi_worker_with_ctl
    """

    def __init__(self, workload: Workload, strategy: tf.distribute.Strategy, *, rank: int) -> None:
        with strategy.scope():
            self.model = model = models.make_model(workload)
            optimizer = models.make_optimizer(workload)
            optimizer.build(model.trainable_variables)
        loss_fn = models.make_loss(workload)
        x, y = models.make_batch(workload, rank)

        def step() -> None:
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True)) / strategy.num_replicas_in_sync
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)

        self.step = tf.function(lambda: strategy.run(step))

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step, after one that doesn't count, as `Fit.run`."""
        ends = []
        for number in range(steps + 1):
            self.step()
            if number == steps:
                wait_for_devices()
            ends.append(time.perf_counter())
        return differences(ends)


def measure_training(session: Session, workload: Workload) -> list[TrainingSpeed]:
    """Trains a model in all styles that are asked for. All ranks must call it together."""
    rank, size, config = session.cluster.rank, session.cluster.size, session.config
    make = functools.partial(Fit, workload=workload, rank=rank, size=size)
    fits = {style: make(style) for style in (Style.PLAIN, *config.styles)}
    runs: dict[Style, Run] = {style: fit.run for style, fit in fits.items()}
    if session.compares:
        runs[Style.STRATEGY] = StrategyLoop(workload, tfddl.strategy(), rank=rank).run
    with session.progress.within(workload.label):
        taken = interleave(
            runs,
            rounds=config.rounds,
            seconds=config.round_seconds,
            progress=session.progress,
            meter=session.meters["training"],
        )
    speeds = []
    for style in (style for style in runs if style is not Style.PLAIN):
        speed = _speed(session, workload, style, taken)
        if style is not Style.STRATEGY:
            speed = _with_details(speed, session, fits[style])
        gradient_bytes = models.gradient_bytes(fits[Style.PLAIN].model)
        speeds.append(dataclasses.replace(speed, gradient_bytes=gradient_bytes))
    keras.utils.clear_session()
    return speeds


def _speed(
    session: Session, workload: Workload, style: Style, taken: dict[Style, Rounds]
) -> TrainingSpeed:
    images = {s: [images_per_s(r, workload.batch_size) for r in taken[s]] for s in taken}
    over_strategy = None
    if Style.STRATEGY in images and style is not Style.STRATEGY:
        over_strategy = ratios(images[style], images[Style.STRATEGY])
    return TrainingSpeed(
        workers=session.cluster.size,
        model=workload.model,
        image_size=workload.image_size,
        batch_size=workload.batch_size,
        transport=STRATEGY if style is Style.STRATEGY else session.label,
        style=style,
        images_per_s=Spread.of(images[style]),
        plain_images_per_s=Spread.of(images[Style.PLAIN]),
        ratio=ratios(images[style], images[Style.PLAIN]),
        over_strategy=over_strategy,
        steps_per_round=len(taken[style][0][0]),
        step_s=statistics.median(flat(taken[style])),
        plain_step_s=statistics.median(flat(taken[Style.PLAIN])),
    )


def _with_details(speed: TrainingSpeed, session: Session, fit: Fit) -> TrainingSpeed:
    """Adds what some more steps tell, with the clock of collectives running."""
    instrumentation = current().instrumentation
    clock = StepClock(session.process_group)
    can_measure = instrumentation.measure(True)
    step_s = fit.run(_DETAILED_STEPS, clock)
    instrumentation.measure(False)
    collective_s = differences(clock.collective_s) if can_measure else []
    first, last = clock.counters[0], clock.counters[-1]
    of_ranks = tfddl.allgather_object(
        (step_s, collective_s, {name: last[name] - first[name] for name in last})
    )
    counted = [counters for _, _, counters in of_ranks]
    reduced, written = (
        sum(of_rank.get(name, 0) for of_rank in counted) for name in ("reduced", "written")
    )
    sent = [counted[rank]["sent"] // _DETAILED_STEPS for rank in session.leaders]
    return dataclasses.replace(
        speed,
        parts=StepTimes.of([s for s, _, _ in of_ranks], [c for _, c, _ in of_ranks]),
        bytes_written_per_byte_reduced=written / reduced if reduced else None,
        sent_bytes=tuple(sent) if len(sent) > 1 else (),
    )


def images_per_s(ranks: Sequence[Sequence[float]], batch_size: int) -> float:
    """Of all ranks together, from the seconds of each one's steps in a round."""
    return sum(batch_size * len(steps) / sum(steps) for steps in ranks)


def sent_bytes(net: Path = _NET) -> int:
    """What has left this host so far, through all its interfaces but the loopback."""
    return sum(
        int((interface / "statistics" / "tx_bytes").read_text())
        for interface in net.iterdir()
        if interface.name != "lo" and (interface / "statistics").is_dir()
    )


def _compiled(workload: Workload, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = models.make_model(workload)
    model.compile(optimizer, loss=models.make_loss(workload))
    return model
