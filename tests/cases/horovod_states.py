"""Cases of `tests/test_horovod_states.py`."""

import contextlib
import os
from typing import Any

from tfddl._src import commits
from tfddl._src.horovod.elastic_states import State, run
from tfddl._src.horovod.elastic_store import ELASTIC


class KilledError(Exception):
    """Stands for the end of the process."""


def _script(killed_at: tuple[str, int], log: list[tuple[str, int]]) -> None:
    """Two phases, each elastic, and a state beside them that commits as well."""
    beside = State(step=0)

    @run
    def phase(state: Any, name: str) -> None:
        log.append((name, state.step))
        first = state.step + 1
        for state.step in range(first, 4):
            state.commit()
            beside.commit()
            if (name, state.step) == killed_at:
                raise KilledError

    phase(State(step=0), "first")
    phase(State(step=0), "second")


def starts(killed_at: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """From which step each phase went on, in each start of the script."""
    elastic = ELASTIC.current()
    number = commits.create_store()
    logs: list[list[tuple[str, int]]] = []
    try:
        for place in killed_at:
            elastic.store, elastic.runs = commits.CommitStore(number), 0
            logs.append([])
            with contextlib.suppress(KilledError):
                _script(place, logs[-1])
    finally:
        elastic.store, elastic.runs = None, 0
        os.close(number)
    return logs
