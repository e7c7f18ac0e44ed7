"""`horovod.run`, with functions that need no TensorFlow: results, failures, what is left."""

import io
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.group import ROOT
from tests.launching import TIMEOUT_S, pids
from tests.processes import is_running, wait_until
from tfddl._src.horovod import run_function
from tfddl.errors import LaunchError

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from tfddl._src.horovod.run_function import run

def say(name):
    Path(name + ".new").write_text(str(os.getpid()))
    os.rename(name + ".new", name)
"""


def _caller(script: str, folder: Path, **more: Any) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    line = [sys.executable, "-c", PREAMBLE + script]
    return subprocess.Popen(line, cwd=folder, env=environment, text=True, **more)


# The results are longer than a pipe holds. By the second start, the first one's answers are old.
RESULTS = """
def work(start, *, factor):
    rank = int(os.environ["HOROVOD_RANK"])
    if os.environ["TFDDL_RESTARTS"] == "0":
        if rank == 1:
            raise KeyError("for the first time")
        time.sleep(60)
    return rank, start * factor, bytes(200_000)

found = run(work, args=(4,), kwargs={"factor": 2}, num_proc=3, reset_limit=1)
assert [len(data) for _, _, data in found] == [200_000] * 3
print([result[:2] for result in found])

def fail():
    if os.environ["HOROVOD_RANK"] != os.environ["TFDDL_RESTARTS"]:
        time.sleep(60)
    raise KeyError("no such key")

try:
    run(fail, num_proc=2, reset_limit=1)
except RuntimeError as error:
    print(error)
assert not os.listdir(os.environ["TMPDIR"])
"""


def test_results_and_failures(tmp_path: Path) -> None:
    with _caller(RESULTS, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "[(0, 8), (1, 8), (2, 8)]\nrank 1 failed:\nTraceback " in out
    assert out.endswith("KeyError: 'no such key'\n\n")


def test_results_of_an_earlier_start_are_ignored() -> None:
    """As of a worker that was killed when it began again."""
    answers = [(0, 1.0, True, "the old one"), (1, 2.0, True, "the new one")]
    files = [io.BytesIO(pickle.dumps(answer)) for answer in answers]
    with pytest.raises(LaunchError, match="^rank 1 failed:\nthe new one$"):
        run_function._results(files, 1)


# Each worker has a child that has left its session.
WAITS = """
def work():
    rank = int(os.environ["HOROVOD_RANK"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        say(f"child of {rank}")
        time.sleep(60)
    say(f"worker {rank}")
    time.sleep(60)

run(work, num_proc=2)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_the_caller_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with _caller(WAITS, tmp_path) as process:
        left = pids(tmp_path, *(f"{who} {rank}" for who in ("worker", "child of") for rank in "01"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        left |= set(map(int, children.split()))
        process.send_signal(number)
        assert process.wait(timeout=TIMEOUT_S) == -number
        wait_until(lambda: not any(map(is_running, left)), timeout_s=TIMEOUT_S)
    assert not list((tmp_path / "tmp").iterdir())


CHATTERS = """
def work():
    for _ in range(2_000):
        print("x" * 100)  # more than a pipe holds

print(run(work, num_proc=1), file=sys.stderr)
"""


def test_a_full_disk_under_the_caller_s_output_does_not_stop_the_workers(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, _caller(CHATTERS, tmp_path, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert err.count("output of the workers can't be written and is dropped: [Errno 28]") == 1
    assert "[None]\n" in err
