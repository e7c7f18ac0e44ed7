"""A process that imports what all workers of a host need, and then forks into each of them.

Sixteen workers that import TensorFlow for themselves take sixteen times as much of the cores as one
import. Between a worker and `python script.py` there is as little difference as can be: arguments,
`__main__`, sys.path, environment, session, signals, exit status and tracebacks are what they are
there. But what modules do when they are imported has been done already, before the script runs.

Without imports of ours: it is run as a program, by the interpreter of the command.

    python [OPTIONS] preloader.py SOCKET MODULES (SCRIPT | -m MODULE | -c TEXT) ARGUMENT …

Requests come through the socket, which leads to the agent: 8 bytes with a length, and with them
the descriptors; then JSON. It answers with a line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.machinery
import io
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import types
import zipfile
from types import TracebackType
from typing import Any

HEADER_BYTES = 8
MAX_DESCRIPTORS = 16

_PR_SET_PDEATHSIG = 1
_ADOPTION_S = 10.0
_SHOWN_BYTES = 2**15  # Less than a pipe holds.


def preload(modules: list[str]) -> str:
    """Imports modules; what is wrong, or ""."""
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: it's told to the user
            last = traceback.format_exception_only(error)[-1].strip()
            return f"can't import {name!r}: {last}"
        if threading.active_count() > 1:
            names = ", ".join(t.name for t in threading.enumerate()[1:])
            return f"{name!r} has started threads ({names}) when it was imported"
    return ""


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Forks for every request; returns in the new process, with its request."""
    is_first = True
    while True:
        header, fds, _, _ = socket.recv_fds(connection, HEADER_BYTES, MAX_DESCRIPTORS)
        if len(header) < HEADER_BYTES:
            os._exit(0)  # The agent has ended.
        with connection.makefile("rb") as file:
            request: dict[str, Any] = json.loads(file.read(int.from_bytes(header, "big")))
        read, write = os.pipe()
        if (between := _fork()) == 0:
            os.close(read)
            if _fork() == 0:
                os.setsid()
                os.write(write, str(os.getpid()).encode())
                os.close(write)
                connection.close()
                return {**request, "fds": fds, "is_first": is_first}
            os._exit(0)
        os.close(write)
        if between > 0:
            # Its child is then the agent's, which adopts orphans.
            os.waitpid(between, 0)
        with open(read, "rb") as file:
            pid = file.read()  # Once it has a session of its own.
        answer = {"pid": int(pid)} if pid else {"error": "can't start a process (ulimit -u)"}
        _answer(connection, answer)
        for fd in fds:
            os.close(fd)
        is_first = False


def _fork() -> int:
    """As `os.fork`; -1 where there can be no other process."""
    try:
        return os.fork()
    except OSError:
        return -1


def _answer(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.sendall(json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any]) -> None:
    """What a worker has of its own."""
    until_s = time.monotonic() + _ADOPTION_S
    while os.getppid() != request["parent"]:
        if time.monotonic() > until_s:
            os._exit(1)  # The agent has died meanwhile.
        time.sleep(0.0005)
    # Once the agent is the parent: the kernel also sends it when an earlier one ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        os._exit(1)
    out, err, *inherited = request["fds"]
    if request["is_first"]:  # It shows what was written while modules were imported.
        os.write(err, os.pread(2, os.fstat(2).st_size, 0)[-_SHOWN_BYTES:])
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for fd, number in ((out, 1), (err, 2)):
        os.dup2(fd, number)
        os.close(fd)
    environment = dict(request["environment"])
    for name, fd in zip(request["inherited"], inherited, strict=True):
        os.set_inheritable(fd, True)
        environment[name] = str(fd)
    os.environ.clear()
    os.environ.update(environment)
    if request["directory"] is not None:
        os.chdir(request["directory"])
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    # Python's `random` does it by itself.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _run(command: list[str]) -> None:
    """Runs a command as the interpreter does."""
    what, *arguments = command
    if what == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = [what, *arguments]
    if what == "-c":
        sys.argv = ["-c", *arguments[1:]]
        module = types.ModuleType("__main__")
        module.__loader__ = importlib.machinery.BuiltinImporter
        _execute(arguments[0], "<string>", module)
        return
    if os.path.isdir(what) or zipfile.is_zipfile(what):
        runpy.run_path(what, run_name="__main__")
        return
    path = os.path.join(os.getcwd(), what)  # Not made shorter, as by os.path.abspath.
    try:
        with io.open_code(path) as file:
            text = file.read()
    except OSError as error:
        sys.stderr.write(
            f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        sys.exit(2)
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", module.__file__)
    module.__dict__["__cached__"] = None
    _execute(text, module.__file__, module)


def _execute(text: str | bytes, name: str, module: types.ModuleType) -> None:
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)


def _path_of(command: list[str]) -> str:
    """What the interpreter puts before the modules' other folders."""
    if command[0] == "-m":
        return os.getcwd()
    if command[0] == "-c":
        return ""
    return os.path.dirname(os.path.realpath(command[0]))


def _of_the_script(found: TracebackType | None) -> TracebackType | None:
    """A traceback without what is before the script: as if nothing had been."""
    ours = (__file__, "<frozen runpy>", runpy.__file__)
    while found is not None and found.tb_frame.f_code.co_filename in ours:
        found = found.tb_next
    return found


def main() -> None:
    """Imports, forks, and in each fork runs the command."""
    number, modules, *command = sys.argv[1:]
    if not sys.flags.safe_path:
        sys.path[0] = _path_of(command)
    del sys.orig_argv[-len(sys.argv) : -len(command)]
    connection = socket.socket(fileno=int(number))
    connection.set_inheritable(False)
    problem = preload(modules.split(","))
    _answer(connection, {"error": problem} if problem else {"ready": True})
    if problem:
        return
    gc.collect()
    gc.freeze()  # No collection writes to memory that all of them share.
    _become(_serve(connection))
    try:
        _run(command)
    except SystemExit:
        raise
    except BaseException as error:
        hook, found = sys.excepthook, _of_the_script(error.__traceback__)
        hook(type(error), error.with_traceback(found), found)
        sys.excepthook = lambda *_: None  # It's written; what is left is the status.
        raise


if __name__ == "__main__":
    main()
