"""Cases that train, run by every worker."""

from typing import Any

import tfddl
from tests import problem


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """`fit` with a `DistributedOptimizer` on what `shard_dataset` gives."""
    spec = {**spec, "init_seed": 100 + tfddl.rank() * (not spec.get("same_init"))}
    if tfddl.rank() == 0:
        spec["init_seed"] = 3  # Rank 0's weights are everyone's.
    model, recorder = problem.model(spec)
    optimizer = tfddl.DistributedOptimizer(
        problem.optimizer(spec), **spec.get("distributed_options", {})
    )
    model.compile(optimizer, **problem.compile_options(spec))
    validation = None
    if spec.get("n_val"):
        validation = tfddl.shard_dataset(
            problem.data(spec, "val")[0], problem.labels(spec, "val"), batch_size=spec["batch_size"]
        )
    history = model.fit(
        tfddl.shard_dataset(
            problem.data(spec)[0],
            problem.labels(spec),
            problem.sample_weights(spec),
            batch_size=spec["batch_size"],
            seed=spec.get("seed"),
            order=spec.get("order", "global"),
        ),
        epochs=spec["epochs"],
        validation_data=validation,
        class_weight=problem.class_weight(spec),
        verbose=0,
    )
    return {**problem.result(model, history), "seen": recorder.seen}
