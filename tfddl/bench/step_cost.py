"""What a training step of `fit` costs beyond plain Keras, in CPU time, by part.

CPU time, unlike time, hardly depends on what else the machine does. What can't be timed by itself
is the difference between two models that are trained in turns: one whose tensors stay in the graph
instead of being sent, and one that reads `shard_dataset`.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.comm.native import Communicator, ReduceOp
from tfddl._src.comm.native_group import NativeGroup
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, ProcessGroup, scaled
from tfddl._src.keras_hooks.callback_events import FirstCallback, LastCallback
from tfddl.bench import models
from tfddl.bench.config import Style, Workload
from tfddl.bench.interleave import Rounds, differences, interleave
from tfddl.bench.results import PLAIN, Labels, Row
from tfddl.bench.session import Session
from tfddl.bench.training import Trainer, fit

PLAIN_ARRAYS, UNSENT, SENT, ARRAYS, SHARD = "arrays", "unsent", "sent", "sent arrays", "shard"
"""Beside `PLAIN`: plain Keras with arrays; tfddl with tensors that stay in the graph, and that are
sent; the latter with arrays, and with `shard_dataset`."""

_TIMED_STEPS = 100
_MAX_DATA_BYTES = 2**26


def measure_step_cost(session: Session, workload: Workload) -> list[Row]:
    """Trains by `fit` in several ways in turns. All ranks must call it together.

    Returns:
        A row with milliseconds of CPU time of a step, means over the ranks. None where tensors
        don't go through collectives of tfddl's own.
    """
    if not isinstance(session.process_group, NativeGroup):
        return []
    cluster = session.cluster
    trainers = {
        PLAIN: fit(workload, PLAIN, Style.FIT, rank=cluster.rank, size=cluster.size),
        UNSENT: fit(workload, session.by, Style.FIT, rank=cluster.rank, size=cluster.size),
        SENT: fit(workload, session.by, Style.FIT, rank=cluster.rank, size=cluster.size),
        PLAIN_ARRAYS: _fit_arrays(workload, PLAIN_ARRAYS),
        ARRAYS: _fit_arrays(workload, ARRAYS),
        SHARD: _fit_arrays(workload, SHARD),
    }
    runs = {name: _cpu_seconds(trainer, name) for name, trainer in trainers.items()}
    rounds = interleave(session, workload.model, runs, seconds=session.config.round_seconds)
    cpu_ms = {name: _median_ms(rounds[name]) for name in trainers}
    timed = tfddl.allgather_object(_timed_parts(trainers[SENT]))
    hooks_ms, sum_ms = (1e3 * statistics.mean(parts[i] for parts in timed) for i in range(2))
    values = {
        "plain_ms": cpu_ms[PLAIN],
        "hooks_ms": hooks_ms,
        "header_ms": cpu_ms[UNSENT] - cpu_ms[PLAIN] - hooks_ms,
        "entering_ms": cpu_ms[SENT] - cpu_ms[UNSENT] - sum_ms,
        "sum_ms": sum_ms,
        "step_ms": cpu_ms[SENT],
        "ratio": cpu_ms[PLAIN] / cpu_ms[SENT],
        "plain_arrays_ms": cpu_ms[PLAIN_ARRAYS] - cpu_ms[PLAIN],
        "arrays_ms": cpu_ms[ARRAYS] - cpu_ms[SENT],
        "shard_ms": cpu_ms[SHARD] - cpu_ms[SENT],
    }
    keras.utils.clear_session()
    labels: Labels = {"workers": cluster.size, "by": session.by}
    return [Row("steps", workload.describe() | labels, values)]


def _fit_arrays(workload: Workload, name: str) -> Trainer:
    """Trains by `fit` on arrays, an epoch for so many steps, or as many as there is memory for."""
    rank, size = tfddl.rank(), tfddl.size()
    batch = tuple(part.numpy() for part in models.make_batch(workload, rank))
    most = max(2, _MAX_DATA_BYTES // sum(part.nbytes for part in batch))
    model, optimizer = models.make_model(workload), models.make_optimizer(workload)
    if name != PLAIN_ARRAYS:
        optimizer = tfddl.DistributedOptimizer(optimizer)
    model.compile(optimizer, loss=models.make_loss(workload))

    def train(steps: int, callback: keras.callbacks.Callback) -> None:
        times = min(steps, most) * (size if name == SHARD else 1)
        x, y = (np.concatenate([part] * times) for part in batch)
        if name == SHARD:
            data = tfddl.shard_dataset(x, y, batch_size=workload.batch_size)
            model.fit(data, callbacks=[callback], verbose=0)
        else:
            model.fit(x, y, batch_size=workload.batch_size, callbacks=[callback], verbose=0)

    return Trainer(model, train)


class _CpuClock(keras.callbacks.Callback):
    """Notes the CPU time of this process at the end of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by Keras."""
        self.ends.append(time.process_time())


def _cpu_seconds(trainer: Trainer, name: str) -> Callable[[int], Sequence[float]]:
    def run(times: int) -> Sequence[float]:
        clock = _CpuClock()
        with _unsent() if name == UNSENT else contextlib.nullcontext():
            trainer.train(times + 1, clock)
        return differences(clock.ends)

    return run


def _median_ms(rounds: Rounds) -> float:
    """The median over the rounds of the mean over ranks and steps: a step may do another's work."""
    means = [statistics.mean(s for steps in ranks for s in steps) for ranks in rounds]
    return 1e3 * statistics.median(means)


