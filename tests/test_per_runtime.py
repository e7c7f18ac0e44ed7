"""What upper layers keep for a runtime."""

import gc
import threading
import weakref
from typing import Any

import pytest

import tfddl
from tfddl._src.runtime import PerRuntime
from tfddl.errors import NotInitializedError


class _Runtime:
    """Stands for one."""


def test_each_runtime_has_a_value_of_its_own_as_long_as_it_lives() -> None:
    made: PerRuntime[list[int]] = PerRuntime(lambda _: [])
    one: Any = _Runtime()
    other: Any = _Runtime()
    made.of(one).append(1)
    assert (made.of(one), made.of(other)) == ([1], [])
    value = made.of(one)
    kept = weakref.ref(one)
    del one
    gc.collect()
    assert kept() is None
    assert value == [1]
    assert made.of(other) == []


def test_threads_that_ask_first_get_the_same() -> None:
    both_ask = threading.Barrier(2)

    def make(_: Any) -> object:
        both_ask.wait(timeout=60)  # Both have found that there is none.
        return object()

    made: PerRuntime[object] = PerRuntime(make)
    runtime: Any = _Runtime()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(made.of(runtime))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [found[0]] * 2


def test_none_where_there_is_no_runtime() -> None:
    tfddl.shutdown()  # Whatever other tests have left.
    with pytest.raises(NotInitializedError, match="call tfddl.init"):
        PerRuntime(lambda _: 0).current()
