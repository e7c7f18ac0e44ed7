"""Processes that are connected by a wire, for tests: NumPy only, so that they start at once.

Usage:
    results = run("sums", size=3)  # tests.cases.native_comm.sums(wire, network), on every rank
    results = run("sums", size=3, by="tcp")  # as if each were on a host of its own
"""

import dataclasses
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from tfddl._src.comm.native import (
    Address,
    Communicator,
    Network,
    PeerConfig,
    TcpRendezvous,
    Timeouts,
    connect_hosts,
    connect_local,
)

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60.0


def run(
    case: str,
    size: int,
    *,
    by: str = "memory",
    patience: Timeouts | None = None,
    **arguments: Any,
) -> list[Any]:
    """What a case returned on each rank; None of one that died."""
    patience = patience or Timeouts(warn_s=20.0, abort_s=40.0)
    processes = []
    try:
        for rank in range(size):
            task = {
                "case": case,
                "rank": rank,
                "size": size,
                "by": by,
                "job": f"test {os.getpid()} {case} {sorted(arguments.items())}",
                "patience": dataclasses.asdict(patience),
                "arguments": arguments,
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.native_workers", json.dumps(task)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
        if by == "tcp":
            ports = [int(_output(process).readline()) for process in processes]
            for process in processes:
                _input(process).write(json.dumps(ports).encode() + b"\n")
                _input(process).flush()
        results = []
        for process in processes:
            out, _ = process.communicate(timeout=TIMEOUT_S)
            results.append(pickle.loads(out) if out else None)
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()
            _output(process).close()
            _input(process).close()


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _input(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def main(text: str) -> None:
    task = json.loads(text)
    seat = PeerConfig(
        job=task["job"],
        rank=task["rank"],
        size=task["size"],
        names=[10 + rank for rank in range(task["size"])],
        patience=Timeouts(**task["patience"]),
        spins=task["size"] <= 2,
    )
    case = getattr(importlib.import_module("tests.cases.native_comm"), task["case"])
    with _connected(seat, task["by"]) as network:
        result = case(Communicator(network, range(seat.size)), network, **task["arguments"])
    sys.stdout.buffer.write(pickle.dumps(result))


def _connected(seat: PeerConfig, by: str) -> Network:
    if by == "memory":
        return connect_local(seat)
    lobby = TcpRendezvous(seat.rank)
    sys.stdout.write(f"{lobby.port}\n")
    sys.stdout.flush()
    doors = [Address("localhost", port) for port in json.loads(sys.stdin.readline())]
    lobby.learn(doors, seat.job.encode())
    return connect_hosts(seat, lobby, [rank for rank in range(seat.size) if rank != seat.rank])


if __name__ == "__main__":
    main(sys.argv[1])
