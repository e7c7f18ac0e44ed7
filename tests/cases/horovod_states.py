"""Cases of `tests/test_horovod_states.py`."""

import contextlib
import os
import signal
from typing import Any

from tests.cases.resume import take_requests
from tfddl._src import commits
from tfddl._src.heartbeat import WorkerFlags
from tfddl._src.horovod.elastic_states import State, run
from tfddl._src.horovod.elastic_store import ELASTIC
from tfddl._src.horovod.exceptions import HostsUpdatedInterrupt
from tfddl._src.runtime import current


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


def change_of_hosts(by: str) -> dict[str, Any]:
    """A script that is asked to end within its second step, and its next start."""
    elastic, page = ELASTIC.current(), current().progress_page
    number = commits.create_store()
    found: dict[str, Any] = {"steps": [], "raised": [], "reset at": []}

    def script() -> None:
        state: Any = State(step=0)
        state.register_reset_callbacks([lambda: found["reset at"].append(state.step)])

        @run
        def train(state: Any) -> None:
            takes_requests = WorkerFlags.SAVES_ON_REQUEST in page.read().flags
            for step in range(state.step + 1, 5):
                state.step = step
                found["steps"].append((step, takes_requests))
                if len(found["steps"]) == 2 and by == "SIGTERM":
                    os.kill(os.getpid(), signal.SIGTERM)
                elif len(found["steps"]) == 2:
                    page.request_save()
                try:
                    state.check_host_updates() if step == 2 else state.commit()
                except HostsUpdatedInterrupt as error:
                    found["raised"].append(error.skip_sync)
                    raise

        train(state)

    try:
        elastic.hosts_may_change = True
        for status in ("first", "second"):
            elastic.store, elastic.runs = commits.CommitStore(number), 0
            try:
                script()
            except SystemExit as end:
                found[status] = (end.code, take_requests())
        found["takes requests after it"] = WorkerFlags.SAVES_ON_REQUEST in page.read().flags
    finally:
        elastic.store, elastic.runs, elastic.hosts_may_change = None, 0, False
        os.close(number)
    return found
