"""How far the weights of N workers are from those of one process: ``python -m tests.exactness``.

Trains small problems for 20 steps in three ways: in several workers with tfddl; in as many, where
the workers' mean gradients are averaged whatever the number of examples each is the mean of; and in
one process with plain Keras that doesn't import tfddl, on the same examples in each step. Prints a
table in Markdown: the largest difference of any weight from the one process', divided by the
largest weight of its variable.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.group import WorkerGroup
from tests.one_process import in_one_process
from tfddl.bench.report import markdown

EPOCHS, STEPS = 4, 5
_BASE = {"loss": "scce", "optimizer": "sgd", "batch_size": 4, "epochs": EPOCHS, "seed": 1}

PROBLEMS: Mapping[str, dict[str, Any]] = {
    # At the usual rate this one diverges.
    "SGD with momentum, mean squared error": {"loss": "mse", "learning_rate": 0.01},
    "Adam, binary cross-entropy": {"optimizer": "adam", "loss": "bce"},
    "AdamW, cross-entropy": {"optimizer": "adamw"},
    "sample weights": {"sample_weight": True},
    "a loss divided by the weights' sum": {
        "sample_weight": True,
        "reduction": "mean_with_sample_weight",
    },
    "class weights": {"class_weight": True},
    "L2 regularizer": {"l2": True},
    "accumulation over 3 steps": {"optimizer_options": {"gradient_accumulation_steps": 3}},
    "clipping by the global norm": {"optimizer_options": {"global_clipnorm": 0.05}},
    "embedding, sparse gradients": {"embedding": True},
    "block order": {"order": "block"},
    "a step without an example for a worker": {"batch_size": 1, "missing": 1},
    "everything divides": {"missing": 0},
}
"""Specs of `tests.problem`; "missing" is how many examples an epoch has less than its steps have
room for, by default one per step."""


@dataclass(frozen=True)
class Distance:
    """From the weights of one process, relative to the largest weight of the variable.

    Attributes:
        counted: with tfddl, which weights gradients by their numbers of examples.
        averaged: with the plain average of the workers' gradients.
    """

    counted: float
    averaged: float


def spec_of(name: str, num_workers: int) -> dict[str, Any]:
    """The problem of a name for a number of workers, as `tests.problem` takes it."""
    spec = {**_BASE, **PROBLEMS[name]}
    missing = spec.pop("missing", STEPS)
    return {**spec, "n": STEPS * num_workers * spec["batch_size"] - missing}


def compare(group: WorkerGroup, names: Sequence[str], directory: Path) -> dict[str, Distance]:
    """Trains problems in all three ways.

    Args:
        group: The workers.
        names: Of the problems.
        directory: For the results of the one process.

    Raises:
        AssertionError: The workers didn't train on each example once per epoch.
    """
    specs = {name: spec_of(name, group.size) for name in names}
    ranks = {}
    for number, name in enumerate(names, 1):
        sys.stderr.write(f"{number} of {len(names)}: {name}\n")
        ranks[name] = group.run("tests.cases.exactness:train", spec=specs[name])
    jobs = [(specs[name], _joined([rank["batches"] for rank in ranks[name]])) for name in names]
    for spec, batches in jobs:
        assert [len(epoch) for epoch in batches] == [STEPS] * EPOCHS
        for epoch in batches:
            assert sorted(sum(epoch, [])) == list(range(spec["n"]))
    one = in_one_process(jobs, directory)
    return {
        name: Distance(
            *(
                max(_distance(rank[how], alone["weights"]) for rank in ranks[name])
                for how in ("counted", "averaged")
            )
        )
        for name, alone in zip(names, one, strict=True)
    }


def report(found: Mapping[str, Distance], *, num_workers: int) -> str:
    """A table in Markdown."""
    headings = (f"{num_workers} workers, {EPOCHS * STEPS} steps", "tfddl", "plain average")
    rows = [(name, f"{d.counted:.0e}", f"{d.averaged:.0e}") for name, d in found.items()]
    return markdown(headings, rows)


def _joined(ranks: Sequence[list[list[list[int]]]]) -> list[list[list[int]]]:
    """What all ranks together had in each step of each epoch."""
    epochs = zip(*ranks, strict=True)
    return [[sum(step, []) for step in zip(*epoch, strict=True)] for epoch in epochs]


def _distance(weights: Mapping[str, np.ndarray], one: Mapping[str, np.ndarray]) -> float:
    assert weights.keys() == one.keys()
    return max(float(np.abs(weights[k] - v).max() / np.abs(v).max()) for k, v in one.items())


def main(argv: Sequence[str]) -> None:
    """Compares as the flags say, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.exactness")
    parser.add_argument("--workers", type=int, default=2, choices=range(2, 17), metavar="N")
    parser.add_argument(
        "--case",
        action="append",
        choices=list(PROBLEMS),
        metavar="NAME",
        help="a problem, by its name in the table; may be repeated (default: all)",
    )
    arguments = parser.parse_args(argv)
    group = WorkerGroup(arguments.workers)
    try:
        group.start()
        with tempfile.TemporaryDirectory(prefix="tfddl-exactness-") as directory:
            found = compare(group, arguments.case or list(PROBLEMS), Path(directory))
    finally:
        group.close()
    sys.stdout.write(report(found, num_workers=arguments.workers) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
