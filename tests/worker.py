"""A worker of `tests.group`: runs the cases it is told, until the group hangs up."""

import faulthandler
import gc
import importlib
import os
import signal
import traceback
from multiprocessing.connection import Client
from typing import Any

import tfddl
from tests.group import AUTHKEY
from tfddl._src.cluster import detect


def init(*, with_strategy: bool = True, **settings: Any) -> None:
    """Begins; by default with the strategy, since cases under its scope may come at any time."""
    tfddl.init(**settings)
    if with_strategy:
        tfddl.strategy()
    # Each clear_session collects garbage: not through all that TensorFlow's import has made.
    gc.freeze()


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
            except Exception:  # noqa: BLE001 - whatever it is, the test wants to see it
                outcome = (False, traceback.format_exc())
            connection.send(outcome)
