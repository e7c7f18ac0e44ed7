"""What was measured, as pictures by matplotlib (extra ``plots``)."""

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tfddl.bench.config import Mode, Style, format_size
from tfddl.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = dict[str, list[tuple[float, float]]]
"""(x, y) by the name of the line."""


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def bandwidths(results: Results) -> dict[str, Points]:
    """By operation and workers, GB/s inside tf.function over bytes, with the sum in memory."""
    found: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    for speed in results.collectives:
        if speed.mode is Mode.GRAPH:
            chart = found[f"{speed.operation}_{speed.workers}_workers"]
            chart[speed.transport].append((speed.num_bytes, speed.gb_per_s))
            chart["sum in memory"].append((speed.num_bytes, speed.gb_per_s / speed.of_memory_sum))
    return {
        key: {name: sorted(dict(points).items()) for name, points in chart.items()}
        for key, chart in found.items()
    }


def efficiencies(results: Results) -> Points:
    """By model and transport, images per second over those of as many plain ones, by workers."""
    found: Points = defaultdict(list)
    for speed in results.training:
        scope = " (scope)" if speed.style is Style.SCOPE else ""
        name = f"{speed.model}, {speed.transport}{scope}"
        found[name].append((speed.workers, speed.ratio.median))
    return {name: sorted(points) for name, points in found.items()}


def draw(results: Results) -> dict[str, "Figure"]:
    """All pictures, by name."""
    from matplotlib.figure import Figure

    figures = {}
    for key, chart in bandwidths(results).items():
        figure = figures[f"bandwidth_{key}"] = Figure(figsize=(9, 5.6))
        axes = figure.add_subplot(
            title=f"Bandwidth over size: {key.replace('_', ', ', 1).replace('_', ' ')}",
            xlabel="bytes of a rank's tensor",
            ylabel="GB/s",
            xscale="log",
            yscale="log",
        )
        sizes = sorted({x for points in chart.values() for x, _ in points})
        axes.set_xticks(sizes, [format_size(round(x)) for x in sizes], minor=False)
        axes.minorticks_off()
        _plot(axes, chart)
    if efficiency := efficiencies(results):
        figure = figures["efficiency"] = Figure(figsize=(9, 5.6))
        axes = figure.add_subplot(
            title="Images per second, over those of as many plain Keras processes",
            xlabel="workers",
            ylabel="efficiency",
        )
        axes.set_xticks(sorted({x for points in efficiency.values() for x, _ in points}))
        _plot(axes, efficiency)
        axes.set_ylim(bottom=0)
    return figures


def write_pictures(results: Results, directory: Path) -> list[Path]:
    """Writes all pictures as PNG, and returns where."""
    paths = []
    for name, figure in draw(results).items():
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _plot(axes: "Axes", lines: Points) -> None:
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.grid(alpha=0.3)
    axes.legend()
