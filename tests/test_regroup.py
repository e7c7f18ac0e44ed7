"""Workers that keep their processes while others are lost, come or go: without TensorFlow."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hosts import HERE, stand_in
from tests.launching import PAGE, TIMEOUT_S, launched, worker
from tests.processes import is_running, wait_until
from tfddl._src.membership import MembershipFile, find_membership
from tfddl.errors import StalledError

# A worker that stays, as one in `hvd.elastic.run` does. New ones wait for the others, as in `init`.
STAYING = (
    PAGE
    + """
from tfddl._src import membership
file = membership.find_membership(os.environ)
place = (rank, len(task["cluster"]["worker"]))
stays = WorkerFlags.REGROUPS | WorkerFlags.SAVES_ON_REQUEST
def wait(what, until):
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, what
        time.sleep(0.01)
def begin():
    print(f"{place[0]} of {place[1]} by {os.getpid()}")
    Path(f"{place[0]} of {place[1]}").write_text(str(os.getpid()))
def regroup():
    global place
    page.set_flags(WorkerFlags.WAITS_FOR_MEMBERS)
    variables = file.wait(timeout_s=60).variables
    page.clear_flags(WorkerFlags.WAITS_FOR_MEMBERS)
    if variables is None:
        print("isn't needed")
        sys.exit(75)
    os.environ.update(variables)
    task = json.loads(variables["TF_CONFIG"])
    place = (task["task"]["index"], len(task["cluster"]["worker"]))
    Path(f"formed {variables['TFDDL_RESTARTS']}").touch()
    begin()
if start:
    page.set_flags(WorkerFlags.JOINS)
    wait("the others", Path(f"formed {start}").exists)
page.set_flags(stays)
begin()
def train(until, lost="lost"):
    def is_over():
        if page.save_is_requested:
            page.set_flags(WorkerFlags.PREEMPTED)
        if page.save_is_requested or Path(lost).exists() and place in seen:
            seen.discard(place)
            regroup()
        return until()
    wait("the end", is_over)
