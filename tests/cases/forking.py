"""Cases about forked children of a worker."""

import atexit
import ctypes
import gc
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

import tfddl
from tfddl._src.callbacks.preemption import Preemption
from tfddl._src.runtime import current
from tfddl.errors import TfddlError

_PATIENCE_S = 30.0


def _forked(action: Callable[[], Any]) -> Any:
    """What an action returns in a forked child, which then leaves as a script does."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        writer.send(action())
        atexit._run_exitfuncs()
        os._exit(0)
    try:
        writer.close()
        assert reader.poll(_PATIENCE_S)
        return reader.recv()
    finally:
        reader.close()
        os.waitpid(pid, 0)


def _sleep() -> None:
    while True:
        time.sleep(0.1)


def _end_of_terminated() -> int | None:
    """How a child ends that is told to as soon as it is there."""
    child = multiprocessing.get_context("fork").Process(target=_sleep, daemon=True)
    child.start()
    child.terminate()
    child.join(_PATIENCE_S)
    code = child.exitcode
    if code is None:
        child.kill()
        child.join(_PATIENCE_S)
    return code


def _open_sockets() -> list[str]:
    """Python's, which are tfddl's; TensorFlow's can't be told from what it needs."""
    gc.unfreeze()  # Of what is frozen the collector says nothing.
    found = [thing for thing in gc.get_objects() if isinstance(thing, socket.socket)]
    gc.freeze()
    return [repr(one) for one in found if one.fileno() >= 0]


def _sum(length: int) -> float:
    return float(tfddl.allreduce(tf.ones([length]), "sum")[-1])


def _of_child() -> dict[str, Any]:
    current().progress_page.beat()
    errors = []
    for call in (lambda: _sum(3), lambda: tfddl.broadcast_object(1), tfddl.barrier):
        try:
            errors.append(f"no error: {call()}")
        except TfddlError as error:
            errors.append(f"{type(error).__name__}: {error}")
    return {"rank": tfddl.rank(), "errors": errors, "sockets": _open_sockets()}


def children(folder: str) -> dict[str, Any]:
    """What a child is, how it ends, and what it leaves to the worker."""
    _sum(3)
    tfddl.start_timeline(Path(folder) / "timeline.json")
    beats = current().progress_page.read().beats
    found: dict[str, Any] = {"sockets": _open_sockets(), "child": _forked(_of_child)}
    found["files"] = os.listdir(folder)
    found["beats"] = current().progress_page.read().beats - beats
    tfddl.barrier()
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGTERM, libc.abs)  # As TensorFlow's: Python doesn't know of it.
    [caught] = re.findall(r"SigCgt:\s*(\w+)", Path("/proc/self/status").read_text())
    found["is handled"] = bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
    found["ends"] = [_end_of_terminated()]
    preemption = Preemption()  # As `fit` has it with `Checkpoint`.
    preemption.listen()
    found["ends"].append(_end_of_terminated())
    preemption.stop_listening(handled=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    found["ends"].append(_end_of_terminated())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    found["sums"] = [_sum(3), _sum(50_000)]
    tfddl.stop_timeline()
    return found