@contextlib.contextmanager
def _unsent() -> Iterator[None]:
    """Graphs that are made within keep to this rank what they would send."""
    reduce, gather = NativeGroup.all_reduce, NativeGroup.all_gather

    def all_reduce(
        self: NativeGroup,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        if tf.executing_eagerly():
            return reduce(self, tensors, op, scale=scale, signature=signature)
        return [tf.identity(tensor) for tensor in scaled(tensors, scale)]

    def all_gather(
        self: NativeGroup, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        if tf.executing_eagerly():
            return gather(self, flat, signature=signature)
        return tf.stack([flat] * self.size)

    with (
        mock.patch.object(NativeGroup, "all_reduce", all_reduce),
        mock.patch.object(NativeGroup, "all_gather", all_gather),
        # By `all_reduce`.
        mock.patch.object(NativeGroup, "sum_weighted", ProcessGroup.sum_weighted),
    ):
        yield


def _timed_parts(trainer: Trainer) -> tuple[float, float]:
    """Seconds of CPU time, per step, in the callbacks of `fit` and in collectives."""
    seconds = {"hooks": 0.0, "sum": 0.0}

    class Reset(keras.callbacks.Callback):
        """Leaves out what comes before the second step."""

        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            if batch == 1:
                seconds.update(dict.fromkeys(seconds, 0.0))

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == _TIMED_STEPS:
                self.seconds = dict(seconds)

    depth = dict.fromkeys(seconds, 0)

    def timed(owner: Any, method: str, part: str) -> Any:
        original = getattr(owner, method)

        def timing(*args: Any, **kwargs: Any) -> Any:
            began_s = time.thread_time()
            depth[part] += 1
            try:
                return original(*args, **kwargs)
            finally:
                depth[part] -= 1
                if not depth[part]:  # Collectives are made of others.
                    seconds[part] += time.thread_time() - began_s

        return mock.patch.object(owner, method, timing)

    reset = Reset()
    with (
        timed(FirstCallback, "on_train_batch_end", "hooks"),
        timed(LastCallback, "on_train_batch_end", "hooks"),
        timed(Communicator, "all_reduce", "sum"),
        timed(Communicator, "all_gather", "sum"),
        timed(Communicator, "sum_weighted", "sum"),
    ):
        trainer.train(_TIMED_STEPS + 2, reset)
    return reset.seconds["hooks"] / _TIMED_STEPS, reset.seconds["sum"] / _TIMED_STEPS
