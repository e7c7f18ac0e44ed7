"""What was measured, for TensorBoard.

TensorFlow, which writes it, takes seconds to load and chatters: so a process of its own does,
``python -m tfddl.bench.board DIR``, which is given the results on its stdin.
"""

import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfddl.bench.plots import bandwidths, draw, efficiencies
from tfddl.bench.report import report
from tfddl.bench.results import Results
from tfddl.bench.table import markdown
from tfddl.errors import DataError

_TIMEOUT_S = 300.0


def write_events(results: Results, logdir: Path, *, environment: Mapping[str, str]) -> None:
    """Writes pictures, curves and tables.

    The horizontal axis of the curves isn't time: it is the number of bytes, or of workers.

    Args:
        results: What was measured.
        logdir: What ``tensorboard --logdir`` is given.
        environment: What the process inherits that writes.

    Raises:
        DataError: It couldn't.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tfddl.bench.board", str(logdir)],
        input=pickle.dumps(results),
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        raise DataError(f"--logdir {logdir} couldn't be written:\n{said}")


def _write(results: Results, logdir: Path) -> None:
    from tfddl._src.callbacks.monitor_writer import EventWriter

    writer = EventWriter(str(logdir))
    for key, chart in bandwidths(results).items():
        for name, points in chart.items():
            for x, y in points:
                writer.scalars(_run(name), {f"bandwidth_gb_per_s/{key}": y}, int(x))
    for name, points in efficiencies(results).items():
        for x, y in points:
            writer.scalars(_run(name), {"efficiency/over_workers": y}, int(x))
    for name, picture in draw(results).items():
        writer.images(f"charts/{name}", np.asarray(picture)[np.newaxis], 0)
    writer.text("tables", report(results, markdown), 0)
    writer.end()


def _run(name: str) -> str:
    """A name as a folder."""
    return "".join(c if c.isalnum() else "_" for c in name)


if __name__ == "__main__":
    _write(pickle.load(sys.stdin.buffer), Path(sys.argv[1]))
