"""How jobs end: failures and their reports, signals, ports that were taken."""

import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import stand_in
from tests.launching import (
    TIMEOUT_S,
    launch,
    launched,
    launched_on_terminal,
    pids,
    read_terminal,
    two_workers,
    worker,
)
from tests.processes import in_sessions, is_running, parent_of, stop, wait_until
from tfddl._src.cluster.ports import free_ports
from tfddl._src.heartbeat import WorkerFlags, WorkerProgress
from tfddl._src.launcher.job import find_taken_port
from tfddl._src.launcher.report import Outcome, WorkerExit, failure_report


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
                "out of memory: the kernel killed a process on the machine meanwhile. "
                "HINT: a smaller batch, fewer workers, or data read from disk",
                "it wrote nothing to stderr",
            ],
        ),
        (
            outcome(end(2, 1, reading=WorkerProgress(rounds=7, begun=9, ended=8))),
            [
                "rank 2 failed: exit code 1 after 2.0 s",
                "its progress: about step 7 of a loop by hand",
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
    asked = WorkerProgress(flags=WorkerFlags.SAVES_ON_SIGTERM | WorkerFlags.PREEMPTED)
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
    done = launch("-np", "3", "--grace-period", "45", *worker(script), cwd=tmp_path)
    assert time.monotonic() - begin < 40.0  # the grace is for those that don't end
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


WAIT = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a process of a TensorFlow strategy
signal.signal(signal.SIGINT, signal.SIG_DFL)
say(f"rank {rank} is ready")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_everything(number: signal.Signals, tmp_path: Path) -> None:
    with launched("-np", "2", "--grace-period", "45", *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        begin = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - begin < 40.0
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"tfddlrun: ended by {number.name}, and all workers with it\n"
    assert not in_sessions(left)


CATCHES = """
try:
    say(f"rank {rank} is ready")
    time.sleep(60)
except KeyboardInterrupt:
    if rank:
        sys.exit(1)  # It can't go on, and the other one is saving.
    say("rank 0 was interrupted")
    time.sleep(float(sys.argv[1]))
    say("rank 0 has saved")
"""


def test_ctrl_c_lets_scripts_save(tmp_path: Path) -> None:
    """For longer than those get whose peer has failed."""
    line = (*two_workers(tmp_path, remote=True), *worker(CATCHES), "2.5")
    with launched(*line, cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert (tmp_path / "rank 0 has saved").exists(), err
    assert process.returncode == 128 + signal.SIGINT
    assert err.splitlines() == [
        "tfddlrun: Ctrl-C was passed on to the workers, which have 30 s to end; another Ctrl-C "
        "kills them",
        "tfddlrun: ended by SIGINT, and all workers with it",
    ]
    assert not in_sessions(left)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    line = ("-np", "2", "--grace-period", "600", *worker(CATCHES), "600")
    with launched(*line, cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        process.send_signal(signal.SIGINT)
        pids(tmp_path, "rank 0 was interrupted")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert err.endswith("tfddlrun: ended by SIGINT, and all workers with it\n")
    assert not in_sessions(left)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    script = """
from tfddl._src.heartbeat import WorkerFlags, ProgressPage
page = ProgressPage.from_environment(os.environ)
page.record_pid()
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
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


# As `bash -c 'python train.py; …'`: a shell that stays, and alone is a child of ours. What it runs
# has a child of its own, and a daemon.
WRAPPED = ["sh", "-c", '"$0" "$@"; exit $?']
FAMILY = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        say(f"daemon {rank} is ready")
        time.sleep(60)
    say(f"child {rank} is ready")
    time.sleep(60)
say(f"rank {rank} is ready")
time.sleep(60)
"""
MEMBERS = [f"{who} {rank} is ready" for who in ("rank", "child", "daemon") for rank in range(2)]


@pytest.mark.parametrize(
    ("killed", "remote"),
    [
        ("tfddlrun", False),
        ("tfddlrun", True),
        ("tfddlrun, its process is stopped", False),
        ("its process", False),
        ("its process", True),
        ("its group", False),
        ("all of the name", False),
    ],
)
def test_a_killed_launcher_leaves_nothing(killed: str, remote: bool, tmp_path: Path) -> None:
    # The first host is this one, whose agent is a child process; the other one's is ssh's.
    hosts = ("-H", "localhost:1,127.0.0.2:1", "--ssh-command", stand_in(tmp_path / "ssh"))
    options = hosts if remote else ("-np", "2")
    line = [*options, *WRAPPED, *worker(FAMILY)]
    with launched(*line, cwd=tmp_path, process_group=0) as process:
        left = pids(tmp_path, *MEMBERS)
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if killed == "tfddlrun, its process is stopped":
            # Where pytest adopts it, of its session, its group isn't orphaned, and stays stopped.
            stop(int(inner))
            process.kill()
        elif killed == "tfddlrun":
            process.kill()
        elif killed == "its process":
            os.kill(int(inner), signal.SIGKILL)
        elif killed == "its group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in (process.pid, inner)}
            named = [int(pid) for pid, text in lines.items() if "tfddl.launcher" in text]
            assert named == [process.pid]
            assert Path(f"/proc/{inner}/comm").read_text() == "tfddl-workers\n"
            os.kill(process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_S)
    if killed == "its process":
        told = f"tfddlrun: its process {inner} was killed by SIGKILL, and all workers with it\n"
        assert told in err
        assert process.returncode == 128 + signal.SIGKILL
    else:
        assert "tfddlrun: ended by SIGKILL, and all workers with it" in err
        assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not any(map(is_running, left)))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_agent_leaves_nothing(stopped: bool, tmp_path: Path) -> None:
    options = ("-H", "127.0.0.2:1", "--ssh-command", stand_in(tmp_path / "ssh"))
    with launched(*options, *WRAPPED, *worker(FAMILY), cwd=tmp_path) as process:
        left = pids(tmp_path, *(name for name in MEMBERS if " 0 " in name))
        (session,) = pids(tmp_path, "rank 0 is ready")
        inner = parent_of(os.getsid(session))
        if stopped:
            stop(inner)
        os.kill(parent_of(inner), signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 255
    assert "rank 0 on 127.0.0.2 failed: lost with its host after" in err
    # Not only silent: what is stopped goes on, to kill what it has started.
    assert "the connection to 127.0.0.2 has ended" in err
    wait_until(lambda: not any(map(is_running, left)))


@pytest.mark.parametrize("is_twice", [False, True])
def test_a_signal_to_all_processes_counts_once(is_twice: bool, tmp_path: Path) -> None:
    """As Slurm and systemd send it: a worker that can save gets the time for it all the same."""
    script = """
from tfddl._src.heartbeat import WorkerFlags, ProgressPage
page = ProgressPage.from_environment(os.environ)
page.record_pid()
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
def save(*_):
    say("asked")
    if Path("never").exists():
        time.sleep(60)
    wait_for("all were asked")
    page.set_flags(WorkerFlags.PREEMPTED)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
say("ready")
time.sleep(60)
"""
    if is_twice:
        (tmp_path / "never").touch()
    with launched("-np", "1", "--grace-period", "60", *worker(script), cwd=tmp_path) as process:
        (pid,) = pids(tmp_path, "ready")
        both = [process.pid, parent_of(pid)]
        for number in both:
            os.kill(number, signal.SIGTERM)
        pids(tmp_path, "asked")
        time.sleep(0.2)  # for the outer one to pass its own on, which must do nothing
        assert process.poll() is None
        if is_twice:
            for number in both:
                os.kill(number, signal.SIGTERM)
        (tmp_path / "all were asked").touch()
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == (128 + signal.SIGTERM if is_twice else 75)


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    with launched_on_terminal("-np", "2", *worker(WAIT), cwd=tmp_path) as (process, terminal):
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        os.write(terminal, b"\x03")
        shown = read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 130
    assert "tfddlrun: ended by SIGINT, and all workers with it" in shown
    assert not in_sessions(left)


def test_ctrl_z_gives_the_prompt_back_and_the_job_goes_on(tmp_path: Path) -> None:
    script = """
say("ready")
wait_for("it was stopped")
print("trained")
"""
    with launched_on_terminal("-np", "1", *worker(script), cwd=tmp_path) as (process, terminal):
        (pid,) = pids(tmp_path, "ready")
        os.write(terminal, b"\x1a")
        # The group of a session's leader can't be stopped by its terminal, as a shell's jobs can.
        stop(process.pid)
        (tmp_path / "it was stopped").touch()
        wait_until(lambda: not is_running(pid))
        process.send_signal(signal.SIGCONT)
        assert "trained" in read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 0


def test_of_two_found_dead_at_once_the_one_that_was_killed_is_the_cause(tmp_path: Path) -> None:
    script = """
say(f"rank {rank} is ready")
wait_for("nobody looks")
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
wait_for("rank 2 is dead")
sys.exit(1)
"""
    with launched("-np", "3", *worker(script), cwd=tmp_path) as process:
        workers = pids(tmp_path, *(f"rank {rank} is ready" for rank in range(3)))
        inner = parent_of(min(workers))
        stop(inner)
        (tmp_path / "nobody looks").touch()
        killed = int((tmp_path / "rank 2 is ready").read_text())
        wait_until(lambda: not is_running(killed))
        (tmp_path / "rank 2 is dead").touch()
        wait_until(lambda: not any(map(is_running, workers)))
        os.kill(inner, signal.SIGCONT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert "tfddlrun: rank 2 failed: killed by SIGKILL after" in err
    assert "tfddlrun: after that, failed as well: rank 0 (exit code 1), 1 (exit code 1)\n" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_only_sigterm_waits_for_a_save(number: signal.Signals, tmp_path: Path) -> None:
    """Who is asked to save gets a minute; who presses Ctrl-C, or hangs up, doesn't wait for it."""
    script = """
from tfddl._src.heartbeat import WorkerFlags, ProgressPage
page = ProgressPage.from_environment(os.environ)
page.record_pid()
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: None)
say("ready")
while True:
    time.sleep(60)
"""
    with launched("-np", "1", "--grace-period", "60", *worker(script), cwd=tmp_path) as process:
        left = pids(tmp_path, "ready")
        process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert f"tfddlrun: ended by {number.name}, and all workers with it\n" in err
    assert "did not save in time" not in err
    assert not in_sessions(left)


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
