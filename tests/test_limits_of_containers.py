"""Limits of threads, processes and memory: the report names the one that was reached."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching import launch, two_workers, worker
from tfddl._src.cgroups import SELF_CGROUP, LimitMonitor, cgroups_with
from tfddl._src.launcher.report import Outcome, WorkerExit, failure_report

V1 = {
    "pids/a/pids.max": "100",
    "pids/a/pids.events": "max {}",
    "memory/a/memory.limit_in_bytes": "2147483648",
    "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {}",
}
V2 = {
    "a/pids.max": "100",
    "a/pids.events": "max {}",
    "a/b/pids.max": "max",
    "a/b/pids.events": "max 0",
    "a/b/memory.max": "2147483648",
    "a/b/memory.events": "low 0\nhigh 0\nmax {0}\noom 0\noom_kill {0}\noom_group_kill 0",
}


@pytest.mark.parametrize(
    ("own", "files", "names"),
    [
        ("3:pids:/a\n4:memory:/a", V1, ["pids/a/pids.max", "memory/a/memory.limit_in_bytes"]),
        ("0::/a/b", V2, ["a/pids.max", "a/b/memory.max"]),
        # Version 2 beside version 1.
        ("0::/a/b", {f"unified/{n}": t for n, t in V2.items()}, ["a/pids.max", "a/b/memory.max"]),
        ("", V1, []),
    ],
)
def test_the_limits_that_were_reached(
    own: str, files: dict[str, str], names: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    root = tmp_path / "cgroup"

    def write(count: int) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text.format(count) + "\n")

    write(5)  # of earlier jobs
    watch = LimitMonitor(own=tmp_path / "own", root=root)
    assert watch.reached() == ()
    write(6)
    told = watch.reached()
    assert len(told) == len(names)
    values = ("(100), the most processes and threads", "(2 GiB), the most memory")
    for text, name, value in zip(told, names, values, strict=False):
        assert text.endswith(f"{name} {value}")
    assert LimitMonitor(own=tmp_path / "own", root=root).reached() == ()
    assert LimitMonitor(own=tmp_path / "none", root=root).reached() == ()


FATAL = (
    "F0000 00:00:1796058532.866710    2528 env.cc:84] Check failed: ret == 0 (11 vs. 0) Thread "
    "tf_Compute creation via pthread_create() failed."
)
ABORT = ("before", FATAL, "*** Check failure stack trace: ***") + (
    "    @     0x7fcf0f31d314  absl::lts_20250814::log_internal::LogMessage::SendToLog()",
) * 30


@pytest.mark.parametrize(
    ("lines", "code", "limits", "hints"),
    [
        (ABORT, -signal.SIGABRT, ("/x/pids.max (9)",), ["meanwhile a limit was reached: /x/pids"]),
        (ABORT, -signal.SIGABRT, (), ["HINT: no more threads or processes could be started; ulim"]),
        (("RuntimeError: can't start new thread",), 1, (), ["HINT: no more threads or processes"]),
        (("  what():  std::bad_alloc",), -signal.SIGABRT, (), ["HINT: memory could not be alloc"]),
        (("MemoryError",), 1, (), ["HINT: memory could not be allocated; ulimit -v says"]),
        (("MyMemoryErrors",), 1, (), []),
    ],
)
def test_the_report_says_which_limit(
    lines: tuple[str, ...], code: int, limits: tuple[str, ...], hints: list[str]
) -> None:
    end = WorkerExit(0, returncode=code, after_s=2.0, stderr_lines=lines, ended_with=None)
    outcome = Outcome((end,), root=end, interrupted_by=None, num_oom_kills=0, limits=limits)
    _, *report = failure_report(outcome).splitlines()
    before = report[: report.index("the last lines of its stderr:")]
    assert [line[: len(hint)] for line, hint in zip(before, hints, strict=True)] == hints
    if lines is ABORT:
        assert report[-4:] == [
            "  before",
            f"  {FATAL}",
            "  *** Check failure stack trace: ***",
            "      (30 frames of native code)",
        ]


@contextlib.contextmanager
def _limited(name: str, limit: int) -> Iterator[tuple[str, ...]]:
    """What a command begins with that runs in a cgroup of its own, with so many processes."""
    for group in cgroups_with("pids"):
        directory = group.directory / name
        with contextlib.suppress(OSError):
            directory.mkdir()
            try:
                (directory / "pids.max").write_text(str(limit))
            except OSError:
                directory.rmdir()
                continue
            try:
                join = f'echo $$ >"{directory}/cgroup.procs" && exec "$0" "$@"'
                yield ("sh", "-c", join)
            finally:
                directory.rmdir()
            return
    pytest.skip("needs the right to make a cgroup with a limit of processes")


THREADS = """
import threading
try:
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError:
    print("F0000 thread creation via pthread_create() failed.", file=sys.stderr)
    for _ in range(50):
        print("    @     0x7fcf0f31d314  absl::Flush()", file=sys.stderr, flush=True)
    os.abort()
"""


def test_a_limit_of_threads_that_is_reached_is_named(tmp_path: Path) -> None:
    script = f"if rank: time.sleep(60)\n{THREADS}"
    line = [*two_workers(tmp_path, remote=True), *worker(script)]
    with _limited(f"tfddl-test-{os.getpid()}", 40) as prefix:
        done = launch(*line, cwd=tmp_path, prefix=prefix)
    assert done.returncode == 128 + signal.SIGABRT
    report = [text for text in done.stderr.splitlines() if text.startswith("tfddlrun: ")]
    assert "rank 0" in report[0]
    assert "killed by SIGABRT" in report[0]
    assert "meanwhile a limit was reached: " in report[1]
    assert report[1].endswith("/pids.max (40), the most processes and threads")
    assert "tfddlrun:   F0000 thread creation via pthread_create() failed." in report
    assert "tfddlrun:       (50 frames of native code)" in report


@pytest.mark.parametrize("limit", [1, 3])
def test_a_worker_that_cant_be_started_for_a_limit(limit: int, tmp_path: Path) -> None:
    """One process is tfddlrun alone, three are it and the first worker."""
    assert SELF_CGROUP.exists()
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    with _limited(f"tfddl-test-{os.getpid()}", limit) as prefix:
        done = launch("-np", "2", *command, cwd=tmp_path, prefix=prefix)
    assert done.returncode == 127
    what = "a process" if limit == 1 else repr(sys.executable)
    assert f"tfddlrun: can't start {what}: Resource temporarily unavailable. HINT: " in done.stderr
    assert "pids.max" in done.stderr
    assert "Traceback" not in done.stderr
