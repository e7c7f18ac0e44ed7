"""Processes that are connected by a communicator, for tests: NumPy only, so that they start fast.

Usage:
    results = run("sums", size=3)  # tests.cases.native_comm.sums, on every rank
    results = run("sums", size=3, by="tcp")  # as if each were on a host of its own
"""

import importlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from tests import fork_server
from tests.processes import wait_until
from tfddl._src.comm.native import (
    Address,
    Communicator,
    Network,
    PeerConfig,
    TcpConnector,
    Timeouts,
    connect_hosts,
    connect_local,
    deadlock,
)

TIMEOUT_S = 60.0
PROBE_AFTER_S = 0.5
"""Sooner than where it has to cost nothing: a deadlock is one at any time."""


def run(
    case: str,
    size: int,
    *,
    by: str = "memory",
    timeouts: Timeouts | None = None,
    **arguments: Any,
) -> list[Any]:
    """What a case returned on each rank; None of one that died."""
    task = {
        "case": case,
        "size": size,
        "by": by,
        "job": f"test {os.getpid()} {case} {sorted(arguments.items())}",
        "timeouts": timeouts or Timeouts(warn_s=20.0, abort_s=40.0),
        "arguments": arguments,
    }
    processes = []
    with tempfile.TemporaryDirectory(prefix="tfddl-native-") as name:
        directory = Path(name)
        try:
            for rank in range(size):
                processes.append(
                    fork_server.start(
                        *("tests.native_workers:main", task, rank, directory),
                        rank=rank,
                        modules=("tests.cases.native_comm", "tests.native_workers"),
                    )
                )
            for process in processes:
                process.wait(timeout=TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.wait(timeout=TIMEOUT_S)
        results = [directory / f"result {rank}" for rank in range(size)]
        return [pickle.loads(p.read_bytes()) if p.exists() else None for p in results]


def main(task: dict[str, Any], rank: int, directory: Path) -> None:
    deadlock.PROBE_AFTER_S = PROBE_AFTER_S
    size = task["size"]
    config = PeerConfig(
        job=task["job"],
        rank=rank,
        size=size,
        global_ranks=[10 + rank for rank in range(size)],
        timeouts=task["timeouts"],
        spins=size <= 2,
    )
    case = getattr(importlib.import_module("tests.cases.native_comm"), task["case"])
    with _connected(config, task["by"], directory) as network:
        result = case(Communicator(network, range(size)), network, **task["arguments"])
    _write(directory / f"result {rank}", pickle.dumps(result))


def _write(path: Path, data: bytes) -> None:
    """All of it at once, to those who look."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def _connected(config: PeerConfig, by: str, directory: Path) -> Network:
    if by == "memory":
        return connect_local(config)
    connector = TcpConnector(config.rank)
    _write(directory / f"port {config.rank}", str(connector.port).encode())
    ports = [directory / f"port {rank}" for rank in range(config.size)]
    wait_until(lambda: all(path.exists() for path in ports))
    addresses = [Address("localhost", int(path.read_text())) for path in ports]
    connector.start(addresses, config.job.encode())
    return connect_hosts(config, connector, range(config.size))
