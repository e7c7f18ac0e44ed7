"""Processes that have imported TensorFlow before they begin: forks of one that did so once.

The import takes four seconds of a core, and a test session starts hundreds of processes. Each rank
is a fork of a process of its own, so that ranks differ in all that differs between processes, such
as the order of a set of strings.

Usage:
    process = start("tests.worker:main", address, rank=1, environ=environ, log=path)
    assert process.wait(timeout=90) == 0
"""

import ctypes
import gc
import importlib
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
IMPORT_TIMEOUT_S = 120.0
_SERVERS = 3
"""Further ranks share them."""
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes processes whose parent has died children of this one."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Process:
    """A child of this process, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit status; negative, the signal that has killed it.

        Raises:
            subprocess.TimeoutExpired: if it still runs.
        """
        until_s = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """A process that forks others."""

    def __init__(self, modules: Sequence[str]) -> None:
        adopt_orphans()
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.fork_server", *modules],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def fork(self, request: dict[str, Any]) -> Process:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        pickle.dump(request, requests)
        requests.flush()
        if not select.select([answers], [], [], IMPORT_TIMEOUT_S)[0]:
            raise AssertionError(f"no process within {IMPORT_TIMEOUT_S} s")
        return Process(int(answers.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)


_servers: dict[tuple[int, tuple[str, ...]], _Server] = {}


def start(
    function: str,
    *arguments: Any,
    environ: Mapping[str, str] | None = None,
    log: Path | None = None,
    rank: int = 0,
    modules: tuple[str, ...] = ("tensorflow", "keras"),
) -> Process:
    """A process that calls a function and ends with it.

    It has a session of its own, and the root of the project as its directory.

    Args:
        function: "module:name".
        arguments: of the function.
        environ: the whole environment; by default, this process'.
        log: what gets both outputs; by default, those of the first start.
        rank: which of the processes to fork.
        modules: what has been imported; without TensorFlow, forks are faster.
    """
    key = rank % _SERVERS, modules
    if key not in _servers:
        _servers[key] = _Server(modules)
    return _servers[key].fork(
        {
            "function": function,
            "arguments": pickle.dumps(arguments),  # What they import isn't the server's.
            "environ": dict(os.environ if environ is None else environ),
            "log": None if log is None else str(log),
        }
    )


def close() -> None:
    """Ends what forks, not what was forked."""
    while _servers:
        _servers.popitem()[1].close()


def execute(script: str, *arguments: str) -> None:
    """Runs a script as `python -W ignore -c` does."""
    warnings.simplefilter("ignore")
    sys.argv = ["-c", *arguments]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(script, "<string>", "exec"), module.__dict__)


def _serve() -> dict[str, Any]:
    """Forks a process for every request; returns in these, with their request."""
    answers = os.fdopen(os.dup(1), "w")
    while True:
        try:
            request: dict[str, Any] = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)
        read, write = os.pipe()
        parent = os.fork()
        if parent == 0:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                os.close(write)
                answers.close()
                return request
            os.write(write, f"{pid}\n".encode())
            os._exit(0)
        os.close(write)
        # Whoever has started this one adopts the new one as soon as its parent has ended.
        os.waitpid(parent, 0)
        with os.fdopen(read) as pid_of_new:
            answers.write(pid_of_new.readline())
        answers.flush()


def _become(request: dict[str, Any]) -> None:
    """What a new process has of its own."""
    os.setsid()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    if request["log"] is None:
        os.dup2(2, 1)
    else:
        with open(request["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(request["environ"])
    random.seed()
    np.random.seed()


def main(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    request = _serve()
    _become(request)
    module, _, name = request["function"].partition(":")
    getattr(importlib.import_module(module), name)(*pickle.loads(request["arguments"]))


if __name__ == "__main__":
    main(sys.argv[1:])
