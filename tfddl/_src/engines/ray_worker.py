"""The actor of each rank, for `tfddl.ray.RayExecutor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfddl._src.remote_call.pickling import Answer, Call, dump_failure, dump_result, load_call


class Worker:
    """The actor of one rank; Ray calls one method at a time, in the process' main thread."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._object: Any = None

    def __repr__(self) -> str:
        return f"rank {self._rank}"  # Before each line of output that Ray shows in the driver.

    def make(self, data: bytes) -> Answer:
        def make(call: Call) -> None:
            self._object = call.make()

        return _answer(data, make)

    def call(self, data: bytes) -> Answer:
        return _answer(data, Call.make)

    def execute(self, data: bytes) -> Answer:
        return _answer(data, lambda call: call.fn(self._object))

    def call_plainly(self, data: bytes) -> Any:
        return load_call(data).make()


def _answer(data: bytes, do: Callable[[Call], Any]) -> Answer:
    try:
        return Answer(dump_result(do(load_call(data))))
    except Exception as error:  # noqa: BLE001 - the driver raises it
        return dump_failure(error)
