"""A training that starts, and ends after a few steps: how long that takes, and what memory.

Each runs in processes of its own, where nothing was measured before.
"""

import os
import time

import keras
import tensorflow as tf

import tfddl
from tfddl._src.cluster import Cluster
from tfddl.bench import models
from tfddl.bench.config import Style
from tfddl.bench.jobs import PLAIN, Report, Sample, Task
from tfddl.bench.rss import Rss
from tfddl.bench.session import STRATEGY, other_collectives, start
from tfddl.bench.training import Fit, StrategyLoop

_STEPS = 6


class _Probe(keras.callbacks.Callback):
    """Reports the first step when it ends; notes what the process keeps after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped_s = 0.0
        self.kept_bytes = 0
        self._done = 0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by `fit`, and by the loop by hand."""
        self._done += 1
        if self._done == 1:
            self.stepped_s = time.perf_counter()
            Report(has_stepped=True).write()
        if self._done == _STEPS:
            self.kept_bytes = Rss.now().kept


def run(task: Task, cluster: Cluster, *, import_s: float) -> None:
    """Starts, trains for some steps, and reports; all workers of the job do.

    Args:
        task: What to train, and how.
        cluster: Who takes part.
        import_s: How long it took to import TensorFlow and Keras.
    """
    assert task.workload is not None
    began_s = time.perf_counter()
    if task.style is Style.OPTIMIZER:
        label = start(task.options)
    else:
        label = PLAIN
        _set_threads()
    strategy = None
    if task.style is Style.STRATEGY:
        label, strategy = STRATEGY, tf.distribute.MultiWorkerMirroredStrategy()
    initialized_s = time.perf_counter()
    started_bytes = Rss.now().kept
    probe = _Probe()
    trained: Fit | StrategyLoop
    if strategy is not None:
        trained = StrategyLoop(task.workload, strategy, rank=cluster.rank)
        for number in range(_STEPS):
            trained.step()
            probe.on_train_batch_end(number)
    else:
        trained = Fit(task.style, task.workload, rank=cluster.rank, size=cluster.size)
        trained.train(_STEPS, probe)
    Report(
        sample=Sample(
            label=label,
            import_s=import_s,
            init_s=initialized_s - began_s,
            first_step_s=probe.stepped_s - initialized_s,
            started_bytes=started_bytes,
            kept_bytes=probe.kept_bytes,
            gradient_bytes=models.gradient_bytes(trained.model),
        )
    ).write()
    if task.style is Style.OPTIMIZER:
        Report(others=other_collectives()).write()
        tfddl.barrier()  # Nobody is missed by a worker that is still at it.


def _set_threads() -> None:
    """As many as this worker may use cores, as `tfddl.init()` does."""
    number = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(number)
    tf.config.threading.set_inter_op_parallelism_threads(number)
