"""Measures how far the weights of several workers are from those of one process.

Trains small problems for 20 steps: in several workers with tfddl; in as many, where the workers'
gradients are simply averaged, whatever the number of examples that each is the mean of; and in one
process with plain Keras that doesn't import tfddl, on the same examples in each step. Prints, as a
table in Markdown, the largest difference of any weight to the one process', divided by the largest
weight of its variable.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

import tfddl
from tfddl.bench.problems import PROBLEMS
from tfddl.bench.proof import ProofConfig, compare, report, train
from tfddl.errors import TfddlError

_WORKERS = flags.DEFINE_integer("workers", 2, "How many workers, at least 2.")
_CASES = flags.DEFINE_multi_string(
    "case",
    [],
    "Which problem, by its name in the table; can be repeated. Without it, all.",
)
_TRAIN = flags.DEFINE_string(
    "train", None, "For the workers: the folder for what they have arrived at."
)


def _train(directory: Path) -> None:
    """What a worker does."""
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    tfddl.init()
    train(directory, _CASES.value)
    tfddl.shutdown()


def main(argv: Sequence[str]) -> None:
    """Compares, or, in a worker, trains, as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    try:
        if _TRAIN.value is not None:
            _train(Path(_TRAIN.value))
        else:
            config = ProofConfig(num_workers=_WORKERS.value, names=tuple(_CASES.value or PROBLEMS))
            found = compare(config, environment=os.environ)
            sys.stdout.write(report(found, num_workers=config.num_workers) + "\n")
    except (TfddlError, OSError) as error:
        sys.exit(f"tfddl.bench.exactness: {type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
