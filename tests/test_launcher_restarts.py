"""Restarts and preemption, with real processes: small ones, without TensorFlow."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import HERE, stand_in
from tests.launching import PAGE, TIMEOUT_S, launch, launched, pids, two_workers, worker
from tests.processes import in_sessions, parent_of, wait_until
from tfddl._src.launcher.recovery import Recovery
from tfddl._src.launcher.report import Outcome, WorkerExit
from tfddl._src.launcher.restart_policy import RestartOptions


@pytest.mark.parametrize("num_restarts", [0, 1, 3])
def test_it_is_known_before_whether_a_failure_ends_the_job(num_restarts: int) -> None:
    recovery = Recovery(RestartOptions(max_restarts=num_restarts), hosts={"a": 1})
    end = WorkerExit(0, returncode=1, after_s=1.0, stderr_lines=(), ended_with=None, host="a")
    outcome = Outcome(exits=(end,), root=end, interrupted_by=None, num_oom_kills=0)
    for _ in range(num_restarts):
        assert recovery.starts_again
        assert recovery.start_again(outcome, now_s=0.0)
    assert not recovery.starts_again
    assert not recovery.start_again(outcome, now_s=0.0)


def test_a_failed_job_starts_again_on_other_ports(tmp_path: Path) -> None:
    script = (
        PAGE
        + """
from tfddl._src import commits
with open(f"port.{start}.{rank}", "w") as file:
    file.write(str(port))
print(f"start {start}")
store = commits.find_store(os.environ)
assert (store is None) == (rank > 0)
if store is not None:
    assert store.newest == start - 1
    store.write(b"x")
say(f"rank {rank} is ready in {start}")
wait_for(f"rank {1 - rank} is ready in {start}")
if start < 2:
    page.count_step(epoch=0, step=4 + start)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""
    )
    options = ("-np", "2", "--max-restarts", "2", "--output-filename", "logs")
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = [line for line in done.stderr.splitlines() if line.startswith("tfddlrun: ")]
    assert [line for line in report if "restart" in line or "progress" in line] == [
        "tfddlrun: its progress: step 4 of epoch 1",
        "tfddlrun: starting again on other ports (restart 1 of 2)",
        "tfddlrun: its progress: step 5 of epoch 1",
        "tfddlrun: starting again on other ports (restart 2 of 2)",
    ]
    assert sum("rank 1 failed: killed by SIGKILL" in line for line in report) == 2
    ports = [path.read_text() for path in tmp_path.glob("port.*")]
    assert len(set(ports)) == len(ports) == 6
    assert (tmp_path / "logs/rank.1/stdout").read_text() == "start 0\nstart 1\nstart 2\n"


def test_the_last_failure_is_the_status(tmp_path: Path) -> None:
    script = 'sys.exit(3 + int(os.environ["TFDDL_RESTARTS"]))'
    done = launch("-np", "1", "--max-restarts", "2", *worker(script), cwd=tmp_path)
    assert done.returncode == 5
    assert done.stderr.count("rank 0 failed: exit code") == 3
    assert "starting again on other ports, in 1 s (restart 1 of 2)" in done.stderr
    assert "starting again on other ports, in 2 s (restart 2 of 2)" in done.stderr


# A tfddlrun that doesn't kill soon who goes on when another has failed.
PATIENT = """
import os, sys
from tfddl._src.launcher import main, supervisor
supervisor._SHORT_GRACE_S = 35.0
sys.exit(main.main(sys.argv[1:], environment=os.environ))
"""


@pytest.mark.parametrize("when", ["while it waits", "while it ends"])
def test_a_signal_between_two_starts_ends_the_job(when: str, tmp_path: Path) -> None:
    script = """
if rank:
    wait_for("rank 0 is ready")
    if os.environ["TFDDL_RESTARTS"] == "0":
        sys.exit(3)
    time.sleep(60)
signal.signal(signal.SIGTERM, lambda *_: say("asked to end"))
say("rank 0 is ready")
wait_for("may end")
"""
    line = ["-np", "2", "--max-restarts", "9", *worker(script)]
    with launched(*line, cwd=tmp_path, command=[sys.executable, "-c", PATIENT]) as process:
        (first,) = pids(tmp_path, "rank 0 is ready")
        inner = parent_of(first)
        pids(tmp_path, "asked to end")
        if when == "while it waits":
            (tmp_path / "may end").touch()
            assert process.stderr is not None
            while "starting again" not in process.stderr.readline():
                pass
        # To this one, which so gets it before it can learn that rank 0 has ended.
        os.kill(inner, signal.SIGINT)
        (tmp_path / "may end").touch()
        _, err = process.communicate(timeout=TIMEOUT_S)
    ended = "ended by SIGINT, and all workers with it" in err
    assert ended == (when == "while it waits")
    assert process.returncode == (130 if ended else 3)
    assert "starting again" not in err


