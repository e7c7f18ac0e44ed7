"""The numbers on TensorBoard: how they are measured, and what is made of them."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
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
from tfddl._src.comm.errors import StalledOpError
from tfddl._src.comm.instrumentation import Instrumentation, OperationInfo
from tfddl._src.comm.instrumented_group import InstrumentedGroup
from tfddl._src.comm.native import OpSignature, ReduceOp
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, ProcessGroup
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.sharding import BlockPlan, GlobalPlan


class _Slow(SingleProcessGroup):
    """Every collective takes 50 ms."""

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        return [_wait(tensor) for tensor in tensors]


def _wait(value: tf.Tensor) -> tf.Tensor:
    def sleep(array: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return array

    waited = tf.numpy_function(sleep, [value], value.dtype)
    waited.set_shape(value.shape)
    return waited


def _twice_after_a_wait(group: ProcessGroup, value: tf.Tensor) -> tf.Tensor:
    """The second waits in line behind the first."""
    value = _wait(value)
    [first] = group.all_reduce([value], ReduceOp.SUM)
    [second] = group.all_reduce([value], ReduceOp.SUM)
    return first + second


def test_the_clock_of_the_collectives() -> None:
    recorded = Instrumentation(1)
    group = InstrumentedGroup(_Slow(), recorded)
    one = tf.ones([3])

    @tf.function
    def graph(value: tf.Tensor) -> tf.Tensor:
        return _twice_after_a_wait(group, value)

    @tf.function
    def loop(times: tf.Tensor) -> tf.Tensor:
        value = one
        for _ in tf.range(times):
            [value] = group.all_reduce([value], ReduceOp.SUM)
        return value

    assert graph(one).numpy().tolist() == [2.0] * 3
    loop(tf.constant(1))
    assert recorded.seconds() == 0.0, "nobody wanted to know"
    assert recorded.measure(True)
    runs: list[tuple[Callable[[], Any], float]] = [
        (lambda: graph(one), 0.1),
        (lambda: _twice_after_a_wait(group, one), 0.1),
        (lambda: loop(tf.constant(3)), 0.15),
    ]
    for run, seconds in runs:
        before, before_s = recorded.seconds(), time.perf_counter()
        run()
        took_s = time.perf_counter() - before_s
        counted_s = recorded.seconds() - before
        # What came before the first doesn't count, and no moment counts twice.
        assert seconds <= counted_s <= took_s - (0.05 if seconds == 0.1 else 0)
    assert not recorded.measure(False)
    before = recorded.seconds()
    graph(one)
    assert recorded.seconds() == before
    assert recorded.counts() == (12, 12)


def test_no_moment_of_the_clock_counts_twice() -> None:
    """Nor of operations in Python, in two threads."""
    recorded = Instrumentation(2)
    recorded.measure(True)
    both_began = threading.Barrier(2)

    def work() -> None:
        with recorded.record(OperationInfo("sum", "sum", (0, 1)), 8):
            both_began.wait(timeout=60)
            time.sleep(0.2)

    begin_s = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert 0 < recorded.seconds() <= time.perf_counter() - begin_s
    assert recorded.counts() == recorded.counts_of_all_groups() == (2, 2)


def test_what_is_traced_and_what_is_under_way() -> None:
    recorded = Instrumentation(2)
    group = InstrumentedGroup(_Slow(), recorded)
    some = DynamicSignature(OpSignature("", "allreduce sum <loss>\nfloat32 (3)"))
    seen: list[str] = []

    def look(value: np.ndarray) -> np.ndarray:
        seen.append(recorded.current_operation().text)
        return value

    class _Looking(SingleProcessGroup):
        def all_gather(
            self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED
        ) -> tf.Tensor:
            return tf.numpy_function(look, [flat], flat.dtype)

    looking = InstrumentedGroup(_Looking(), recorded)
    graph = tf.function(lambda x: looking.all_gather(x, signature=some))
    graph(tf.ones([3]))
    assert recorded.current_operation().text == "allreduce sum <loss> of float32 (3)"
    looking.all_gather(tf.ones([3]))
    assert seen == ["allreduce sum <loss> of float32 (3)", "an operation"]
    recorded.start_tracing()
    graph(tf.ones([3]))
    group.all_reduce([tf.ones([3]), tf.ones([4])], ReduceOp.SUM)
    events = recorded.stop_tracing()
    found = [(event.name, event.ranks, event.num_bytes) for event in events]
    assert found == [("allreduce sum <loss>", (0,), 12), ("an operation", (0,), 28)]
    assert all(0 <= event.end_s - event.begin_s for event in events)
    assert abs(events[-1].end_s - time.time()) < 60
    graph(tf.ones([3]))
    assert recorded.stop_tracing() == []
    # Of two ranks, these were operations of one only.
    assert recorded.counts() == (0, 0)
    assert recorded.counts_of_all_groups() == (5, 5)


def test_an_operation_that_fails_is_over() -> None:
    """Otherwise it would look as if this rank waited in it."""

    class _Failing(SingleProcessGroup):
        def all_gather(
            self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED
        ) -> tf.Tensor:
            raise StalledOpError("it took too long")

    recorded = Instrumentation(1)
    group = InstrumentedGroup(_Failing(), recorded)
    with pytest.raises(StalledOpError):
        group.all_gather(tf.ones([3]))
    with pytest.raises(StalledOpError), recorded.record(OperationInfo("sum", "sum", (0,)), 8):
        raise StalledOpError("it took too long")
    assert recorded.counts() == (2, 2)
    assert recorded.current_operation().text == "the first operation"


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


@pytest.mark.parametrize(
    ("stretches", "seconds"),
    [
        ([(0, 10)], 10),
        ([(0, 1), (1, 2), (5, 6)], 3),
        ([(0, 2), (1, 3)], 3),
        ([(2, 3), (0, 10)], 10),  # within another one, which ends later
        ([(0, 2), (3, 5), (1, 6)], 6),  # over two that have ended, in part
        ([(4, 5), (1, 6), (0, 7)], 7),
    ],
)
def test_each_moment_in_operations_counts_once(
    stretches: list[tuple[float, float]], seconds: float
) -> None:
    """In the order of their ends, as they are recorded."""
    recorded = Instrumentation(2)
    for begin_s, end_s in stretches:
        recorded._cover(begin_s, end_s)
    assert recorded.seconds() == seconds
