"""What was measured, for TensorBoard: ``python -m tfddl.bench.tensorboard BENCH.json LOGDIR``.

A process of its own, as TensorFlow, which writes the events, takes seconds to load and chatters.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfddl.bench import plots
from tfddl.bench.report import report
from tfddl.bench.results import Results, read_json, write_json
from tfddl.bench.table import markdown
from tfddl.errors import DataError

_TIMEOUT_S = 300.0


def write_events(results: Results, logdir: Path, *, environment: Mapping[str, str]) -> None:
    """Writes curves and tables, and with matplotlib the pictures.

    The horizontal axis of the curves isn't time: it is the number of bytes, or of workers.

    Args:
        results: What was measured.
        logdir: What ``tensorboard --logdir`` is given.
        environment: What the process that writes inherits.

    Raises:
        DataError: It couldn't.
    """
    with tempfile.TemporaryDirectory(prefix="tfddl-bench-") as directory:
        path = Path(directory) / "bench.json"
        write_json(results, path)
        done = subprocess.run(
            [sys.executable, "-m", "tfddl.bench.tensorboard", str(path), str(logdir)],
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise DataError(f"--logdir {logdir} couldn't be written:\n{done.stderr}")


def _write(results: Results, logdir: Path) -> None:
    from tfddl._src.callbacks.monitor_writer import EventWriter

    writer = EventWriter(str(logdir))
    for key, chart in plots.bandwidths(results).items():
        for name, points in chart.items():
            for x, y in points:
                writer.scalars(_run(name), {f"bandwidth_gb_per_s/{key}": y}, int(x))
    for name, points in plots.efficiencies(results).items():
        for x, y in points:
            writer.scalars(_run(name), {"efficiency/over_workers": y}, int(x))
    if plots.is_available():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        for name, figure in plots.draw(results).items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            writer.images(f"charts/{name}", pixels[np.newaxis], 0)
    writer.text("tables", report(results, markdown), 0)
    writer.end()


def _run(name: str) -> str:
    """A name as a directory."""
    return "".join(c if c.isalnum() else "_" for c in name)


if __name__ == "__main__":
    _write(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
