"""Cases that train, run by every worker."""

from typing import Any

import tfddl
from tests import problem
from tfddl.segmentation.dice import exact_dice_loss


def dataset(spec: dict[str, Any]) -> Any:
    """What `train` trains on."""
    return tfddl.shard_dataset(
        problem.data(spec)[0],
        problem.labels(spec),
        problem.sample_weights(spec),
        batch_size=spec["batch_size"],
        seed=spec.get("seed"),
        order=spec.get("order", "global"),
    )


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """`fit` on what `shard_dataset` gives, through either door."""
    init_seed = 100 + tfddl.rank() * (not spec.get("same_init"))
    spec = {**spec, "synchronized": True, "init_seed": init_seed}
    with problem.precision(spec):
        return _train(spec)


def _train(spec: dict[str, Any]) -> dict[str, Any]:
    if tfddl.rank() == 0:
        spec["init_seed"] = 3  # Rank 0's weights are everyone's.
    options = problem.compile_options(spec)
    if spec["loss"] == "dice":
        options["loss"] = exact_dice_loss
    if spec.get("under_scope"):
        model, recorder = problem.model(spec, tfddl.strategy().scope())
        with tfddl.strategy().scope():
            model.compile(problem.optimizer(spec), **options)
    else:
        model, recorder = problem.model(spec)
        optimizer = tfddl.DistributedOptimizer(
            problem.optimizer(spec), **spec.get("distributed_options", {})
        )
        model.compile(optimizer, **options)
    validation = None
    if spec.get("n_val"):
        validation = tfddl.shard_dataset(
            problem.data(spec, "val")[0], problem.labels(spec, "val"), batch_size=spec["batch_size"]
        )
    trained = dataset(spec)
    history = model.fit(
        recorder.record(trained) if spec.get("jit_compile") else trained,
        epochs=spec["epochs"],
        validation_data=validation,
        class_weight=problem.class_weight(spec),
        verbose=0,
    )
    return {**problem.result(model, history), "seen": recorder.seen}
