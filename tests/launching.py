"""A running `tfddlrun` for tests, and the small workers that it runs."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts import HERE, stand_in
from tests.processes import wait_until

LAUNCHER = [sys.executable, "-m", "tfddl.launcher"]
TIMEOUT_S = 50.0
"""For what takes a second or two here: less than its workers sleep if nobody ends them."""

# What every worker of these tests begins with.
PREAMBLE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
task = json.loads(os.environ["TF_CONFIG"])
rank = task["task"]["index"]
port = int(task["cluster"]["worker"][rank].rpartition(":")[2])
def wait_for(name):
    end = time.monotonic() + 40
    while not Path(name).exists():
        assert time.monotonic() < end, name
        time.sleep(0.01)
def say(name):
    Path(name + ".new").write_text(str(os.getpid()))
    os.rename(name + ".new", name)
"""


def worker(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", PREAMBLE + script]


@contextmanager
def launched(
    *line: str,
    cwd: Path,
    prefix: Sequence[str] = (),
    command: Sequence[str] = LAUNCHER,
    **more: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A running launcher, killed at the end if it is still there; a command may come before it."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TFDDL_TRUSTED_NETWORK": "1"}
    with subprocess.Popen(
        [*prefix, *command, *line],
        cwd=cwd,
        env=environment,
        text=True,
        errors="surrogateescape",
        **more,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def launch(
    *line: str, cwd: Path, timeout_s: float = TIMEOUT_S, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a launcher to its end."""
    with launched(*line, cwd=cwd, **more) as process:
        out, err = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def of_ranks(lines: list[str], start: str, workers: int) -> list[str]:
    """What each rank printed last on a line that begins so."""
    found = [re.fullmatch(rf"\[(\d+)\] ({start}.*)", line) for line in lines]
    by_rank = {int(match[1]): match[2] for match in found if match}
    assert sorted(by_rank) == list(range(workers)), "\n".join(lines)
    return [by_rank[rank] for rank in range(workers)]


@contextmanager
def launched_on_terminal(
    *line: str, columns: int = 80, cwd: Path, command: Sequence[str] = LAUNCHER
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A launcher or another command, with a terminal as input and output; and the other end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, columns))
    files: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    try:
        with launched(
            *line,
            cwd=cwd,
            command=command,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            **files,
        ) as process:
            os.close(theirs)
            yield process, ours
    finally:
        os.close(ours)


def read_terminal(terminal: int, *, until: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """All that is written until nobody holds the other end, or until this has been written."""
    data = b""
    deadline = time.monotonic() + timeout_s
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data += os.read(terminal, 65536)
        except OSError:  # EIO: the last one has closed it
            return data.decode()
        if until and until.encode() in data:
            return data.decode()
    raise AssertionError(f"still open after {timeout_s} s: {data!r}")


def screen(text: str) -> list[str]:
    """The lines that a terminal shows in the end, without colours."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", text.replace("\r\n", "\n"), re.DOTALL):
        if token == "\n":
            lines.append("")
            column = 0
        elif token == "\r":
            column = 0
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif token[0] != "\x1b":
            lines[-1] = lines[-1][:column] + token + lines[-1][column + 1 :]
            column += 1
    return lines


def pids(folder: Path, *names: str) -> set[int]:
    """Waits until these files are there, which hold the pid of whoever wrote them."""
    for name in names:
        wait_until((folder / name).exists)
    return {int((folder / name).read_text()) for name in names}


# And those that write on their page.
PAGE = """
from tfddl._src.heartbeat import WorkerFlags, ProgressPage, Stage
start = int(os.environ["TFDDL_RESTARTS"])
page = ProgressPage.from_environment(os.environ)
page.record_pid()
page.enable_stack_dumps()
"""


def two_workers(tmp_path: Path, *, remote: bool) -> tuple[str, ...]:
    """On this machine, or each on a host of its own, reached as by ssh."""
    if not remote:
        return ("-np", "2")
    return ("-H", ",".join(HERE), "--ssh-command", stand_in(tmp_path / "ssh"))
