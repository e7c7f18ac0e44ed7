"""A worker of `tests.group`: runs the cases it is told, until the group hangs up."""

import faulthandler
import gc
import importlib
import os
import signal
import time
import traceback
from multiprocessing.connection import Client
from typing import Any

import tfddl
from tests.group import AUTHKEY
from tfddl._src.cluster import detect
from tfddl._src.runtime import current, is_started

_END_S = 30.0

# In these cases the collectives of TensorFlow (RING) are aborted, and never used again.
_ABORTED = {"tests.cases.ends:different_operations", "tests.cases.fit:runs_out"}


def init(*, with_strategy: bool = True, **settings: Any) -> None:
    """Begins; by default with the strategy, since cases under its scope may come at any time."""
    tfddl.init(**settings)
    if with_strategy:
        tfddl.strategy()
    # Each clear_session collects garbage: not through all that TensorFlow's import has made.
    gc.freeze()


def _await_end_of_operations() -> None:
    """No case leaves an operation that seems to be under way: a later stall would be its fault."""
    if not is_started():
        return
    recorded, deadline_s = current().instrumentation, time.monotonic() + _END_S
    while (counts := recorded.counts_of_all_groups())[0] != counts[1]:
        if time.monotonic() > deadline_s:
            begun, ended = counts
            last = recorded.current_operation().text
            raise AssertionError(f"{begun} operations began, {ended} ended; the last: {last}")
        time.sleep(0.02)


def main(address: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    with Client(address, family="AF_UNIX", authkey=AUTHKEY) as connection:
        connection.send(detect(os.environ).rank)
        while True:
            try:
                path, arguments = connection.recv()
            except EOFError:
                return
            module, _, name = path.partition(":")
            try:
                outcome = (True, getattr(importlib.import_module(module), name)(**arguments))
                if path not in _ABORTED:
                    _await_end_of_operations()
            except Exception:  # noqa: BLE001 - whatever it is, the test wants to see it
                outcome = (False, traceback.format_exc())
            connection.send(outcome)
