"""Long-lived groups of real worker processes, for tests.

Starting TensorFlow takes seconds, so one group runs many cases. A case is a function in
`tests.cases`, named by its path; every worker calls it with the same arguments, and the test gets
what each rank returned.

Usage:
    results = groups(2).run("tests.cases.collectives:sums", dtype="float32")
"""

import functools
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any, NoReturn

from tests import fork_server
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.cluster.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 90.0
AFTER_FAILURE_S = 20.0
SOON_S = 40.0
"""Within it an error reaches all ranks; where each waits in vain, it takes a minute and more."""
AUTHKEY = b"tfddl tests"


def default_collective() -> str:
    """Of groups that don't choose one."""
    return os.environ.get("TFDDL_TEST_COLLECTIVE", "auto")


class CaseError(AssertionError):
    """A case raised in a worker, or the worker died."""


class WorkerGroup:
    """Several processes that have called `tfddl.init()` and wait for cases."""

    def __init__(self, size: int, *, hosts: tuple[int, ...] = (), **init: Any) -> None:
        """A group that isn't started yet.

        Args:
            size: How many workers.
            hosts: How many of them each host has, for which names of this machine stand; by
                default there is one.
            init: What `tests.worker.init` gets, and `tfddl.init` from it. TFDDL_TEST_COLLECTIVE in
                the environment is the collective of groups that don't choose one.
        """
        self.size = size
        self.hosts = hosts or (size,)
        self.init = {"collective": default_collective(), **init}
        self._directory = tempfile.TemporaryDirectory(prefix="tfddl-group-")
        self._processes: list[fork_server.Process] = []
        self._connections: list[Connection] = []

    @property
    def _start_timeout_s(self) -> float:
        """The first ones wait for imports of TensorFlow, each of some seconds of a core."""
        return START_TIMEOUT_S * max(1.0, self.size / 4)

    @functools.cached_property
    def addresses(self) -> tuple[str, ...]:
        """Those of TF_CONFIG."""
        names = [f"127.0.0.{1 + h}" for h, count in enumerate(self.hosts) for _ in range(count)]
        return tuple(map("{}:{}".format, names, free_ports(self.size)))

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def start(self) -> None:
        directory = Path(self._directory.name)
        address = str(directory / "socket")
        with Listener(address, family="AF_UNIX", authkey=AUTHKEY) as listener:
            for rank in range(self.size):
                environ = {
                    **os.environ,
                    "TF_CONFIG": tf_config.render(Cluster(self.addresses, rank)),
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    "PYTHONPATH": str(ROOT),
                }
                log = directory / f"log.{rank}"
                self._processes.append(
                    fork_server.start(
                        "tests.worker:main", address, rank=rank, environ=environ, log=log
                    )
                )
            self._connections = self._accept(listener)
        for connection in self._connections:
            connection.send(("tests.worker:init", self.init))
        self._collect(self._start_timeout_s)

    def run(self, case: str, *, timeout_s: float = 60.0, **arguments: Any) -> list[Any]:
        """What the case returned on each rank, in rank order."""
        kinds = self.outcomes(case, timeout_s=timeout_s, **arguments)
        failed = [(rank, text) for rank, (ok, text) in enumerate(kinds) if not ok]
        if failed:
            self.close()
            texts = "\n".join(f"--- rank {rank}:\n{text}" for rank, text in failed)
            raise CaseError(f"{case} failed on {len(failed)} of {self.size} ranks\n{texts}")
        return [value for _, value in kinds]

    def outcomes(
        self, case: str, *, timeout_s: float = 60.0, **arguments: Any
    ) -> list[tuple[bool, Any]]:
        """(True, result) or (False, traceback) of each rank."""
        for connection in self._connections:
            connection.send((case, arguments))
        return self._collect(timeout_s)

    def close(self) -> None:
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # It has ended, or has not become a session of its own yet.
                process.kill()
        for process in self._processes:
            process.wait(timeout=30)
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        self._directory.cleanup()

    def _accept(self, listener: Listener) -> list[Connection]:
        by_rank: dict[int, Connection] = {}
        deadline = time.monotonic() + self._start_timeout_s
        listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined,unused-ignore]
        while len(by_rank) < self.size:
            try:
                connection = listener.accept()
            except TimeoutError:
                dead = [r for r, p in enumerate(self._processes) if p.poll() is not None]
                if dead or time.monotonic() > deadline:
                    raise CaseError(
                        f"workers didn't start; dead: {dead}\n{self._logs(dead)}"
                    ) from None
                continue
            by_rank[connection.recv()] = connection
        return [by_rank[rank] for rank in range(self.size)]

    def _collect(self, timeout_s: float) -> list[tuple[bool, Any]]:
        outcomes: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout_s
        while len(outcomes) < self.size:
            missing = [rank for rank in range(self.size) if rank not in outcomes]
            left_s = max(0.0, deadline - time.monotonic())
            ready = wait([self._connections[rank] for rank in missing], timeout=left_s)
            if not ready:
                self._give_up(f"ranks {missing} gave no answer in time", outcomes)
            for rank in missing:
                if self._connections[rank] not in ready:
                    continue
                try:
                    outcomes[rank] = self._connections[rank].recv()
                except EOFError:
                    self._give_up(f"rank {rank} died", outcomes)
                if not outcomes[rank][0]:  # Without it, the others may wait for ever.
                    deadline = min(deadline, time.monotonic() + AFTER_FAILURE_S)
        return [outcomes[rank] for rank in range(self.size)]

    def _give_up(self, why: str, outcomes: dict[int, tuple[bool, Any]]) -> NoReturn:
        self._dump_stacks()
        logs = self._logs(range(self.size))
        self.close()
        answers = "\n".join(
            f"--- rank {r} answered:\n{value}" for r, (_, value) in outcomes.items()
        )
        raise CaseError(f"{why}\n{logs}\n{answers}")

    def _dump_stacks(self) -> None:
        """Makes the workers write to their logs where they are."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)
        time.sleep(1.0)

    def _logs(self, ranks: Any) -> str:
        texts = []
        for rank in ranks:
            log = Path(self._directory.name) / f"log.{rank}"
            texts.append(f"--- log of rank {rank}:\n{log.read_text(errors='replace')[-9000:]}")
        return "\n".join(texts)


@contextmanager
def workers(
    script: str, clusters: Sequence[Cluster], logs: Path, *arguments: str
) -> Iterator[list[fork_server.Process]]:
    """Processes that run a script, killed at the end.

    Args:
        script: What `python -W ignore -c` would get.
        clusters: What each finds in TF_CONFIG.
        logs: A folder; the outputs of the first one are in the file "0".
        arguments: Of the script.
    """
    processes: list[fork_server.Process] = []
    try:
        for number, cluster in enumerate(clusters):
            process = fork_server.start(
                *("tests.fork_server:execute", script, *arguments),
                environ={**os.environ, "TF_CONFIG": tf_config.render(cluster)},
                log=logs / str(number),
                rank=number,
            )
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)


def on_one_host(size: int) -> list[Cluster]:
    """What the workers of a job find."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(size))
    return [Cluster(addresses, rank) for rank in range(size)]


class Groups:
    """The groups of a test session, one per size and settings."""

    def __init__(self) -> None:
        self._groups: dict[Any, WorkerGroup] = {}

    def __call__(self, size: int, **init: Any) -> WorkerGroup:
        chosen = {"hosts": (size,), "collective": default_collective(), **init}
        key = (size, tuple(sorted(chosen.items())))
        group = self._groups.get(key)
        if group is None or not group.pids:
            group = WorkerGroup(size, **init)
            self._groups[key] = group
            with _closing_on_error(group):
                group.start()
        return group

    def close(self) -> None:
        for group in self._groups.values():
            group.close()


@contextmanager
def _closing_on_error(group: WorkerGroup) -> Iterator[None]:
    try:
        yield
    except BaseException:
        group.close()
        raise