seen = set() if start else {place}
"""
)


def _pid(folder: Path, place: str) -> int:
    """Of the worker that has come to this place."""
    wait_until((folder / place).exists)
    wait_until(lambda: bool((folder / place).read_text()))
    return int((folder / place).read_text())


def _write_hosts(folder: Path, hosts: str) -> None:
    (folder / "new").write_text(hosts.replace(",", "\n"))
    (folder / "new").rename(folder / "hosts")


def _elastic(folder: Path, hosts: str) -> list[str]:
    _write_hosts(folder, hosts)
    return ["--host-discovery-script", "cat hosts", "--resize-interval", "0", "--min-np", "2"]


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_job_grows_and_shrinks(tmp_path: Path, remote: bool) -> None:
    """On one host, and on two of which one comes and loses a worker."""
    script = STAYING + "train(until=lambda: place[1] == 3)"
    hosts = ["localhost:2", "localhost:4", "localhost:3"]
    if remote:
        hosts = [text.format(*HERE) for text in ("{0}:2", "{0}:2,{1}:2", "{0}:2,{1}:1")]
    line = [*_elastic(tmp_path, hosts[0]), "--ssh-command", stand_in(tmp_path / "ssh")]
    logs = ("--output-filename", "logs")
    with launched(*line, *logs, *worker(script), cwd=tmp_path) as process:
        first = [_pid(tmp_path, f"{rank} of 2") for rank in range(2)]
        _write_hosts(tmp_path, hosts[1])
        then = [_pid(tmp_path, f"{rank} of 4") for rank in range(4)]
        _write_hosts(tmp_path, hosts[2])
        last = [_pid(tmp_path, f"{rank} of 3") for rank in range(3)]
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert then[:2] == first
    assert last == then[:3]
    assert "[3] isn't needed" in out.splitlines()
    assert f"[2] 2 of 3 by {last[2]}" in out.splitlines()
    saves = "waiting until the workers have saved, as the hosts have changed"
    again = "starting again on the hosts that there are now"
    assert [line for line in err.splitlines() if "saved (" not in line] == [
        f"tfddlrun: {line}"
        for line in (
            f"the hosts are now {hosts[1]}",
            "starting 2 workers beside those that train",
            saves,
            f"with 4 workers instead of 2: {hosts[1]}",
            "2 of 4 workers have kept their processes",
            f"the hosts are now {hosts[2]}",
            saves,
            f"with 3 workers instead of 4: {hosts[2]}",
            "3 of 3 workers have kept their processes",
        )
    ]
    assert err.count(again) == 2
    # A worker's log stays its own.
    assert "2 of 3" in (tmp_path / "logs/rank.2/stdout").read_text()


def _kill(folder: Path, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    (folder / "lost").touch()


@pytest.mark.parametrize("remote", [False, True])
def test_others_stay_where_one_is_killed(tmp_path: Path, remote: bool) -> None:
    script = STAYING + "train(until=Path('end').exists)"
    line = ["-np", "3"]
    if remote:
        hosts = f"{HERE[0]}:2,{HERE[1]}:1"
        line = ["-H", hosts, "--ssh-command", stand_in(tmp_path / "ssh")]
    with launched(*line, "--max-restarts", "1", *worker(script), cwd=tmp_path) as process:
        before = [_pid(tmp_path, f"{rank} of 3") for rank in range(3)]
        (tmp_path / "0 of 3").unlink()
        (tmp_path / "1 of 3").unlink()
        _kill(tmp_path, before[1])
        after = [_pid(tmp_path, f"{rank} of 3") for rank in (0, 1)]
        (tmp_path / "end").touch()
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert out.count(f"by {before[2]}\n") == 2
    assert "rank 1" in err
    assert "killed by SIGKILL" in err
    assert "(restart 1 of 1)" in err
    assert "tfddlrun: 2 of 3 workers have kept their processes" in err.splitlines()


def test_a_failure_after_the_last_restart_ends_the_job(tmp_path: Path) -> None:
    script = STAYING + "train(until=Path('end').exists)"
    line = ["-np", "2", "--max-restarts", "1", *worker(script)]
    with launched(*line, cwd=tmp_path) as process:
        first = [_pid(tmp_path, f"{rank} of 2") for rank in range(2)]
        (tmp_path / "1 of 2").unlink()
        _kill(tmp_path, first[1])
        again = _pid(tmp_path, "1 of 2")
        os.kill(again, signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert err.count("rank 1 failed: killed by SIGKILL") == 2
    assert not is_running(first[0])


def test_a_worker_that_can_not_stay_is_replaced(tmp_path: Path) -> None:
    script = STAYING + "if rank == 2 and not start: page.clear_flags(stays)\n"
    script += "Path(f'ready {rank} {start}').touch()\ntrain(until=Path('end').exists)"
    with launched("-np", "3", "--max-restarts", "1", *worker(script), cwd=tmp_path) as process:
        before = [_pid(tmp_path, f"{rank} of 3") for rank in range(3)]
        wait_until((tmp_path / "ready 2 0").exists)
        for rank in range(3):
            (tmp_path / f"{rank} of 3").unlink()
        _kill(tmp_path, before[1])
        after = [_pid(tmp_path, f"{rank} of 3") for rank in range(3)]
        (tmp_path / "end").touch()
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert after[0] == before[0]
    assert not set(after[1:]) & set(before)
    assert "tfddlrun: 1 of 3 workers have kept their processes" in err.splitlines()


def _launch_patched(
    line: Sequence[str], patch: str, *, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs `tfddlrun` with a shorter time in one of its modules."""
    program = f"""
import os, sys
from tfddl._src.launcher import main, regroup
{patch}
sys.exit(main.main({list(line)}, environment=os.environ))
"""
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_all_start_again_where_one_does_not_leave(tmp_path: Path) -> None:
    """Its step never ends: it would hold up the others for ever."""
    script = STAYING + (
        "there = lambda: all(Path(f'{r} of 3').exists() for r in range(3))\n"
        "if start == 0 and rank == 1: wait('all', there); sys.exit(3)\n"
        "if start == 0 and rank == 2: time.sleep(60)\n"
        "if start == 0: Path('lost').touch(); train(until=lambda: False)"
    )
    line = ["-np", "3", "--max-restarts", "1", *worker(script.replace("if start:", "if False:"))]
    done = _launch_patched(line, "regroup._LEAVE_S = 1.0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = "tfddlrun: all workers start again, instead of some: rank 2 doesn't leave the others"
    assert text in done.stderr.splitlines()
    assert "rank 1 failed: exit code 3" in done.stderr


def test_a_worker_that_leaves_the_others_without_a_reason_is_killed(tmp_path: Path) -> None:
    script = STAYING + (
        "if file is None: sys.exit(5)  # Another start doesn't follow.\n"
        "if rank == 1: Path('lost').touch(); train(until=lambda: False)\n"
        "train(until=lambda: False, lost='nothing')"
    )
    script = script.replace("set() if start else {place}", "{place}")
    line = ["-np", "2", "--max-restarts", "1", *worker(script.replace("if start:", "if False:"))]
    patch = "regroup._LEAVE_S = 0.5"
    done = _launch_patched(line, patch, cwd=tmp_path)
    assert done.returncode == 5
    assert "tfddlrun: rank 1 has left the others, none of which has ended" in done.stderr


def test_a_new_worker_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    script = "if int(os.environ['TFDDL_RESTARTS']): sys.exit(4)\n" + STAYING
    script += "train(until=Path('end').exists)"
    line = _elastic(tmp_path, "localhost:2")
    with launched(*line, *worker(script), cwd=tmp_path) as process:
        pids = [_pid(tmp_path, f"{rank} of 2") for rank in range(2)]
        _write_hosts(tmp_path, "localhost:3")
        assert process.stderr is not None
        shown = [process.stderr.readline() for _ in range(5)]
        assert all(map(is_running, pids))
        (tmp_path / "end").touch()
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    text = "".join(shown)
    assert "rank 2 on localhost failed: exit code 4" in text
    assert "tfddlrun: going on without new workers on localhost for 60 s\n" in text
    assert len(out.splitlines()) == 2


def test_the_file_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    told = MembershipFile.create()
    try:
        found = find_membership({"TFDDL_MEMBERSHIP_FD": str(told.fileno())})
        assert found is not None
        with pytest.raises(StalledError, match="tfddlrun hasn't said for 0.05 s which workers"):
            found.wait(timeout_s=0.05)
        told.write({"TF_CONFIG": "a"})
        told.write({"TF_CONFIG": "b"})
        assert found.wait(timeout_s=1).variables == {"TF_CONFIG": "b"}
        told.write(None)
        assert found.wait(timeout_s=1).variables is None
        assert find_membership({"TFDDL_MEMBERSHIP_FD": "x"}) is None
        assert find_membership({}) is None
    finally:
        told.close()
