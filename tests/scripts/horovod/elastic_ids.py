"""An epoch whose examples are written down, for a job whose workers change in the middle of it.

    elastic_ids.py FOLDER [--kill-at EXAMPLE]

Each worker writes to a file of its process: the examples done before, workers, rank, time, its own.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--kill-at", type=int)
parser.add_argument("--examples", type=int, default=480)
parser.add_argument("--pause", type=float, default=0.2)
options = parser.parse_args()

hvd.init()
GLOBAL_BATCH = 12
inputs = np.random.default_rng(0).normal(size=(options.examples, 4)).astype(np.float32)
weights = tf.Variable(np.zeros(4, np.float32))


@tf.function
def step(batch: tf.Tensor) -> int:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.reduce_sum((weights - batch) ** 2, axis=1))
    tape = hvd.DistributedGradientTape(tape, op=hvd.Sum)
    [gradient] = tape.gradient(loss, [weights])
    weights.assign_sub(0.001 * gradient)
    return hvd.size()


def on_reset() -> None:
    print(f"reset as {hvd.rank()} of {hvd.size()}", flush=True)


@hvd.elastic.run
def train(state: hvd.elastic.TensorFlowState) -> None:
    while state.done < options.examples:
        number, rank = hvd.size(), hvd.rank()
        batch = range(state.done, min(options.examples, state.done + GLOBAL_BATCH))
        mine = list(batch)[rank::number]
        assert int(step(tf.constant(inputs[mine]))) == number
        done = [state.done, number, rank, time.time(), *mine]
        state.done += GLOBAL_BATCH
        print(*done, file=log, flush=True)  # At a change, the commit leaves this function.
        state.commit()
        (options.folder / f"{rank} of {number}").touch()
        killed = options.folder / "killed"
        if state.done == options.kill_at and rank == 1 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(options.pause)


state = hvd.elastic.TensorFlowState([weights], done=0)
state.register_reset_callbacks([on_reset])
with (options.folder / f"ids.{os.getpid()}").open("a") as log:
    train(state)
print(f"weights {weights.numpy().tolist()}", flush=True)
