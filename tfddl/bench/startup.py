"""A training that starts, and ends after a few steps: how long that takes, and what memory.

Each runs in processes of its own, where nothing was measured before.
"""

import os
import time

import keras
import tensorflow as tf

import tfddl
from tfddl._src.cluster import Cluster, detect
from tfddl._src.runtime import current
from tfddl.bench import models, session
from tfddl.bench.config import Config, Style
from tfddl.bench.jobs import Kind, write_report
from tfddl.bench.machines import Memory
from tfddl.bench.results import PLAIN, STRATEGY
from tfddl.bench.training import fit, loop

_STEPS = 6


class _Probe(keras.callbacks.Callback):
    """Reports the first step when it ends; notes what the process keeps after the last."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by `fit`, and by the loop by hand."""
        if batch == 0:
            self.stepped_s = time.perf_counter()
            write_report("stepped")
        if batch == _STEPS - 1:
            self.kept = Memory.now().kept


def run(kind: Kind, config: Config, *, import_s: float) -> None:
    """Starts, trains for some steps, and reports; all workers of the job do."""
    [workload] = config.workloads
    cluster = detect(os.environ)
    assert isinstance(cluster, Cluster)  # tfddlrun has set TF_CONFIG.
    began_s = time.perf_counter()
    by, strategy = PLAIN, None
    if kind is Kind.START_TFDDL:
        session.start(config)
        by = current().process_group.name
    else:
        # As many as this worker may use cores, as `tfddl.init()` does.
        num_cores = len(os.sched_getaffinity(0))
        tf.config.threading.set_intra_op_parallelism_threads(num_cores)
        tf.config.threading.set_inter_op_parallelism_threads(num_cores)
    if kind is Kind.START_STRATEGY:
        by, strategy = STRATEGY, tf.distribute.MultiWorkerMirroredStrategy()
    initialized_s = time.perf_counter()
    at_start = Memory.now().kept
    probe = _Probe()
    if strategy is not None:
        trainer = loop(workload, by, rank=cluster.rank, strategy=strategy)
    else:
        trainer = fit(workload, by, Style.FIT, rank=cluster.rank, size=cluster.size)
    trainer.train(_STEPS, probe)
    sample = {
        "import_s": import_s,
        "init_s": initialized_s - began_s,
        "first_step_s": probe.stepped_s - initialized_s,
        "memory_mb": probe.kept / 1e6,
        "memory_at_start_mb": at_start / 1e6,
        "gradient_mb": models.gradient_mb(trainer.model),
    }
    write_report("by", by)
    write_report("sample", sample)
    if kind is Kind.START_TFDDL:
        write_report("others", session.other_collectives())
        tfddl.barrier()  # Nobody is missed by a worker that is still at it.
