"""Strikes trainings, and shows what becomes of them.

For each way to strike one, a small training of two workers is struck in the middle of its second
epoch, goes on by itself (or when the same command is given again), and its final weights are
compared, bit for bit, with those of a training that nobody disturbed. Prints a table in Markdown.
With ``--random N`` one training is struck N times, at random moments.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from tfddl.bench import ordeal, ordeals
from tfddl.bench.blows import BLOWS, EPOCHS, UNDISTURBED
from tfddl.errors import TfddlError

_CASES = flags.DEFINE_multi_string(
    "case", [], "Which one, by its name in the table; can be repeated. Without it, all."
)
_RANDOM = flags.DEFINE_integer(
    "random", 0, "Instead: kill workers of one training so many times, at random moments."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the random moments.")
_TRAIN = flags.DEFINE_string("train", None, "For the workers: the folder of their training.")
_LIKE_SIZES = flags.DEFINE_bool(
    "like_sizes", False, "For the workers: train as in the case in which their number changes."
)
_EPOCHS = flags.DEFINE_integer("epochs", EPOCHS, "For the workers: how many epochs.")
_LAUNCH = flags.DEFINE_integer("launch", 0, "For the workers: how often the command was given.")
_PAUSE_MS = flags.DEFINE_float("pause_ms", 0.0, "For the workers: how much longer a step takes.")


def _train(directory: Path) -> None:
    """What a worker does."""
    import tfddl
    from tfddl.bench import victim

    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    tfddl.init()
    name = _CASES.value[0] if _CASES.value else UNDISTURBED
    victim.train(
        directory,
        BLOWS.get(name),
        like_sizes=_LIKE_SIZES.value,
        epochs=_EPOCHS.value,
        pause_s=_PAUSE_MS.value / 1000,
        start=f"{_LAUNCH.value}/{os.environ['TFDDL_RESTARTS']}",
    )


def main(argv: Sequence[str]) -> None:
    """Strikes, or, in a worker, trains, as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    unknown = [name for name in _CASES.value if name not in BLOWS]
    if unknown:
        raise app.UsageError(f"--case={unknown[0]!r} is none of: {'; '.join(BLOWS)}.")
    try:
        if _TRAIN.value is not None:
            _train(Path(_TRAIN.value))
            return
        with ordeal.make_folder() as name:
            if _RANDOM.value:
                text = ordeals.at_random(
                    Path(name), _RANDOM.value, seed=_SEED.value, environment=os.environ
                )
            else:
                text = ordeals.in_a_row(Path(name), _CASES.value, environment=os.environ)
        sys.stdout.write(text + "\n")
    except (TfddlError, OSError) as error:
        sys.exit(f"tfddl.bench.faults: {type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
