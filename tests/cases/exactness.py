"""Training with and without counts, run by every worker."""

from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
from tests import problem
from tests.cases import training
from tfddl._src.data import find_shard


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Trains as tfddl does, and with the plain average of gradients, on the same examples.

    Returns:
        The weights by path, "counted" and "averaged"; "batches", this rank's examples of each step
        of each epoch, none in a step without any.
    """
    share = find_shard(training.dataset(spec))
    assert share is not None
    plan, rank = share.plan, tfddl.rank()
    steps = [
        [plan.batch(epoch=epoch, step=step, rank=rank) for step in range(plan.steps)]
        for epoch in range(spec["epochs"])
    ]
    batches = [[b.indices[: b.count].tolist() for b in epoch] for epoch in steps]
    return {
        "counted": training.train(spec)["weights"],
        "averaged": _train_averaged(spec, batches),
        "batches": batches,
    }


def _train_averaged(spec: dict[str, Any], batches: list[list[list[int]]]) -> dict[str, Any]:
    """In a loop by hand all ranks' gradients weigh the same, whatever their numbers of examples."""
    model, _ = problem.model(spec)
    optimizer = tfddl.DistributedOptimizer(problem.optimizer(spec))
    model.compile(optimizer, **problem.compile_options(spec))
    optimizer.build(model.trainable_variables)
    tfddl.broadcast_variables([*model.variables, *optimizer.variables])

    @tf.function(reduce_retracing=True)
    def step(x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weights, training=True)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    x, y = problem.data(spec)[0], problem.labels(spec)
    all_weights = _weights(spec, y)
    for indices in (indices for epoch in batches for indices in epoch):
        rows = indices or [0]  # Without examples: the first one, with the weight 0.
        weights = all_weights[rows] * np.float32(bool(indices))
        step(*(tf.constant(part) for part in (x[rows], y[rows], weights)))
    return {v.path: np.asarray(v) for v in model.weights}


def _weights(spec: dict[str, Any], y: np.ndarray) -> np.ndarray:
    classes, given = problem.class_weight(spec), problem.sample_weights(spec)
    if classes is not None:
        return np.array([classes[int(label)] for label in y], "float32")
    return np.ones(len(y), "float32") if given is None else given
