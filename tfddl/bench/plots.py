"""What was measured, as pictures."""

from collections import defaultdict
from pathlib import Path

from PIL import Image

from tfddl.bench.charts import Axis, Line, draw_chart
from tfddl.bench.orders import Mode
from tfddl.bench.results import Results
from tfddl.bench.settings import format_size

IN_MEMORY = "sum in memory"

Points = dict[str, list[tuple[float, float]]]
"""(x, y) by the name of the line."""


def bandwidths(results: Results) -> dict[str, Points]:
    """By operation and workers, GB/s inside tf.function over bytes, with the sum in memory."""
    found: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    for speed in results.collectives:
        if speed.mode is Mode.GRAPH:
            chart = found[f"{speed.operation}_{speed.workers}_workers"]
            chart[speed.transport].append((speed.num_bytes, speed.gb_per_s))
    for key, chart in found.items():
        workers = int(key.split("_")[1])
        for added in results.memory_sums:
            if added.workers == workers:
                chart[IN_MEMORY].append((added.num_bytes, added.gb_per_s))
    return {key: {n: sorted(p) for n, p in chart.items()} for key, chart in found.items()}


def efficiencies(results: Results) -> Points:
    """By model and transport, images per second over those of as many lone workers, by workers."""
    found: Points = defaultdict(list)
    for speed in results.training:
        found[f"{speed.model}, {speed.transport}"].append((speed.workers, speed.ratio.median))
    return {name: sorted(points) for name, points in found.items()}


def draw(results: Results) -> dict[str, Image.Image]:
    """All pictures, by name."""
    pictures = {
        f"bandwidth_{key}": draw_chart(
            f"Bandwidth over size: {key.replace('_', ', ', 1).replace('_', ' ')}",
            [Line(name, points) for name, points in chart.items()],
            x=Axis(
                label="bytes of a rank's tensor",
                logarithmic=True,
                ticks=sorted({x for points in chart.values() for x, _ in points}),
                name=lambda x: format_size(round(x)),
            ),
            y=Axis(label="GB/s", logarithmic=True),
        )
        for key, chart in bandwidths(results).items()
    }
    efficiency = efficiencies(results)
    if efficiency:
        pictures["efficiency"] = draw_chart(
            "Images per second, over those of as many lone workers",
            [Line(name, points) for name, points in efficiency.items()],
            x=Axis(
                label="workers",
                ticks=sorted({x for points in efficiency.values() for x, _ in points}),
            ),
            y=Axis(label="efficiency", at_least=(0.0, 1.0)),
        )
    return pictures


def write_pictures(results: Results, folder: Path) -> list[Path]:
    """Writes all pictures, and returns where.

    Raises:
        OSError: They can't be written.
    """
    paths = []
    for name, picture in draw(results).items():
        paths.append(folder / f"{name}.png")
        picture.save(paths[-1])
    return paths
