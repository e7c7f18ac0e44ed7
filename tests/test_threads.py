"""Several threads that make examples: in order, not far ahead, gone when nobody wants more."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from tfddl._src.cpu import cores_of_worker, has_own_core, num_loader_threads
from tfddl._src.parallel_map import map_in_order


def _threads() -> int:
    return sum(thread.name.startswith("tfddl-load") for thread in threading.enumerate())


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_are_in_order(num_threads: int) -> None:
    def late(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    found = list(map_in_order(late, iter(range(40)), num_threads=num_threads))
    assert found == [i * i for i in range(40)]
    assert _threads() == 0


def test_threads_work_ahead_by_two_items_each() -> None:
    taken: list[int] = []
    together = threading.Barrier(3)

    def items() -> Iterator[int]:
        for i in range(30):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        together.wait(timeout=60)
        return i

    results = map_in_order(work, items(), num_threads=3)
    for expected in range(12):
        assert next(results) == expected
        assert len(taken) <= expected + 1 + 2 * 3
    assert _threads() == 3
    together.abort()  # Those that have begun can't be joined by more.
    results.close()
    assert _threads() == 0
    assert len(taken) < 30


def test_an_exception_is_raised_in_order() -> None:
    def fail(i: int) -> int:
        if i == 5:
            raise KeyError("five")
        return i

    results = map_in_order(fail, range(20), num_threads=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="five"):
        next(results)
    assert _threads() == 0


def test_a_host_s_workers_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: None)  # `test_cores.py` tries quotas.
    usable = len(os.sched_getaffinity(0))
    assert cores_of_worker(1) == usable
    assert cores_of_worker(1000) == 1
    assert cores_of_worker(2, own=usable) == usable  # divided already: not twice
    assert has_own_core(usable)
    assert not has_own_core(usable + 1)
    assert has_own_core(usable + 1, own=1)  # bound to one, of which it sees no other
    assert [num_loader_threads(cores) for cores in (1, 2, 5, 100)] == [2, 2, 5, 8]
