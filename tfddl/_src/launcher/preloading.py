"""Workers as forks of a process that has imported what all of them need: `tfddlrun --preload`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from tfddl._src.launcher import preloader
from tfddl.errors import LaunchError

_START_S = 120.0
_SHOWN_BYTES = 2000
_WITH_VALUE = ("-X", "-W")


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line of a Python into the interpreter's part and the script's.

    Args:
        argv: such as ``python -X dev train.py --lr 0.1``.

    Returns:
        The interpreter with its options; and the script, "-m" or "-c", with all that follows.

    Raises:
        LaunchError: it isn't a Python with a script, a module or a text.
    """
    program = os.path.basename(argv[0])
    if not program.startswith("python"):
        raise LaunchError(
            f"--preload can't start {argv[0]!r}: a command that begins with python is expected. "
            "HINT: tfddlrun --preload tensorflow -np 2 python train.py"
        )
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in ("-m", "-c", "-"):
        option = argv[at]
        if not option.startswith("--") and set(option[1:]) & set("mc") and option[1] not in "XW":
            break
        at += 2 if option in _WITH_VALUE else 1
    needed = 2 if at < len(argv) and argv[at] in ("-m", "-c") else 1
    if len(argv) < at + needed or (argv[at].startswith("-") and argv[at] not in ("-m", "-c")):
        raise LaunchError(
            f"--preload can't tell which script {' '.join(argv)!r} runs: python [OPTION …] "
            "SCRIPT, -m MODULE or -c TEXT is expected. HINT: options one by one, as in python -u "
            "-m package.train"
        )
    return list(argv[:at]), list(argv[at:])


class ForkedProcess:
    """A worker that was forked, with what is used of a `subprocess.Popen`.

    Attributes:
        pid: its process, process group and session.
        stdout: the reading end of its stdout.
        stderr: of its stderr.
    """

    def __init__(self, pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr

    def wait(self) -> None:
        """Waits for its end."""
        with contextlib.suppress(ChildProcessError):  # As Popen: it was waited for already.
            os.waitpid(self.pid, 0)


class Preloader:
    """The process that has imported modules, on this host. It ends with this process."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        modules: Sequence[str],
        environment: Mapping[str, str],
        directory: str | None,
        before: Callable[[], None],
    ) -> None:
        """Starts it, and waits until modules are imported.

        Args:
            argv: the command of the workers.
            modules: what is imported.
            environment: while it is.
            directory: where it runs; None for that of this process.
            before: called in it first.

        Raises:
            LaunchError: it can't be started, a module can't be imported, or takes two minutes.
        """
        interpreter, self._command = split_command(argv)
        ours, its = socket.socketpair()
        self._output = open(os.memfd_create("tfddl-preload"), "rb")
        with its:
            try:
                self._process = subprocess.Popen(
                    [
                        *(*interpreter, preloader.__file__),
                        *(str(its.fileno()), ",".join(modules), *self._command),
                    ],
                    cwd=directory,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    start_new_session=True,
                    pass_fds=(its.fileno(),),
                    preexec_fn=before,
                )
            except OSError as error:
                ours.close()
                self._output.close()
                raise LaunchError(
                    f"can't start {argv[0]!r}: {error.strerror}. HINT: it must be a Python"
                ) from error
        self._socket = ours
        self._lines = ours.makefile("rb")
        try:
            self._receive("imported")
        except BaseException:
            self.close()
            raise

    def fork(
        self,
        *,
        environment: Mapping[str, str],
        inherited: Mapping[str, int],
        directory: str | None,
        cores: Sequence[int],
    ) -> ForkedProcess:
        """Starts a worker, which becomes a child of this process; see `adopt_orphans`.

        Args:
            environment: the whole.
            inherited: descriptors, whose numbers stand in these variables there.
            directory: where it starts; None for that of the preloader.
            cores: which it may use; empty: all.

        Raises:
            LaunchError: there can be no other process.
        """
        pipes = [os.pipe(), os.pipe()]
        readers = [open(read, "rb", buffering=0) for read, _ in pipes]
        request = {
            "parent": os.getpid(),
            "environment": dict(environment),
            "inherited": list(inherited),
            "directory": directory,
            "cores": list(cores),
        }
        try:
            data = json.dumps(request).encode()
            fds = [*(write for _, write in pipes), *inherited.values()]
            header = len(data).to_bytes(preloader.HEADER_BYTES, "big")
            socket.send_fds(self._socket, [header], fds)
            self._socket.sendall(data)
            pid = self._receive("started a worker")["pid"]
        except OSError as error:
            for reader in readers:
                reader.close()
            raise LaunchError(_ended(str(error.strerror))) from error
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        finally:
            for _, write in pipes:
                os.close(write)
        return ForkedProcess(pid, *readers)

    def close(self) -> None:
        """Ends it; workers go on."""
        self._lines.close()
        self._output.close()
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, what: str) -> dict[str, Any]:
        if not select.select([self._socket], [], [], _START_S)[0]:
            raise LaunchError(_ended(f"it has not {what} within {_START_S:.0f} s"))
        line = self._lines.readline()
        if not line:
            size = os.fstat(self._output.fileno()).st_size
            last = os.pread(self._output.fileno(), size, 0)[-_SHOWN_BYTES:]
            text = last.decode(errors="replace").strip() or "nothing"
            raise LaunchError(_ended(f"the process has ended. It wrote: {text}"))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LaunchError(_ended(answer["error"]))
        return answer


def _ended(why: str) -> str:
    return f"--preload failed: {why}. HINT: without --preload each worker imports for itself"
