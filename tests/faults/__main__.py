"""Injects faults into trainings, and shows what becomes of them: ``python -m tests.faults``.

Each fault comes to a small training of two workers in the middle of its second epoch. The training
resumes by itself, or when the same command is given again, and its final weights are compared, bit
for bit, with those of the same training without a fault. Prints a table in Markdown. With
``--random N`` workers of one training are killed N times, at random moments.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from tests.faults import injection, sweep
from tests.faults.cases import EPOCHS, FAULTS, NO_FAULT
from tfddl.errors import TfddlError

_CASES = flags.DEFINE_multi_string(
    "case", [], "The fault, by its name in the table; can be repeated. Without it, all."
)
_RANDOM = flags.DEFINE_integer(
    "random", 0, "Instead: kill workers of one training this many times, at random moments."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
_TRAIN = flags.DEFINE_string("train", None, "For the workers: the directory of their training.")
_RESIZABLE = flags.DEFINE_bool(
    "resizable", False, "For the workers: train as where their number changes."
)
_EPOCHS = flags.DEFINE_integer("epochs", EPOCHS, "For the workers: how many epochs.")
_LAUNCH = flags.DEFINE_integer("launch", 0, "For the workers: the number of this launch.")
_PAUSE_MS = flags.DEFINE_float("pause_ms", 0.0, "For the workers: added to each step.")


def _train(directory: Path) -> None:
    import tfddl
    from tests.faults import training

    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    tfddl.init()
    name = _CASES.value[0] if _CASES.value else NO_FAULT
    training.train(
        directory,
        FAULTS.get(name),
        resizable=_RESIZABLE.value,
        epochs=_EPOCHS.value,
        pause_s=_PAUSE_MS.value / 1000,
        start=f"{_LAUNCH.value}/{os.environ['TFDDL_RESTARTS']}",
    )


def main(argv: Sequence[str]) -> None:
    """Injects faults; in a worker: trains."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    unknown = [name for name in _CASES.value if name not in FAULTS]
    if unknown:
        raise app.UsageError(f"--case={unknown[0]!r} is none of: {'; '.join(FAULTS)}.")
    try:
        if _TRAIN.value is not None:
            _train(Path(_TRAIN.value))
            return
        with injection.temporary_directory() as name:
            if _RANDOM.value:
                text = sweep.at_random(
                    Path(name), _RANDOM.value, seed=_SEED.value, environment=os.environ
                )
            else:
                text = sweep.run_all(Path(name), _CASES.value, environment=os.environ)
        sys.stdout.write(text + "\n")
    except (TfddlError, OSError) as error:
        sys.exit(f"tests.faults: {type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
