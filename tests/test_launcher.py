"""The launcher, with real processes: small ones, without TensorFlow."""

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfddl
from tests.processes import in_sessions, is_running, wait_until
from tfddl.cluster import Cluster, tf_config
from tfddl.errors import LaunchError
from tfddl.launcher import JobOptions, plan_processes
from tfddl.launcher.job import find_taken_port
from tfddl.launcher.main import _make_parser
from tfddl.launcher.output import LineAssembler
from tfddl.launcher.plan import this_machine
from tfddl.launcher.ports import free_ports, is_free
from tfddl.launcher.report import Outcome, WorkerExit, failure_report
from tfddl.launcher.restarts import RestartOptions
from tfddl.progress import Ability, Reading

LAUNCHER = [sys.executable, "-m", "tfddl.launcher"]
TIMEOUT_S = 20.0

# What every worker of these tests begins with.
PREAMBLE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
task = json.loads(os.environ["TF_CONFIG"])
rank = task["task"]["index"]
port = int(task["cluster"]["worker"][rank].rpartition(":")[2])
def wait_for(name):
    end = time.monotonic() + 15
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
def launched(*line: str, cwd: Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A running launcher, killed at the end if it is still there."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TFDDL_TRUSTED_NETWORK": "1"}
    with subprocess.Popen(
        [*LAUNCHER, *line], cwd=cwd, env=environment, text=True, errors="surrogateescape", **more
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def launch(*line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a launcher to its end."""
    with launched(*line, cwd=cwd) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


@contextmanager
def launched_on_terminal(
    *line: str, columns: int = 80, cwd: Path
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A launcher whose input and output are a terminal, and the other end of that."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, columns))
    files = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    try:
        with launched(
            *line,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            **files,
        ) as process:
            os.close(theirs)
            yield process, ours
    finally:
        os.close(ours)


def read_terminal(terminal: int) -> str:
    """All that is written until nobody holds the other end."""
    data = b""
    deadline = time.monotonic() + TIMEOUT_S
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data += os.read(terminal, 65536)
        except OSError:  # EIO: the last one has closed it
            return data.decode()
    raise AssertionError(f"still open after {TIMEOUT_S} s: {data!r}")


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


def test_plans() -> None:
    command = ("python", "train.py", "--lr=0.1", "--", "-np", "7", "a b", "")
    environment = {"HOME": "/h", "TF_CONFIG": "old", "TF_ENABLE_ONEDNN_OPTS": "0"}
    places = [this_machine((500, 600))]
    plans = plan_processes(command, places=places, environment=MappingProxyType(environment))
    assert [plan.rank for plan in plans] == [0, 1]
    for plan in plans:
        assert plan.argv == command
        cluster = tf_config.parse(plan.environment["TF_CONFIG"])
        assert cluster == Cluster(("127.0.0.1:500", "127.0.0.1:600"), plan.rank)
        assert set(plan.environment) - set(environment) == {
            "PYTHONUNBUFFERED",
            "TF_CPP_MIN_LOG_LEVEL",
        }
        assert plan.environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert environment["TF_CONFIG"] == "old"


def test_plans_keep_what_the_user_has_set() -> None:
    environment = {"PYTHONUNBUFFERED": "", "TF_CPP_MIN_LOG_LEVEL": "0"}
    (plan,) = plan_processes(("true",), places=[this_machine((500,))], environment=environment)
    assert {name: plan.environment[name] for name in environment} == environment


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if high - low < 50000:
        assert not any(low <= port <= high for port in ports)
    assert all(is_free(port) for port in ports)


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, ""),
        pytest.param(
            socket.AF_INET6,
            "::1",
            marks=pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6"),
        ),
    ],
)
def test_a_port_taken_on_one_interface_is_not_free(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.bind((host, 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


KERAS_BAR = (
    "Epoch 1/2\n"
    "\r\x1b[1m1/3\x1b[0m \x1b[32m━━\x1b[0m\x1b[37m━━━━\x1b[0m \x1b[1m1s\x1b[0m 500ms/step"
    + "\b" * 24
    + "\r\x1b[1m2/3\x1b[0m \x1b[32m━━━━\x1b[0m\x1b[37m━━\x1b[0m \x1b[1m0s\x1b[0m 50ms/step "
    + "\b" * 24
    + "\r\x1b[1m3/3\x1b[0m \x1b[32m━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m0s\x1b[0m 50ms/step\n"
    "done\n"
)
KERAS_LAST = "\x1b[1m3/3\x1b[0m \x1b[32m━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m0s\x1b[0m 50ms/step"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),  # the unfinished line comes at the end
        ("10%\r20%\r30%\n", ["30%"]),
        ("10%\r20%\r", ["20%"]),
        ("windows\r\n", ["windows"]),
        ("\rbar\r\rbaz\n", ["baz"]),
        ("|\b/\b-\b\\\n", ["\\"]),
        ("ab\b\bcd\b\b\n", ["cd"]),  # the cursor moved back, nothing was written over it
        ("a\b\b\bb\n", ["b"]),
        (KERAS_BAR, ["Epoch 1/2", KERAS_LAST, "done"]),
        ("", []),
    ],
)
def test_lines_are_those_that_a_terminal_shows(text: str, lines: list[str]) -> None:
    assembler = LineAssembler(progress_s=None)
    found = assembler.feed(text.encode(), now_s=0.0)
    assert found + assembler.finish() == lines


@given(
    st.lists(st.sampled_from(["a", "bc", "\n", "\r", "\b", "é━", "\x1b[1m", "\r\n"]), max_size=30),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_lines_do_not_depend_on_how_they_are_read(texts: list[str], cuts: list[int]) -> None:
    data = "".join(texts).encode()
    whole, pieces = LineAssembler(progress_s=None), LineAssembler(progress_s=None)
    expected = whole.feed(data, now_s=0.0) + whole.finish()
    found, start = [], 0
    while start < len(data):
        step = cuts[start % len(cuts)]
        found += pieces.feed(data[start : start + step], now_s=0.0)
        start += step
    assert found + pieces.finish() == expected


@given(st.binary(max_size=200))
def test_any_bytes_pass_through(data: bytes) -> None:
    assembler = LineAssembler(progress_s=None)
    plain = data.translate(None, delete=b"\r\b") + b"\n"
    lines = assembler.feed(plain, now_s=0.0) + assembler.finish()
    assert "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape") == plain


def test_a_bar_is_shown_now_and_then_where_it_cant_be_rewritten() -> None:
    assembler = LineAssembler(progress_s=10.0)
    shown = [
        line
        for second in range(35)
        for line in assembler.feed(f"\r{second} s".encode(), now_s=float(second))
    ]
    assert shown == ["10 s", "20 s", "30 s"]
    assert assembler.feed(b"\n", now_s=35.0) == ["34 s"]


def test_a_line_without_end_is_given_out_in_parts() -> None:
    assembler = LineAssembler(progress_s=None)
    lines = [line for _ in range(20) for line in assembler.feed(b"x" * 100_000, now_s=0.0)]
    assert len(lines) == 1
    assert len("".join(lines + assembler.finish())) == 2_000_000


def end(rank: int, returncode: int, **more: Any) -> WorkerExit:
    whole: dict[str, Any] = {"after_s": 2.0, "stderr_lines": (), "ended_with": None, **more}
    return WorkerExit(rank=rank, returncode=returncode, **whole)


def outcome(*exits: WorkerExit, root: int | None = 0, num_oom_kills: int = 0) -> Outcome:
    return Outcome(
        exits=exits,
        root=None if root is None else exits[root],
        interrupted_by=None,
        num_oom_kills=num_oom_kills,
    )


@pytest.mark.parametrize(
    ("ended", "lines"),
    [
        (
            outcome(end(1, 3)),
            ["rank 1 failed: exit code 3 after 2.0 s", "it wrote nothing to stderr"],
        ),
        (
            outcome(end(0, 1, stderr_lines=tuple(f"line {n}" for n in range(30)))),
            [
                "rank 0 failed: exit code 1 after 2.0 s",
                "the last lines of its stderr:",
                *(f"  line {n}" for n in range(10, 30)),
            ],
        ),
        (
            outcome(
                end(3, 0),
                end(1, -signal.SIGSEGV, stderr_lines=("oh",)),
                end(0, -signal.SIGKILL, ended_with=signal.SIGKILL),
                end(2, 1, ended_with=signal.SIGTERM),
                end(4, -signal.SIGTERM, ended_with=signal.SIGTERM),
                root=1,
            ),
            [
                "rank 1 failed: killed by SIGSEGV after 2.0 s",
                "HINT: native code crashed; python -X faulthandler shows where",
                "the last lines of its stderr:",
                "  oh",
                "before that, ended normally: rank 3 (the others can't go on alone)",
                "after that, failed as well: rank 2 (exit code 1)",
                "after that, ended by tfddlrun: rank 0, 4",
            ],
        ),
        (
            outcome(end(0, -signal.SIGKILL)),
            [
                "rank 0 failed: killed by SIGKILL after 2.0 s",
                "HINT: if nobody killed it, the machine may have run out of memory (dmesg tells); "
                "then a smaller batch or fewer workers help",
                "it wrote nothing to stderr",
            ],
        ),
        (
            outcome(end(0, -signal.SIGKILL), num_oom_kills=1),
            [
                "rank 0 failed: killed by SIGKILL after 2.0 s",
                "out of memory: the kernel killed a process of the machine for it meanwhile. "
                "HINT: a smaller batch, fewer workers, or data read from disk",
                "it wrote nothing to stderr",
            ],
        ),
        (
            outcome(end(0, -40)),
            ["rank 0 failed: killed by signal 40 after 2.0 s", "it wrote nothing to stderr"],
        ),
    ],
)
def test_reports(ended: Outcome, lines: list[str]) -> None:
    assert failure_report(ended).splitlines() == lines


def test_only_sigterm_has_the_status_of_what_is_saved() -> None:
    asked = Reading(abilities=Ability.SAVES | Ability.WAS_ASKED)
    exits = tuple(end(rank, 75, reading=asked) for rank in range(2))
    statuses = {
        number: Outcome(exits=exits, root=None, interrupted_by=number, num_oom_kills=0).status
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    assert statuses == {signal.SIGTERM: 75, signal.SIGINT: 130}
    assert outcome(*exits).status == 75
    late = outcome(exits[0], end(1, -signal.SIGKILL, ended_with=signal.SIGKILL), root=None)
    assert not late.has_saved
    # A script may end with 75 for reasons of its own.
    assert not outcome(end(0, 75)).has_saved


@pytest.mark.parametrize(
    ("ended", "held", "taken"),
    [
        (outcome(end(0, 1, stderr_lines=("Could not start gRPC server",))), False, True),
        (outcome(end(0, 1, stderr_lines=("ValueError: mine",))), True, False),
        (outcome(end(0, 0), root=None), True, False),
        (outcome(end(0, -9, stderr_lines=("Could not start gRPC server",))), True, False),
        # Long after the start, the port must really be taken still.
        (
            outcome(end(0, 1, stderr_lines=("Could not start gRPC server",), after_s=900.0)),
            False,
            False,
        ),
        (
            outcome(end(0, 1, stderr_lines=("Could not start gRPC server",), after_s=900.0)),
            True,
            True,
        ),
    ],
)
def test_only_a_taken_port_starts_again(ended: Outcome, held: bool, taken: bool) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1] if held else free_ports(1)[0]
        assert find_taken_port(ended, (port,)) == (port if taken else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "the number of workers (-np) is 0; it must be 1..1024"),
        ({"num_workers": 1025}, "the number of workers (-np) is 1025; it must be 1..1024"),
        ({"grace_s": -1.0}, "the grace period is -1.0; it must be 0 or more seconds"),
        ({"grace_s": float("nan")}, "the grace period is nan"),
        ({"stall_timeout_s": -1.0}, "--stall-timeout is -1.0; it must be 0 (never) or more sec"),
        ({"restarts": RestartOptions(min_workers=3)}, "--min-np is 3, more than the 2 workers of"),
        ({"command": ()}, "there is no command to run. HINT: tfddlrun -np 2 python train.py"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"num_workers": 2, "command": ("true",), **options}
    with pytest.raises(LaunchError, match=re.escape(message)):
        JobOptions(**whole)


def test_flags_are_pinned() -> None:
    actions = [a for a in _make_parser("x")._actions if a.help is not argparse.SUPPRESS]
    flags = {flag for action in actions for flag in action.option_strings}
    assert flags == {
        # As Horovod's users know them.
        "--check-build",
        "--elastic-timeout",
        "--min-num-proc",
        "--no-stall-check",
        "--reset-limit",
        "--stall-check",
        "--stall-check-shutdown-time-seconds",
        "--stall-check-warning-time-seconds",
        "--timeline-filename",
        "-cb",
        "-hostfile",
        # Ours, and those that both have.
        "--bind",
        "--check",
        "--dry-run",
        "--grace-period",
        "--help",
        "--hostfile",
        "--hosts",
        "--network-interface",
        "--network-interfaces",
        "--num-proc",
        "--output-filename",
        "--horovod",
        "--max-restarts",
        "--min-np",
        "--remote-python",
        "--ssh-command",
        "--ssh-identity-file",
        "--ssh-port",
        "--stall-timeout",
        "--start-timeout",
        "--trusted-network",
        "--verbose",
        "--version",
        "-H",
        "-h",
        "-i",
        "-np",
        "-p",
        "-v",
        "-x",
    }


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (("true",), 2, "how many workers? HINT: -np 2, or -H hostA:2,hostB:2"),
        (("-np", "2"), 2, "there is no command to run"),
        (("-np", "0", "true"), 2, "the number of workers (-np) is 0; it must be 1..1024"),
        (("-np", "x", "true"), 2, "invalid int value: 'x'"),
        (("-np", "2", "--wrong", "true"), 2, "--wrong"),
        (("-np", "2", "--max-restarts", "-1", "true"), 2, "--max-restarts is -1; it must be 0 or"),
        (("-np", "2", "--min-np", "0", "true"), 2, "--min-np is 0; it must be at least 1"),
        (("-np", "2", "./no such"), 127, "tfddlrun: can't start './no such': No such file or dir"),
        (("-np", "2", "/"), 127, "can't start '/': Permission denied. HINT: it must be a program"),
        (
            ("-np", "2", "--output-filename", "/dev/null/x", "true"),
            127,
            "can't write logs to /dev/null/x/rank.0: Not a directory. HINT: --output-filename",
        ),
    ],
)
def test_mistakes_are_said(
    line: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    done = launch(*line, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    done = launch("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "tfddlrun -np 2 python train.py --lr=0.1" in done.stdout
    done = launch("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"tfddlrun {tfddl.__version__}\n")


def test_starts_quickly_and_loads_no_tensorflow(tmp_path: Path) -> None:
    def seconds() -> float:
        begin = time.monotonic()
        assert launch("-np", "2", "true", cwd=tmp_path).returncode == 0
        return time.monotonic() - begin

    wait_until(lambda: seconds() <= 0.5)  # others may be using the machine
    script = "import sys, tfddl.launcher.main; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=TIMEOUT_S)


def test_a_job_that_ends_well(tmp_path: Path) -> None:
    script = """
print("hello", sys.argv[1:])
print("warn", file=sys.stderr)
assert sys.stdin.read() == ""
assert os.getsid(0) == os.getpid()
say(f"rank.{rank}")
"""
    options = ("-np", "3", "--verbose", "--output-filename", "my logs", "--")
    done = launch(*options, *worker(script), "--", "--lr=0.1", "-np", "a b", cwd=tmp_path)
    assert done.returncode == 0
    assert len(pids(tmp_path, "rank.0", "rank.1", "rank.2")) == 3
    arguments = "['--', '--lr=0.1', '-np', 'a b']"
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] hello {arguments}" for rank in range(3)]
    first, *rest = done.stderr.splitlines()
    assert re.fullmatch(r"tfddlrun: 3 workers on ports \d+, \d+, \d+", first)
    assert sorted(rest) == [f"[{rank}] warn" for rank in range(3)]
    for rank in range(3):
        folder = tmp_path / "my logs" / f"rank.{rank}"
        assert (folder / "stdout").read_text() == f"hello {arguments}\n"
        assert (folder / "stderr").read_text() == "warn\n"
        assert folder.stat().st_mode & 0o077 == 0


def test_the_first_failure_is_the_one_reported(tmp_path: Path) -> None:
    script = """
if rank == 0:
    wait_for("rank 1 is ready"); wait_for("rank 2 is ready")
    print("my own mistake", file=sys.stderr)
    sys.exit(3)
if rank == 1:  # what TensorFlow's workers do when a peer is lost
    def fail(*_):
        print("UnavailableError", file=sys.stderr)
        sys.exit(1)
    signal.signal(signal.SIGTERM, fail)
say(f"rank {rank} is ready")
time.sleep(60)
"""
    begin = time.monotonic()
    done = launch("-np", "3", "--grace-period", "15", *worker(script), cwd=tmp_path)
    assert time.monotonic() - begin < 10.0  # the grace is for those that don't end
    assert done.returncode == 3
    report = [line for line in done.stderr.splitlines() if line.startswith("tfddlrun: ")]
    assert re.fullmatch(r"tfddlrun: rank 0 failed: exit code 3 after \d+\.\d s", report[0])
    assert report[1:] == [
        "tfddlrun: the last lines of its stderr:",
        "tfddlrun:   my own mistake",
        "tfddlrun: after that, failed as well: rank 1 (exit code 1)",
        "tfddlrun: after that, ended by tfddlrun: rank 2",
    ]
    assert not in_sessions(pids(tmp_path, "rank 1 is ready", "rank 2 is ready"))


def test_a_signal_is_named_and_nothing_outlives_the_job(tmp_path: Path) -> None:
    script = """
if rank == 1:
    for name in ("stubborn is ready", "grandchild is ready", "daemon is ready"):
        wait_for(name)
    os.kill(os.getpid(), signal.SIGSEGV)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            say("daemon is ready")
            time.sleep(60)
        os._exit(0)
    say("grandchild is ready")
    time.sleep(60)
say("stubborn is ready")
time.sleep(60)
"""
    done = launch("-np", "2", "--grace-period", "0.5", *worker(script), cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGSEGV
    assert "tfddlrun: rank 1 failed: killed by SIGSEGV after" in done.stderr
    assert "tfddlrun: after that, ended by tfddlrun: rank 0\n" in done.stderr
    left = pids(tmp_path, "stubborn is ready", "grandchild is ready", "daemon is ready")
    assert len(left) == 3
    assert not [pid for pid in left if is_running(pid)]


def test_what_a_worker_started_may_finish_writing(tmp_path: Path) -> None:
    script = """
if os.fork() == 0:
    time.sleep(0.3)
    print("the last word")
    sys.exit()
print("bye")
"""
    done = launch("-np", "1", *worker(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[0] bye\n[0] the last word\n"


WAIT = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a process of a TensorFlow strategy
say(f"rank {rank} is ready")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_everything(number: signal.Signals, tmp_path: Path) -> None:
    with launched("-np", "2", "--grace-period", "15", *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        begin = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - begin < 8.0
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"tfddlrun: ended by {number.name}, and all workers with it\n"
    assert not in_sessions(left)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    script = """
from tfddl.progress import Ability, Board
board = Board.given(os.environ)
board.sign()
board.set(Ability.SAVES)
signal.signal(signal.SIGTERM, lambda *_: say(f"rank {rank} was asked"))
say(f"rank {rank} is ready")
while True:
    time.sleep(60)
"""
    with launched("-np", "2", "--grace-period", "60", *worker(script), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        process.send_signal(signal.SIGTERM)
        pids(tmp_path, "rank 0 was asked", "rank 1 was asked")
        assert process.poll() is None  # they have a minute to save
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM, and all workers with it" in err
    assert "HINT: --grace-period" in err
    assert not in_sessions(left)


def test_a_killed_launcher_leaves_no_worker(tmp_path: Path) -> None:
    with launched("-np", "2", *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: not in_sessions(left))


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    with launched_on_terminal("-np", "2", *worker(WAIT), cwd=tmp_path) as (process, terminal):
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        os.write(terminal, b"\x03")
        shown = read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 130
    assert "tfddlrun: ended by SIGINT, and all workers with it" in shown
    assert not in_sessions(left)


def test_the_progress_bar_of_rank_0_stays_whole_on_a_terminal(tmp_path: Path) -> None:
    script = """
if rank == 0:
    print("Epoch 1/1")
    width = 0
    for step in range(1, 31):
        bar = f"\\x1b[1m{step}/30\\x1b[0m \\x1b[32m{'━' * step}\\x1b[0m - loss: {1 / step:.4f}"
        shown = len(bar) - 17
        sys.stdout.write("\\b" * width + "\\r" + bar + " " * max(0, width - shown))
        width = shown
        time.sleep(0.02)
    sys.stdout.write("\\n")
    print("done")
else:
    for step in range(1, 31):
        print(f"{rank} says {step} " + "x" * 40)
        print(f"{rank} warns {step}", file=sys.stderr)
        time.sleep(0.02)
"""
    with launched_on_terminal("-np", "3", *worker(script), cwd=tmp_path) as (process, terminal):
        written = read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 0
    # Nothing is half overwritten: every line is a whole one, and the bar is there once.
    expected = ["[0] Epoch 1/1", f"[0] 30/30 {'━' * 30} - loss: 0.0333", "[0] done", ""]
    for rank in (1, 2):
        for step in range(1, 31):
            expected.append(f"[{rank}] {rank} says {step} " + "x" * 40)
            expected.append(f"[{rank}] {rank} warns {step}")
    assert sorted(screen(written)) == sorted(expected)
    # And it moved.
    assert len(set(re.findall(r"\[0\]\x1b\[0m \x1b\[1m(\d+)/30", written))) > 10


def test_a_bar_wider_than_the_terminal_is_cut_until_it_is_finished(tmp_path: Path) -> None:
    script = """
for step in range(3):
    sys.stdout.write(f"\\r{step} " + "y" * 50)
    time.sleep(0.05)
print()
"""
    with launched_on_terminal("-np", "1", *worker(script), columns=30, cwd=tmp_path) as (
        process,
        terminal,
    ):
        written = read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 0
    assert screen(written) == ["[0] 2 " + "y" * 50, ""]
    assert "[0]\x1b[0m 1 " + "y" * 23 + "\r" in written


def test_a_bar_is_readable_without_a_terminal(tmp_path: Path) -> None:
    done = launch("-np", "1", *worker(f"sys.stdout.write({KERAS_BAR!r})"), cwd=tmp_path)
    assert done.stdout == "[0] Epoch 1/2\n[0] 3/3 ━━━━━━ 0s 50ms/step\n[0] done\n"


def test_what_the_log_level_should_hide_is_hidden(tmp_path: Path) -> None:
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795386800.169345    5940 port.cc:153] oneDNN custom operations are on.",
        "E0000 00:00:1795386793.026942    5827 cuda_platform.cc:52] failed call to cuInit",
        "WARNING: mine",
    ]
    script = worker(f"print(*{lines!r}, sep='\\n', file=sys.stderr)")
    done = launch("-np", "1", "--output-filename", "logs", *script, cwd=tmp_path)
    assert done.stderr.splitlines() == [f"[0] {line}" for line in lines[2:]]
    assert (tmp_path / "logs/rank.0/stderr").read_text().splitlines() == lines
    script = ["env", "TF_CPP_MIN_LOG_LEVEL=0", *LAUNCHER, "-np", "1", *script]
    done = launch("-np", "1", *script, cwd=tmp_path)
    assert done.stderr.splitlines() == [f"[0] [0] {line}" for line in lines]


def test_lines_are_never_torn(tmp_path: Path) -> None:
    script = """
for n in range(200):
    for stream in (sys.stdout, sys.stderr):
        line = f"{n} " + chr(97 + rank) * 3000
        for start in range(0, len(line), 999):  # several writes per line
            stream.write(line[start : start + 999])
        stream.write("\\n")
"""
    done = launch("-np", "4", *worker(script), cwd=tmp_path)
    assert done.returncode == 0
    expected = [f"[{rank}] {n} " + chr(97 + rank) * 3000 for rank in range(4) for n in range(200)]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert sorted(done.stderr.splitlines()) == sorted(expected)


def test_a_port_taken_meanwhile_starts_again(tmp_path: Path) -> None:
    script = """
import socket
with open(f"ports.{rank}", "a") as file:
    file.write(f"{port}\\n")
if not Path("stranger came").exists():
    if rank == 0:  # the stranger who takes the port of rank 1
        stranger = socket.socket()
        stranger.bind(("127.0.0.1", int(task["cluster"]["worker"][1].rpartition(":")[2])))
        stranger.listen()
        say("stranger came")
        time.sleep(60)
    wait_for("stranger came")
try:
    server = socket.socket()
    server.bind(("", port))
except OSError:
    sys.exit("UnknownError: Could not start gRPC server")
print("trained")
"""
    done = launch("-np", "2", *worker(script), cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] trained", "[1] trained"]
    first, second = (tmp_path / "ports.1").read_text().split()
    assert first != second
    assert done.stderr.splitlines() == [
        "[1] UnknownError: Could not start gRPC server",
        f"tfddlrun: port {first} was taken by another process meanwhile; starting again on other "
        "ports (1 of 3)",
    ]


def test_it_does_not_start_again_for_ever(tmp_path: Path) -> None:
    script = """
with open("starts", "a") as file:
    file.write("x")
sys.exit("Could not start gRPC server")
"""
    done = launch("-np", "1", *worker(script), cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "starts").read_text() == "xxxx"
    assert done.stderr.count("starting again on other ports") == 3
    assert done.stderr.endswith("tfddlrun:   Could not start gRPC server\n")


def test_a_reader_that_leaves_ends_the_job(tmp_path: Path) -> None:
    script = """
say(f"rank {rank} is ready")
while True:
    print("more")
    time.sleep(0.01)
"""
    with launched("-np", "2", *worker(script), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert not in_sessions(left)


def test_a_reader_that_sleeps_does_not_stop_a_signal(tmp_path: Path) -> None:
    script = """
say(f"rank {rank} is ready")
while True:
    print("x" * 1000)
"""
    with launched("-np", "2", *worker(script), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        time.sleep(0.5)  # by now the pipe is full, and nobody reads it
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGTERM
    assert not in_sessions(left)
