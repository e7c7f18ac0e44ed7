"""The one process that N workers are compared with: plain Keras on literal lists of indices.

A job is a pair (spec, batches), where ``batches[epoch][step]`` lists the examples of a step.
"""

import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests import fork_server, problem


def train(spec: dict[str, Any], batches: list[list[list[int]]]) -> dict[str, Any]:
    with problem.precision(spec):
        return _train(spec, batches)


def _train(spec: dict[str, Any], batches: list[list[list[int]]]) -> dict[str, Any]:
    x, y = problem.data(spec)[0], problem.labels(spec)
    weights = problem.sample_weights(spec)
    parts = (x, y) if weights is None else (x, y, weights)
    epochs = iter(batches)

    def one_epoch() -> Iterator[tuple[np.ndarray, ...]]:
        for indices in next(epochs):
            yield tuple(part[indices] for part in parts)

    dataset = tf.data.Dataset.from_generator(
        one_epoch,
        output_signature=tuple(tf.TensorSpec((None, *p.shape[1:]), p.dtype) for p in parts),
    ).apply(tf.data.experimental.assert_cardinality(len(batches[0])))
    model, recorder = problem.model(spec)
    if spec.get("jit_compile"):
        dataset = recorder.record(dataset)
    model.compile(problem.optimizer(spec), **problem.compile_options(spec))
    validation = None
    if spec.get("validation"):
        validation = (x[spec["validation"]], y[spec["validation"]])
    if spec.get("n_val"):
        validation = (problem.data(spec, "val")[0], problem.labels(spec, "val"))
    history = model.fit(
        dataset,
        epochs=len(batches),
        validation_data=validation,
        class_weight=problem.class_weight(spec),
        verbose=0,
    )
    assert recorder.seen == [step for epoch in batches for step in epoch]
    return problem.result(model, history)


def in_one_process(
    jobs: list[tuple[dict[str, Any], list[list[list[int]]]]], directory: Path
) -> list[dict[str, Any]]:
    """What one process arrives at, for each problem and its batches."""
    results, log = directory / "results", directory / "one_process.log"
    process = fork_server.start("tests.one_process:main", jobs, results, log=log)
    try:
        code = process.wait(timeout=180)
    finally:
        process.kill()
    if code != 0:
        raise subprocess.CalledProcessError(code, "tests.one_process", log.read_text())
    found: list[dict[str, Any]] = pickle.loads(results.read_bytes())
    return found


def main(jobs: list[tuple[dict[str, Any], list[list[list[int]]]]], results: Path) -> None:
    """Trains all, and writes what comes of it."""
    warnings.simplefilter("ignore")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    found = [train(spec, batches) for spec, batches in jobs]
    assert not [name for name in sys.modules if name.startswith("tfddl")]
    results.write_bytes(pickle.dumps(found))