def test_fewer_go_on_where_the_job_fails_again_and_again(tmp_path: Path) -> None:
    script = """
size = len(task["cluster"]["worker"])
print(f"{rank} of {size}")
if size > 2 and rank == 1:
    sys.exit(7)
if size > 2:
    time.sleep(60)
"""
    options = ("-np", "3", "--max-restarts", "5", "--min-np", "2")
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0
    assert "(restart 2 of 5, with 2 workers instead of 3)" in done.stderr
    assert {"[0] 0 of 2", "[1] 1 of 2"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize("min_np", ["1", "2"])
def test_a_host_that_is_gone_is_left_out_if_that_is_allowed(min_np: str, tmp_path: Path) -> None:
    script = """
size = len(task["cluster"]["worker"])
print(f"{rank} of {size}")
if size == 1:
    sys.exit()
if rank == 1:
    say("down")
    os.kill(os.getppid(), signal.SIGKILL)  # the agent
time.sleep(60)
"""
    ssh = tmp_path / "ssh that fails"
    ssh.write_text(f"""#!/bin/sh
case "$*" in *" {HERE[1]} "*)
  if [ -e "{tmp_path}/down" ]; then echo "ssh: No route to host" >&2; exit 255; fi ;;
esac
exec {stand_in(tmp_path / "ssh")} "$@"
""")
    ssh.chmod(0o755)
    options = ("-H", ",".join(HERE), "--ssh-command", f"'{ssh}'", "--max-restarts", "2")
    done = launch(*options, "--min-np", min_np, *worker(script), cwd=tmp_path)
    lost = f"rank 1 on {HERE[1]} failed: lost with its host after"
    unreachable = f"rank 1 can't start: can't reach {HERE[1]} by ssh: ssh: No route to host"
    assert done.stderr.count(lost) == (2 if min_np == "1" else 3)
    assert done.stderr.count(unreachable) == (1 if min_np == "1" else 2)
    if min_np == "1":
        assert done.returncode == 0, done.stderr
        assert "(restart 2 of 2, with 1 workers instead of 2)" in done.stderr
        assert "[0] 0 of 1" in done.stdout.splitlines()
    else:
        assert done.returncode == 255


def test_commits_outlive_hosts(tmp_path: Path) -> None:
    script = (
        PAGE
        + """
from tfddl._src import commits
page.count_step(epoch=start, step=1)
store = commits.find_store(os.environ)
found = store.read() if store.newest >= 0 else b""
Path(f"found.{start}.{rank}").write_text(f"{store.newest} {found[5_000_000:].decode()}")
def commit(text):
    store.write(b"x" * 5_000_000 + text.encode())  # more than goes in one piece
    say(text)
if start == 0:
    commit(f"rank {rank} first")
    if rank == 1:
        commit("rank 1 second")
        wait_for("rank 0 first")
        sys.exit(3)
elif start == 1:
    commit(f"rank {rank} third")
    if rank == 1:
        wait_for("rank 0 third")
        os.kill(os.getppid(), signal.SIGKILL)  # its agent
else:
    sys.exit()
time.sleep(60)
"""
    )
    options = (*two_workers(tmp_path, remote=True), "--max-restarts", "2")
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"rank 1 on {HERE[1]} failed: lost with its host" in done.stderr
    found = [[(tmp_path / f"found.{s}.{r}").read_text() for r in range(2)] for s in range(3)]
    assert found == [
        ["-1 "] * 2,
        ["1 rank 1 second"] * 2,  # On all hosts the newest, which one of them had.
        ["2 rank 0 third"] * 2,
    ]


@pytest.mark.parametrize("stalls", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_host_that_was_lost_before_is_the_cause(stalls: bool, tmp_path: Path) -> None:
    """Behind a cable that is cut, and silent; meanwhile the worker on this side of it fails."""
    script = f"""{PAGE}
with page.in_stage(Stage.TRAINING):
    page.count_step(epoch=0, step=1)
    page.record_operations((2, 1))
    if rank == 1:
        print("ready")
        wait_for("its agent has told of the step")
        os.kill(os.getppid(), signal.SIGSTOP)
        say("rank 1 is ready")
        time.sleep(60)
    wait_for("rank 1 is ready")
    time.sleep({60 if stalls else 0})
    sys.exit("UnavailableError")
"""
    options = (*two_workers(tmp_path, remote=True), "--stall-timeout", "3" if stalls else "0")
    with launched(*options, *worker(script), cwd=tmp_path) as process:
        assert process.stdout is not None
        # An agent tells how far a worker has come before it passes on what that has written.
        assert process.stdout.readline() == "[1] ready\n"
        (tmp_path / "its agent has told of the step").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 255
    report = [line for line in err.splitlines() if line.startswith("tfddlrun: ")]
    assert report[0].startswith(f"tfddlrun: rank 1 on {HERE[1]} failed: lost with its host after")
    assert report[1] == "tfddlrun: its progress: step 1 of epoch 1, training"
    assert re.fullmatch(rf"tfddlrun: nothing was heard from {HERE[1]} for \d+ s", report[2])
    after = "ended by tfddlrun: rank 0" if stalls else "failed as well: rank 0 (exit code 1)"
    assert report[-1] == f"tfddlrun: after that, {after}"
    wait_until(lambda: not in_sessions(pids(tmp_path, "rank 1 is ready")))


def _saver(then: str) -> str:
    """A worker that saves when one of the workers is asked to, as a training does."""
    return f"""{PAGE}
def ask(*_):
    Path("somebody was asked").touch()
signal.signal(signal.SIGTERM, ask)
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
page.count_step(epoch=0, step=9)
say(f"rank {{rank}} is ready")
print("ready")
wait_for("somebody was asked")
page.set_flags(WorkerFlags.PREEMPTED)
{then}
"""


@pytest.mark.parametrize(
    ("asked", "remote"),
    [("tfddlrun", False), ("tfddlrun", True), ("rank 1", False), ("the agent of rank 1", True)],
)
def test_sigterm_lets_workers_save(asked: str, remote: bool, tmp_path: Path) -> None:
    script = _saver("time.sleep(1.5 * rank); sys.exit(75)")
    # The shell stays, and would die of the signal.
    shell = ["sh", "-c", '"$0" "$@"; exit $?']
    line = [*two_workers(tmp_path, remote=remote), "--max-restarts", "3", *shell, *worker(script)]
    with launched(*line, cwd=tmp_path) as process:
        workers = {os.getsid(pid) for pid in pids(tmp_path, "rank 0 is ready", "rank 1 is ready")}
        assert process.stdout is not None
        # An agent tells how far a worker has come before it passes on what that has written.
        shown = sorted(process.stdout.readline() for _ in range(2))
        assert shown == ["[0] ready\n", "[1] ready\n"]
        if asked == "tfddlrun":
            process.send_signal(signal.SIGTERM)
        else:
            pid = int((tmp_path / "rank 1 is ready").read_text())
            os.kill(pid if asked == "rank 1" else parent_of(os.getsid(pid)), signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, err
    assert err == (
        "tfddlrun: ended by SIGTERM, after the training was saved at step 9 of epoch 1; the same "
        "command resumes from there\n"
    )
    assert not in_sessions(workers)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("time.sleep(60)", "the workers did not save in time. HINT: --grace-period"),
        # One fails while it saves: nobody waits for the rest of the grace.
        ("if rank: sys.exit(3)\ntime.sleep(60)", "ended by SIGTERM"),
    ],
)
def test_sigterm_does_not_wait_for_ever(then: str, message: str, tmp_path: Path) -> None:
    grace_s = "0.5" if "rank" not in then else "60"
    line: list[Any] = ["-np", "2", "--grace-period", grace_s, *worker(_saver(then))]
    with launched(*line, cwd=tmp_path) as process:
        pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert message in err
