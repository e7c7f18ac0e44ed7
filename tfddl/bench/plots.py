"""What was measured, as pictures by matplotlib (extra ``plots``), and for TensorBoard."""

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfddl.bench.config import format_size
from tfddl.bench.report import markdown, report
from tfddl.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = dict[str, list[tuple[float, float]]]
"""(x, y) by the name of the line."""


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def bandwidths(results: Results) -> dict[str, Points]:
    """By operation and workers, GB/s inside tf.function over bytes, with the sum in memory."""
    found: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    for row in results.table("collectives", mode="graph"):
        chart = found[f"{row.labels['operation']}_{row.labels['workers']}_workers"]
        num_bytes, gb_per_s = float(row.labels["bytes"]), row.values["gb_per_s"]
        chart[str(row.labels["by"])].append((num_bytes, gb_per_s))
        chart["sum in memory"].append((num_bytes, gb_per_s / row.values["ratio"]))
    return {
        key: {name: sorted(dict(points).items()) for name, points in chart.items()}
        for key, chart in found.items()
    }


def efficiencies(results: Results) -> Points:
    """By model and what trains it, its ratio to as many plain processes, over workers."""
    found: Points = defaultdict(list)
    for row in results.table("training"):
        name = ", ".join(str(row.labels[label]) for label in ("model", "by", "style"))
        found[name].append((float(row.labels["workers"]), row.values["ratio"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(results: Results) -> dict[str, "Figure"]:
    """All pictures, by name."""
    figures = {}
    for key, chart in bandwidths(results).items():
        title = f"Bandwidth over size: {key.replace('_', ', ', 1).replace('_', ' ')}"
        labels = {"title": title, "xlabel": "bytes of a rank's tensor", "ylabel": "GB/s"}
        figures[f"bandwidth_{key}"] = _draw(chart, xscale="log", yscale="log", **labels)
    if efficiency := efficiencies(results):
        title = "Examples per second, over those of as many plain Keras processes"
        labels = {"title": title, "xlabel": "workers", "ylabel": "efficiency"}
        figures["efficiency"] = _draw(efficiency, **labels)
        figures["efficiency"].axes[0].set_ylim(bottom=0)
    return figures


def write_pictures(results: Results, directory: Path) -> list[Path]:
    """Writes all pictures as PNG, and returns where."""
    paths = []
    for name, figure in draw(results).items():
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def write_events(results: Results, logdir: Path) -> None:
    """Writes the tables, and with matplotlib the pictures, for TensorBoard."""
    from tfddl._src.callbacks.monitor_writer import EventWriter

    writer = EventWriter(str(logdir))
    if is_available():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        for name, figure in draw(results).items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())[np.newaxis, ..., :3]
            writer.images(f"charts/{name}", picture, 0)
    writer.text("tables", report(results, markdown), 0)
    writer.end()


def _draw(lines: Points, **options: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6))
    axes = figure.add_subplot(**options)
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    at = sorted({x for points in lines.values() for x, _ in points})
    is_bytes = "xscale" in options
    axes.set_xticks(at, [format_size(round(x)) if is_bytes else f"{x:g}" for x in at])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
