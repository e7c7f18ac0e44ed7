"""A job of workers that stay, and do what they are told when it is their turn."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from tfddl.bench.orders import End, Hello, Order
from tfddl.errors import LaunchError

_START_S = 300.0
_ANSWER_S = 900.0
_END_S = 20.0
_LOOK_S = 0.2
_TAIL_LINES = 40
_LONGEST_SOCKET = 107


class Crew:
    """Some workers of one way, each a process, started by `tfddlrun`.

    Usage::

        with Crew("ring", num_workers=2, environment=os.environ, directory=directory) as crew:
            called = crew.ask(Call(…))      # what each rank answers, in rank order

    Several crews take turns: whoever isn't asked sleeps.
    """

    def __init__(
        self,
        way: str,
        *,
        num_workers: int,
        environment: Mapping[str, str],
        directory: Path,
        is_job: bool = True,
    ) -> None:
        """Prepares to start.

        Args:
            way: See `tfddl.bench.orders`.
            num_workers: How many.
            environment: What they inherit.
            directory: For the socket and the output, readable for nobody else. Crews may share it.
            is_job: False starts the one worker without `tfddlrun`, as any program.

        Raises:
            LaunchError: The name of the folder is too long.
        """
        assert is_job or num_workers == 1
        self.way, self.num_workers = way, num_workers
        self.hellos: tuple[Hello, ...] = ()
        self.launched_s = 0.0
        """When it was started, by `time.monotonic`."""
        self._is_job = is_job
        self._environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}
        name = secrets.token_hex(4)
        self._socket, self._log = directory / name, directory / f"{name}.log"
        if len(os.fsencode(self._socket)) > _LONGEST_SOCKET:
            raise LaunchError(
                f"{self._socket} is too long a name for a socket, which can have {_LONGEST_SOCKET} "
                "bytes. HINT: let TMPDIR be a folder with a shorter name."
            )
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []

    @property
    def label(self) -> str:
        """How tables call it: the name of what moves its tensors."""
        return self.hellos[0].label

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        launcher = () if self._process is None else (self._process.pid,)
        return (*launcher, *(hello.pid for hello in self.hellos))

    def __enter__(self) -> Self:
        """Starts the workers, and waits until all are there.

        Raises:
            LaunchError: They don't come.
        """
        try:
            self._start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Ends the workers: orders them to, or kills them where something went wrong."""
        try:
            if kind is None:
                self.ask(End(), timeout_s=_END_S)
                self._wait_for_end()
        finally:
            self._kill()

    def ask(self, order: Order, *, timeout_s: float = _ANSWER_S) -> list[Any]:
        """Gives all workers an order.

        Returns:
            Their answers, in rank order.

        Raises:
            LaunchError: One of them died, or there was no answer in time.
        """
        with contextlib.suppress(OSError):  # Of who has died; the answers are missing then, too.
            for connection in self._connections:
                connection.send(order)
        answers: dict[int, Any] = {}
        deadline_s = time.monotonic() + timeout_s
        while len(answers) < self.num_workers:
            missing = [rank for rank in range(self.num_workers) if rank not in answers]
            left_s = max(0.0, deadline_s - time.monotonic())
            ready = wait([self._connections[rank] for rank in missing], timeout=left_s)
            if not ready:
                raise self._error(f"ranks {missing} didn't answer {order} in {timeout_s:.0f} s")
            for rank in missing:
                if self._connections[rank] in ready:
                    try:
                        answers[rank] = self._connections[rank].recv()
                    except (EOFError, OSError):
                        raise self._error(f"rank {rank} died") from None
        return [answers[rank] for rank in range(self.num_workers)]

    def _start(self) -> None:
        worker = [sys.executable, "-m", "tfddl.bench.worker"]
        command = [*worker, f"--connect={self._socket}", f"--way={self.way}"]
        if self._is_job:
            # Workers keep to cores by themselves, alike with every launcher.
            job = [sys.executable, "-m", "tfddl.launcher", "--bind", "none"]
            command = [*job, "-np", str(self.num_workers), "--", *command]
        with socket.socket(socket.AF_UNIX) as server, self._log.open("wb") as log:
            server.bind(str(self._socket))
            server.listen(self.num_workers)
            server.settimeout(_LOOK_S)
            self.launched_s = time.monotonic()
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # A Ctrl-C is ours, and we end it.
            )
            self._connections = [self._accept(server) for _ in range(self.num_workers)]
        hellos = [self._hear(connection) for connection in self._connections]
        by_rank = sorted(zip(hellos, self._connections, strict=True), key=lambda p: p[0].rank)
        self.hellos = tuple(hello for hello, _ in by_rank)
        self._connections = [connection for _, connection in by_rank]

    def _accept(self, server: socket.socket) -> Connection:
        while True:
            try:
                return Connection(server.accept()[0].detach())
            except TimeoutError:
                self._check_start()

    def _hear(self, connection: Connection) -> Hello:
        while not connection.poll(_LOOK_S):
            self._check_start()
        try:
            hello = connection.recv()
        except EOFError:
            raise self._error("a worker ended before it had started") from None
        assert isinstance(hello, Hello)
        return hello

    def _check_start(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise self._error("the job ended before it had started")
        if time.monotonic() > self.launched_s + _START_S:
            raise self._error(f"not all workers were there after {_START_S:.0f} s")

    def _error(self, why: str) -> LaunchError:
        """Waits for the job's own report of what went wrong, and passes it on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(_END_S)
        lines = self._log.read_text(errors="replace").splitlines()
        said = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    nothing"
        return LaunchError(f"{self.num_workers} workers ({self.way}): {why}. They said:\n{said}")

    def _wait_for_end(self) -> None:
        assert self._process is not None
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return  # TensorFlow's threads now and then don't end; nothing is lost by killing them.
        if status:
            raise self._error(f"the job ended with status {status}")

    def _kill(self) -> None:
        """Ends what still lives: `tfddlrun`, asked to end, kills its workers."""
        for connection in self._connections:
            connection.close()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM if self._is_job else signal.SIGKILL)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for path in (self._socket, self._log):
            path.unlink(missing_ok=True)
        self._connections, self.hellos = [], ()
