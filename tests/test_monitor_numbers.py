"""The numbers on TensorBoard: how they are measured, and what is made of them."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfddl._src.callbacks.monitor_charts import (
    UpdateInterval,
    rank_values,
    step_values,
    sum_by_rank,
)
from tfddl._src.callbacks.monitor_meter import CounterValues, StepMeter, StepStats
from tfddl._src.callbacks.monitor_picture import draw_ranks
from tfddl._src.callbacks.monitor_tables import counted_table, rank_table, shard_table
from tfddl._src.comm import ReduceOp, SingleProcessGroup, TimedTransport
from tfddl._src.sharding import BlockPlan, GlobalPlan


class _Slow(SingleProcessGroup):
    """Every collective takes 50 ms."""

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        return _wait(flat)


def _wait(value: tf.Tensor) -> tf.Tensor:
    def sleep(array: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return array

    waited = tf.numpy_function(sleep, [value], value.dtype)
    waited.set_shape(value.shape)
    return waited


def _twice_after_a_wait(transport: TimedTransport, value: tf.Tensor) -> tf.Tensor:
    """The second waits in line behind the first."""
    value = _wait(value)
    return transport.all_reduce(value, ReduceOp.SUM) + transport.all_reduce(value, ReduceOp.SUM)


def test_the_clock_of_the_collectives() -> None:
    transport = TimedTransport(_Slow())
    one = tf.ones([3])

    @tf.function
    def graph(value: tf.Tensor) -> tf.Tensor:
        return _twice_after_a_wait(transport, value)

    @tf.function
    def loop(times: tf.Tensor) -> tf.Tensor:
        value = one
        for _ in tf.range(times):
            value = transport.all_reduce(value, ReduceOp.SUM)
        return value

    assert graph(one).numpy().tolist() == [2.0] * 3
    loop(tf.constant(1))
    assert transport.seconds() == 0.0, "nobody wanted to know"
    assert transport.measure(True)
    runs: list[tuple[Callable[[], Any], float]] = [
        (lambda: graph(one), 0.1),
        (lambda: _twice_after_a_wait(transport, one), 0.1),
        (lambda: loop(tf.constant(3)), 0.15),
    ]
    for run, seconds in runs:
        before, before_s = transport.seconds(), time.perf_counter()
        run()
        took_s = time.perf_counter() - before_s
        counted_s = transport.seconds() - before
        # What came before the first doesn't count, and no moment counts twice.
        assert seconds <= counted_s <= took_s - (0.05 if seconds == 0.1 else 0)
    assert not transport.measure(False)
    before = transport.seconds()
    graph(one)
    assert transport.seconds() == before


def test_deterministic_ops_refuse_to_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise tf.errors.FailedPreconditionError(None, None, "Timestamp cannot be called")

    monkeypatch.setattr(tf, "timestamp", refuse)
    transport = TimedTransport(_Slow())
    assert not transport.measure(True)
    assert transport.all_reduce(tf.ones([2]), ReduceOp.SUM).numpy().tolist() == [1.0, 1.0]
    assert transport.seconds() == 0.0
    assert SingleProcessGroup().seconds() == 0.0


def test_the_meter() -> None:
    now = [0.0, 0.0, 0.0]
    meter = StepMeter(lambda: CounterValues(now[1], now[2]), clock=lambda: now[0])

    def step(seconds: float, collective_s: float, steps: int = 1) -> None:
        for i, amount in enumerate((seconds, 4.0 * steps, collective_s)):
            now[i] += amount
        meter.step_ended(steps)

    step(30.0, 20.0)  # TensorFlow makes the graph.
    for seconds in (1.0, 3.0, 1.0):
        step(seconds, 0.25)
    meter.note()
    now[0], now[1], now[2] = now[0] + 100.0, 0.0, now[2] + 50.0  # Validation.
    meter.resume()
    step(4.0, 1.0, steps=2)
    meter.note()
    work = meter.take()
    assert (work.steps, work.examples) == (6, 24)
    assert (work.timed_steps, work.timed_examples) == (5, 20)
    assert (work.seconds, work.collective_s, work.median_s) == (9.0, 1.75, 2.0)
    assert work.p95_s == pytest.approx(2.8)
    assert (work.step_s, work.busy_s) == pytest.approx((1.8, 1.45))
    assert meter.steps == 0
    empty = meter.take()
    assert (empty.steps, empty.seconds) == (0, 0.0)
    assert math.isnan(empty.step_s)
    assert StepStats.of_row(work.row()).row().tolist()[:8] == work.row().tolist()[:8]


def _work(busy_ms: float, step_ms: float = 100.0, **changes: float) -> StepStats:
    work = StepStats(
        steps=11,
        examples=44,
        timed_steps=10,
        timed_examples=40,
        seconds=10 * step_ms / 1e3,
        collective_s=10 * (step_ms - busy_ms) / 1e3,
        median_s=step_ms / 1e3,
        p95_s=2 * step_ms / 1e3,
        loss_total=22,
        loss_count=44,
    )
    return dataclasses.replace(work, **changes)


def test_the_numbers_of_the_job() -> None:
    works = [_work(30.0), _work(50.0, loss_total=66)]
    assert step_values(works) == pytest.approx(
        {
            "step/loss": 1.0,
            "speed/examples_per_second": 80.0,
            "speed/step_ms_median": 100.0,
            "speed/step_ms_p95": 200.0,
            "speed/collectives_ms": 60.0,
            "speed/collectives_percent": 60.0,
        }
    )
    unmeasured = [dataclasses.replace(work, collective_s=math.nan) for work in works]
    assert not [tag for tag in step_values(unmeasured) if "collectives" in tag]
    first_step = dict.fromkeys(["timed_steps", "timed_examples", "seconds", "collective_s"], 0.0)
    first = _work(0.0, **first_step, median_s=math.nan, p95_s=math.nan)
    assert step_values([first]) == {"step/loss": 0.5}
    assert sum_by_rank([works, works])[1].timed_examples == 80


def test_many_ranks_share_three_lines() -> None:
    few = rank_values([_work(float(rank)) for rank in range(12)])
    busy = {run: value for run, tag, value in few if tag == "ranks/busy_ms"}
    assert busy == pytest.approx({f"rank_{rank:02}": rank for rank in range(12)})
    many = rank_values([_work(float(rank)) for rank in range(64)])
    busy = {run: value for run, tag, value in many if tag == "ranks/busy_ms"}
    assert busy == pytest.approx({"ranks_highest": 63, "ranks_median": 31.5, "ranks_lowest": 0})


@pytest.mark.parametrize(
    ("num_steps", "every", "expected"),
    [(100, 100, 100), (101, 100, 101), (250, 100, 125), (3, 100, 3), (9, 2, 3), (None, 7, 7)],
)
def test_the_pace_cuts_epochs_evenly(num_steps: int | None, every: int, expected: int) -> None:
    assert UpdateInterval.of_epoch(num_steps, every).steps == expected


def test_tables_of_the_shards() -> None:
    table = shard_table(GlobalPlan(num_examples=4, size=3, batch_size=1), ["a", "b", "c"])
    assert table.splitlines()[-1] == "| 2 | c | 0 | 2 | 2 padding examples, which don't count |"
    assert "in their own order" in table
    table = shard_table(BlockPlan(num_examples=7, size=2, batch_size=2, seed=5), ["a", "b"])
    assert table.splitlines()[-2:] == [
        "| 0 | a | 4 | [0, 4) | 2 | 2 × 2 |",
        "| 1 | b | 3 | [4, 7) | 2 | 1 × 2, 1 × 1 |",
    ]
    assert counted_table([_work(1.0), _work(1.0, examples=math.nan)], ["a", "b"]).splitlines()[
        -2:
    ] == [
        "| 0 | a | 44 | 11 |",
        "| 1 | b | unknown | 11 |",
    ]


def test_table_of_the_ranks() -> None:
    table = rank_table([_work(30.0), _work(50.0)], ["a", "b"], epoch=4)
    assert table.splitlines() == [
        "Epoch 4. The others wait for **rank 1**: its steps take 50.0 ms outside of collectives, "
        "those of the fastest rank 30.0 ms.",
        "",
        "| rank | host | examples | step (ms) | busy (ms) | in collectives (ms) |",
        "| ---: | :--- | ---: | ---: | ---: | ---: |",
        "| 0 | a | 44 | 100.0 | 30.0 | 70.0 |",
        "| **1** | **b** | **44** | **100.0** | **50.0** | **50.0** |",
    ]
    unmeasured = [_work(1.0, collective_s=math.nan)] * 2
    assert "The time in collectives is unknown" in rank_table(unmeasured, ["a", "b"], epoch=1)
    untimed = [_work(1.0, timed_steps=0, seconds=0.0)] * 2
    assert "A single step" in rank_table(untimed, ["a", "b"], epoch=1)


@pytest.mark.parametrize("size", [2, 64])
def test_picture_of_the_ranks(size: int) -> None:
    works = [_work(30.0)] * (size - 1) + [_work(90.0)]
    picture = draw_ranks(works)
    assert picture is not None
    red = (np.abs(picture.astype(int) - (235, 87, 60)).sum(-1) < 10).sum(1)
    longest = np.flatnonzero(red > 150)
    assert longest.min() > 0.8 * len(picture) - 40, "the last bar is the slowest rank's"
    assert draw_ranks(works[:1]) is None
    assert draw_ranks([_work(1.0, collective_s=math.nan)] * 2) is None
