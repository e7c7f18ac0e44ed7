"""How far the weights of several workers are from those of one process."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.data import find_shard
from tfddl._src.launcher.job import JobOptions, run_job
from tfddl.bench import problems
from tfddl.bench.problems import EPOCHS, PROBLEMS, STEPS, Problem
from tfddl.bench.table import markdown
from tfddl.errors import DataError, LaunchError

_COMMAND = (sys.executable, "-m", "tfddl.bench.exactness")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProofConfig:
    """What to compare."""

    num_workers: int
    names: tuple[str, ...] = tuple(PROBLEMS)
    """Of the problems."""

    def __post_init__(self) -> None:
        if self.num_workers < 2:
            raise DataError(f"workers is {self.num_workers}; it must be at least 2.")
        unknown = [name for name in self.names if name not in PROBLEMS]
        if unknown or not self.names:
            raise DataError(
                f"there is no problem {unknown}; there are {', '.join(map(repr, PROBLEMS))}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """From one process' weights, relative to the largest weight of the variable."""

    counted: float
    """Of tfddl: gradients weighed by the number of examples that they are the mean of."""

    averaged: float
    """Of the plain average of the workers' gradients."""


def compare(config: ProofConfig, *, environment: Mapping[str, str]) -> dict[str, Distance]:
    """Trains each problem in all three ways, and tells what it does meanwhile.

    Args:
        config: What to compare.
        environment: What the workers and the one process inherit.

    Raises:
        LaunchError: A job failed; it has said why.
        DataError: The workers didn't train on each example once per epoch.
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    with tempfile.TemporaryDirectory(prefix="tfddl-bench-") as name:
        directory = Path(name)
        command = (*_COMMAND, f"--train={directory}", *(f"--case={n}" for n in config.names))
        options = JobOptions(num_workers=config.num_workers, command=command)
        if run_job(options, environment=environment):
            raise LaunchError(f"the job of {config.num_workers} workers failed.")
        batches = _join_batches(directory, config)
        (directory / "batches.json").write_text(json.dumps(batches))
        # By its path and with -P, so that neither the package nor its folder is imported.
        alone = (sys.executable, "-P", "-W", "ignore", problems.__file__, str(directory))
        if subprocess.run(alone, env=environment, check=False).returncode:
            raise LaunchError("the one process to compare with failed.")
        return _distances(directory, config)


def report(found: Mapping[str, Distance], *, num_workers: int) -> str:
    """A table in Markdown."""
    headings = (f"{num_workers} workers, {EPOCHS * STEPS} steps", "tfddl", "plain average")
    rows = [
        (name, f"{distance.counted:.0e}", f"{distance.averaged:.0e}")
        for name, distance in found.items()
    ]
    return markdown(headings, rows)


def train(directory: Path, names: Sequence[str]) -> None:
    """What a worker does: trains each problem in both ways, and leaves what it arrived at."""
    rank = tfddl.rank()
    weights: dict[str, Any] = {}
    batches: dict[str, Any] = {}
    for number, name in enumerate(names, 1):
        if rank == 0:
            sys.stdout.write(f"{number} of {len(names)}: {name}\n")
            sys.stdout.flush()
        problem = PROBLEMS[name]
        counted, batches[name] = train_counted(problem)
        averaged = train_averaged(problem, batches[name])
        for way, values in (("counted", counted), ("averaged", averaged)):
            weights.update({f"{way} {name} {i}": value for i, value in enumerate(values)})
    np.savez(directory / f"rank.{rank}.npz", **weights)
    (directory / f"batches.{rank}.json").write_text(json.dumps(batches))


def train_counted(problem: Problem) -> tuple[list[np.ndarray], problems.Batches]:
    """As tfddl trains. All ranks must call it together.

    Returns:
        The weights, and the rank's examples of each step; none in a step without any.
    """
    data = problems.make_data(problem, problem.num_examples(tfddl.size()))
    model = problems.make_model(problem)
    optimizer = tfddl.DistributedOptimizer(problems.make_optimizer(problem))
    model.compile(optimizer, loss=problems.make_loss(problem))
    dataset = tfddl.shard_dataset(
        data.x, data.y, data.weights, batch_size=problem.batch_size, seed=1, order=problem.order
    )
    share = find_shard(dataset)
    assert share is not None
    classes = problems.class_weights(problem)
    model.fit(dataset, epochs=EPOCHS, class_weight=classes, verbose=0)
    plan, rank = share.plan, tfddl.rank()
    steps = [
        [plan.batch(epoch=epoch, step=step, rank=rank) for step in range(plan.steps)]
        for epoch in range(EPOCHS)
    ]
    batches = [[b.indices[: b.count].tolist() for b in epoch] for epoch in steps]
    return problems.weights_of(model), batches


def train_averaged(problem: Problem, batches: problems.Batches) -> list[np.ndarray]:
    """As one would without counts: the workers' gradients weigh the same, whatever their batches.

    All ranks must call it together.

    Returns:
        The weights.
    """
    data = problems.make_data(problem, problem.num_examples(tfddl.size()))
    model = problems.make_model(problem)
    optimizer = tfddl.DistributedOptimizer(problems.make_optimizer(problem))
    model.compile(optimizer, loss=problems.make_loss(problem))
    optimizer.build(model.trainable_variables)
    tfddl.broadcast_variables([*model.variables, *optimizer.variables])

    @tf.function(reduce_retracing=True)
    def step(x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor | None) -> None:
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x, y, predicted, weights, training=True)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for epoch in batches:
        for indices in epoch:
            step(*_rows(problem, data, indices))
    return problems.weights_of(model)


def _rows(
    problem: Problem, data: problems.Data, indices: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """A batch with its weights; without examples, the first one, with the weight 0."""
    x, y, *given = data.rows(indices or [0])
    classes = problems.class_weights(problem)
    weights: Any = given[0] if given else None
    if classes is not None:
        weights = np.array([classes[int(label)] for label in y], "float32")
    if problem.missing % STEPS:  # Some step has no example for some rank.
        weights = np.full(len(x), float(bool(indices)), "float32")
    parts = (x, y, weights)
    return tuple(None if p is None else tf.constant(p) for p in parts)  # type: ignore[return-value]


def _join_batches(directory: Path, config: ProofConfig) -> dict[str, Any]:
    """What all ranks together had in each step."""
    ranks = [
        json.loads((directory / f"batches.{rank}.json").read_text())
        for rank in range(config.num_workers)
    ]
    joined: dict[str, Any] = {}
    for name in config.names:
        epochs = zip(*(of_rank[name] for of_rank in ranks), strict=True)
        joined[name] = [[sum(step, []) for step in zip(*epoch, strict=True)] for epoch in epochs]
        everyone = list(range(PROBLEMS[name].num_examples(config.num_workers)))
        for epoch in joined[name]:
            if len(epoch) != STEPS or sorted(sum(epoch, [])) != everyone:
                raise DataError(
                    f"{name}: the workers' {len(epoch)} steps don't have each of "
                    f"{len(everyone)} examples once; there should be {STEPS} steps that do."
                )
    return joined


def _distances(directory: Path, config: ProofConfig) -> dict[str, Distance]:
    one = dict(np.load(directory / "one.npz"))
    ranks = [dict(np.load(directory / f"rank.{r}.npz")) for r in range(config.num_workers)]

    def distance(way: str, name: str) -> float:
        keys = [key for key in one if key.rpartition(" ")[0] == name]
        return max(
            float(np.abs(of_rank[f"{way} {key}"] - one[key]).max() / np.abs(one[key]).max())
            for of_rank in ranks
            for key in keys
        )

    return {
        name: Distance(counted=distance("counted", name), averaged=distance("averaged", name))
        for name in config.names
    }
