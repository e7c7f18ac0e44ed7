"""What was measured, for TensorBoard: ``python -m tfddl.bench.tensorboard BENCH.json LOGDIR``.

A process of its own, as TensorFlow, which writes the events, takes seconds to load and chatters.
The horizontal axis of the curves isn't time: it is the number of bytes, or of workers.
"""

import sys
from pathlib import Path

import numpy as np

from tfddl._src.callbacks.monitor_writer import EventWriter
from tfddl.bench import plots
from tfddl.bench.report import report
from tfddl.bench.results import Results, read_json
from tfddl.bench.table import markdown


def write_events(results: Results, logdir: Path) -> None:
    """Writes curves and tables, and with matplotlib the pictures."""
    writer = EventWriter(str(logdir))
    curves = {f"bandwidth_gb_per_s/{key}": c for key, c in plots.bandwidths(results).items()}
    curves["efficiency/over_workers"] = plots.efficiencies(results)
    for tag, lines in curves.items():
        for name, points in lines.items():
            directory = "".join(c if c.isalnum() else "_" for c in name)
            for x, y in points:
                writer.scalars(directory, {tag: y}, int(x))
    if plots.is_available():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        for name, figure in plots.draw(results).items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            writer.images(
                f"charts/{name}", np.asarray(canvas.buffer_rgba())[np.newaxis, ..., :3], 0
            )
    writer.text("tables", report(results, markdown), 0)
    writer.end()


if __name__ == "__main__":
    write_events(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
