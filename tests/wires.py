"""Processes that are connected by a wire, for tests: NumPy only, so that they start at once.

Usage:
    results = run("sums", size=3)            # tests.cases.wires.sums(wire, mesh), on every rank
"""

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tfddl.wire import Patience, Seat, Wire, connect

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60.0


def run(case: str, size: int, *, patience: Patience | None = None, **arguments: Any) -> list[Any]:
    """What a case returned on each rank; None of one that died."""
    patience = patience or Patience(warn_s=20.0, give_up_s=40.0)
    processes = []
    try:
        for rank in range(size):
            task = {
                "case": case,
                "rank": rank,
                "size": size,
                "job": f"test {os.getpid()} {case} {sorted(arguments.items())}",
                "patience": [patience.warn_s, patience.give_up_s],
                "arguments": arguments,
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.wires", json.dumps(task)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                )
            )
        results = []
        for process in processes:
            out, _ = process.communicate(timeout=TIMEOUT_S)
            results.append(pickle.loads(out) if out else None)
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def main(text: str) -> None:
    task = json.loads(text)
    warn_s, give_up_s = task["patience"]
    seat = Seat(
        job=task["job"],
        rank=task["rank"],
        size=task["size"],
        names=[10 + rank for rank in range(task["size"])],
        patience=Patience(warn_s=warn_s, give_up_s=give_up_s),
        spins=task["size"] <= 2,
    )
    case = getattr(importlib.import_module("tests.cases.wires"), task["case"])
    with connect(seat) as mesh:
        result = case(Wire(mesh, range(mesh.size)), mesh, **task["arguments"])
    sys.stdout.buffer.write(pickle.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
