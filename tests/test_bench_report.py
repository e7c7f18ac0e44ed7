"""What `tfddl-bench` shows of its results: tables, JSON, charts."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tfddl.bench.charts import Axis, Line, draw_chart
from tfddl.bench.machines import Met
from tfddl.bench.orders import Mode, Operation
from tfddl.bench.plots import bandwidths, draw, efficiencies
from tfddl.bench.report import report
from tfddl.bench.results import CollectiveSpeed, Memory, MemorySum, Results, Start, TrainingSpeed
from tfddl.bench.spread import Spread, StepTimes
from tfddl.bench.starting import SINGLE
from tfddl.bench.table import markdown


def _results() -> Results:
    spread = Spread.of([0.001, 0.003])
    collective = CollectiveSpeed(
        workers=2,
        operation=Operation.ALLREDUCE,
        transport="RING",
        num_bytes=4096,
        mode=Mode.GRAPH,
        call_s=spread,
        gb_per_s=0.002048,
    )
    large = dataclasses.replace(collective, num_bytes=2**26, gb_per_s=0.5)
    trained = TrainingSpeed(
        workers=2,
        model="unet",
        image_size=128,
        batch_size=8,
        transport="RING",
        images_per_s=Spread.of([70.0]),
        lone_images_per_s=Spread.of([80.0]),
        ratio=Spread.of([0.875]),
        steps_per_round=5,
        step_s=0.2286,
        lone_step_s=0.2,
        parts=StepTimes(compute_s=0.2, waiting_s=0.01, moving_s=0.0186),
        bytes_written_per_byte_reduced=None,
    )
    start = Start(
        workers=0,
        transport=SINGLE,
        total_s=Spread.of([7.0]),
        import_s=3.0,
        init_s=0.0,
        first_step_s=4.0,
    )
    return Results(
        versions={"tensorflow": "2.21.0"},
        machines=[Met(hosts=("localhost",), processor="a processor", cores=2)],
        layouts={2: {"localhost": 2}},
        collectives=[
            large,
            collective,
            *(dataclasses.replace(c, mode=Mode.EAGER) for c in (large, collective)),
        ],
        memory_sums=[MemorySum(workers=2, num_bytes=n, gb_per_s=5.0) for n in (4096, 2**26)],
        training=[
            dataclasses.replace(trained, workers=1, parts=None, ratio=Spread.of([0.99])),
            dataclasses.replace(trained, bytes_written_per_byte_reduced=2.5),
        ],
        memory=[
            Memory(
                workers=2,
                model="unet",
                transport="RING",
                kept_bytes=460_000_000,
                lone_kept_bytes=450_000_000,
                started_bytes=204_000_000,
                lone_started_bytes=200_000_000,
                gradient_bytes=5_000_000,
            )
        ],
        starts=[
            start,
            dataclasses.replace(start, workers=2, transport="RING", total_s=Spread.of([9.0, 8.0])),
        ],
        foreign_cores={"training": {"localhost": 0.02}, "collectives": {"localhost": 0.3}},
        seconds=61.0,
    )


def _row(text: str, *starts_with: str) -> list[str]:
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    (found,) = (row for row in rows if row[: len(starts_with)] == list(starts_with))
    return found


def test_the_tables() -> None:
    text = report(_results())
    timing = ["2", "2.9"]
    assert _row(text, "allreduce", "2", "64 MiB") == [
        *("allreduce", "2", "64 MiB", "RING", *timing, "0.5", "0.1", *timing, "0.5")
    ]
    assert text.index("4 KiB") < text.index("64 MiB")
    assert _row(text, "unet 128 x 8", "2") == [
        *("unet 128 x 8", "2", "RING", "70.0", "80.0", "0.875", "0.875..0.875"),
        *("229", "200", "10", "18.6", "2.50"),
    ]
    assert _row(text, "unet 128 x 8", "1")[-4:] == ["–"] * 4
    assert _row(text, "RING", "2") == ["RING", "2", "8.5", "+1.5", "2", "3.0", "0.0", "4.0"]
    assert _row(text, "unet", "2") == [
        *("unet", "2", "RING", "460", "450", "+10", "+4", "5.0", "+2.0")
    ]
    assert "\na processor, 2 cores.\ntensorflow 2.21.0; 61 s.\nMeanwhile" in text
    assert "(training), others kept 0.02 of 2 cores busy." in text
    assert "(collectives), others kept 0.30 of 2 cores busy: THESE TIMINGS SAY LITTLE." in text
    assert "| unet | 2 | RING | 460 |" in report(_results(), markdown)
    nothing = Results(versions={"tensorflow": "2.21.0"}, seconds=1.0)
    assert report(nothing) == "tensorflow 2.21.0; 1 s."


def test_what_is_written_as_json() -> None:
    found = json.loads(json.dumps(_results().as_json()))
    assert found["memory"][0]["beyond_in_gradients"] == 2.0
    assert found["training"][1]["bytes_written_per_byte_reduced"] == 2.5
    assert found["collectives"][0]["mode"] == "graph"


def test_curves_and_pictures() -> None:
    results = _results()
    assert bandwidths(results) == {
        "allreduce_2_workers": {
            "RING": [(4096, 0.002048), (2**26, 0.5)],
            "sum in memory": [(4096, 5.0), (2**26, 5.0)],
        }
    }
    assert efficiencies(results) == {"unet, RING": [(1, 0.99), (2, 0.875)]}
    assert set(draw(results)) == {"bandwidth_allreduce_2_workers", "efficiency"}
    assert draw(Results()) == {}


def test_a_chart_shows_its_lines() -> None:
    line = Line("a", [(1.0, 0.0), (2.0, 1.0)])
    chart = draw_chart("title", [line], x=Axis(label="x"), y=Axis(label="y", at_least=(0.0, 2.0)))
    pixels = np.asarray(chart).astype(int)
    blue = np.argwhere(np.abs(pixels - (66, 135, 245)).sum(axis=-1) < 30)
    rows, columns = blue[blue[:, 0] > 92].T  # below the legend
    # It leads from the bottom left to half the height at the right.
    assert columns.min() == pytest.approx(84, abs=6)
    assert columns.max() == pytest.approx(870, abs=6)
    assert rows[columns.argmin()] == pytest.approx(496, abs=6)
    assert rows[columns.argmax()] == pytest.approx(294, abs=6)
    one_point = draw_chart("t", [Line("a", [(2, 5)])], x=Axis(label=""), y=Axis(label=""))
    assert one_point.size == chart.size


@pytest.mark.parametrize(
    ("axis", "span", "places"),
    [
        (Axis(label=""), (0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis(label=""), (3.0, 40.0), [10.0, 20.0, 30.0, 40.0]),
        (Axis(label="", logarithmic=True), (0.3, 6.0), [0.5, 1.0, 2.0, 5.0]),
        (Axis(label="", ticks=(1, 2, 4)), (1.0, 2.0), [1, 2]),
    ],
)
def test_where_numbers_stand(axis: Axis, span: tuple[float, float], places: list[float]) -> None:
    assert axis.places(*span) == pytest.approx(places)
    assert [axis.part(end, *span) for end in span] == [0.0, 1.0]
