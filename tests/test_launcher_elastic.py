"""Elastic jobs, with real processes: small ones, without TensorFlow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts import HERE, stand_in
from tests.launching import PAGE, TIMEOUT_S, launch, launched, pids, worker
from tests.processes import is_running, wait_until
from tfddl._src.launcher.main import main

# A worker that saves whenever it is asked to, as a training does; the first keeps commits.
TRAINING = (
    PAGE
    + """
from tfddl._src import commits
size = len(task["cluster"]["worker"])
assert os.environ["TFDDL_ELASTIC"] == "1"
store = commits.find_store(os.environ)
if store is not None:
    assert store.newest == start - 1
    store.write(b"x")
print(f"start {start}: {rank} of {size}")
page.set_flags(WorkerFlags.SAVES_ON_REQUEST)
page.count_step(epoch=0, step=start + 1)
say(f"{rank} of {size} is ready in {start}")
def train(until=lambda: False):
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        if page.save_is_requested or Path("save").exists():
            page.set_flags(WorkerFlags.PREEMPTED)
            sys.exit(75)
        time.sleep(0.01)
"""
)


def _discovery(folder: Path, hosts: str) -> list[str]:
    """Flags of a job that finds its hosts in a file."""
    _write_hosts(folder, hosts)
    return ["--host-discovery-script", "cat hosts", "--resize-interval", "0"]


def _write_hosts(folder: Path, hosts: str) -> None:
    (folder / "new").write_text(hosts.replace(",", "\n"))
    (folder / "new").rename(folder / "hosts")


def _wait_for_start(folder: Path, start: int, size: int) -> None:
    pids(folder, *(f"{rank} of {size} is ready in {start}" for rank in range(size)))


def test_a_job_grows_and_shrinks(tmp_path: Path) -> None:
    script = TRAINING + "train(until=lambda: size == 3)"
    line = [*_discovery(tmp_path, "localhost:2"), "--min-np", "2", "--max-np", "4"]
    with launched(*line, "--output-filename", "logs", *worker(script), cwd=tmp_path) as process:
        _wait_for_start(tmp_path, 0, 2)
        _write_hosts(tmp_path, "localhost:9")
        _wait_for_start(tmp_path, 1, 4)
        _write_hosts(tmp_path, "localhost:3")
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == sorted(
        f"[{rank}] start {start}: {rank} of {size}"
        for start, size in enumerate((2, 4, 3))
        for rank in range(size)
    )
    again = "starting again on the hosts that there are now"
    saves = "waiting until the workers have saved, as the hosts have changed"
    assert err.splitlines() == [
        f"tfddlrun: {line}"
        for line in (
            "the hosts are now localhost:9",
            saves,
            f"saved (step 1 of epoch 1); {again}",
            "with 4 workers instead of 2: localhost:4",
            "the hosts are now localhost:3",
            saves,
            f"saved (step 2 of epoch 1); {again}",
            "with 3 workers instead of 4: localhost:3",
        )
    ]
    texts = [f"start {start}: 0 of {size}\n" for start, size in enumerate((2, 4, 3))]
    assert (tmp_path / "logs/rank.0/stdout").read_text() == "".join(texts)


def test_a_host_that_is_preempted_is_left(tmp_path: Path) -> None:
    """SIGTERM comes to one worker; as in a training, all save for it, and the job goes on."""
    script = f"""{TRAINING}
if size == 1:
    sys.exit()
def preempt(*_):
    page.set_flags(WorkerFlags.GOT_SIGTERM)
    Path("save").touch()
signal.signal(signal.SIGTERM, preempt)
say(f"{{rank}} listens")
train()
"""
    line = [*_discovery(tmp_path, ",".join(HERE)), "--min-np", "1", "-np", "2"]
    ssh = ("--ssh-command", stand_in(tmp_path / "ssh"))
    with launched(*line, *ssh, *worker(script), cwd=tmp_path) as process:
        _wait_for_start(tmp_path, 0, 2)
        pids(tmp_path, "1 listens")
        os.kill(int((tmp_path / "0 listens").read_text()), signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert "[0] start 1: 0 of 1" in out.splitlines()
    # With the commit of the host that was left: the worker there has looked for it.
    assert err.splitlines() == [
        "tfddlrun: saved (step 1 of epoch 1), by SIGTERM to a worker; going on without "
        f"{HERE[0]} for 60 s",
        f"tfddlrun: with 1 workers instead of 2: {HERE[1]}:1",
        f"tfddlrun: rank 0, which writes checkpoints, moves from {HERE[0]} to {HERE[1]}. HINT: a "
        "training goes on there only from a directory that both share, or from a store (gs://)",
    ]


def test_a_host_that_can_not_be_reached_is_left_out(tmp_path: Path) -> None:
    line = [*_discovery(tmp_path, ",".join(HERE)), "-np", "1"]
    ssh = ("--ssh-command", stand_in(tmp_path / "ssh", down=HERE[0]))
    done = launch(*line, *ssh, *worker(TRAINING), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0] start 0: 0 of 1"]
    assert f"tfddlrun: going on without {HERE[0]} for 60 s" in done.stderr.splitlines()


def test_sigterm_to_tfddlrun_ends_the_job(tmp_path: Path) -> None:
    script = f"""{TRAINING}
signal.signal(signal.SIGTERM, lambda *_: Path("save").touch())
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
print("listens")
train()
"""
    line = [*_discovery(tmp_path, "localhost:2"), "-np", "2", "--max-restarts", "3"]
    with launched(*line, *worker(script), cwd=tmp_path) as process:
        assert process.stdout is not None
        # An agent tells how far a worker has come before it passes on what that has written.
        shown = {process.stdout.readline() for _ in range(4)}
        assert {"[0] listens\n", "[1] listens\n"} < shown
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75
    assert err == (
        "tfddlrun: ended by SIGTERM, after the training was saved at step 1 of epoch 1; the same "
        "command resumes from there\n"
    )


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (signal.SIGTERM, 75, "ended by SIGTERM, after the training was saved at step 1 of epoch 1"),
        (signal.SIGINT, 130, "ended by SIGINT, and all workers with it"),
    ],
)
def test_a_signal_while_workers_end_for_other_hosts(
    number: signal.Signals, status: int, text: str, tmp_path: Path
) -> None:
    script = f"""{TRAINING}
if rank == 1:
    train(until=lambda: page.save_is_requested)
    time.sleep(60)
train()
"""
    line = [*_discovery(tmp_path, "localhost:2"), "--min-np", "2", "--max-np", "3"]
    with launched(*line, *worker(script), cwd=tmp_path) as process:
        _wait_for_start(tmp_path, 0, 2)
        first = int((tmp_path / "0 of 2 is ready in 0").read_text())
        _write_hosts(tmp_path, "localhost:3")
        wait_until(lambda: not is_running(first))
        time.sleep(0.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status
    assert "Traceback" not in err
    assert text in err.splitlines()[-1]


def test_the_wait_for_hosts_ends_after_a_new_host_that_is_not_reached(tmp_path: Path) -> None:
    line = [*_discovery(tmp_path, HERE[0]), "-np", "1", "--elastic-timeout", "1"]
    ssh = ("--ssh-command", stand_in(tmp_path / "ssh", down=HERE[1]))
    with launched(*line, *ssh, *worker(f"{TRAINING}\ntrain()"), cwd=tmp_path) as process:
        _wait_for_start(tmp_path, 0, 1)
        _write_hosts(tmp_path, HERE[1])
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 127
    assert f"tfddlrun: going on without {HERE[1]} for 60 s" in err.splitlines()
    assert "after 1 s there are hosts for 0 workers (none)" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-H", "a:2", "--min-np", "2"), "-H (or --hostfile) names hosts, and --host-discovery"),
        ((), "how many workers does the job need? HINT: --min-np 2, or -np"),
        (("-np", "auto"), "-np auto counts the GPUs of this host, and"),
        (("-np", "2", "--dry-run"), "--dry-run runs no --host-discovery-script. HINT: give the"),
        (("-np", "2", "--slots-per-host", "0"), "--slots-per-host is 0; it must be 1..1024"),
        (("-np", "2", "--min-np", "3"), "--min-np is 3, -np 2 and --max-np 1024; they must be in"),
        (("-np", "2", "--max-np", "1"), "--min-np is 2, -np 2 and --max-np 1"),
        (
            ("-np", "2", "--nnodes", "2", "--node-rank", "0", "--master-addr", "a"),
            "--host-discovery-script finds hosts, and --nnodes says that each has a tfddlrun",
        ),
    ],
)
def test_mistakes_are_said(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--host-discovery-script", "cat hosts", *flags, "true"]
    with pytest.raises(SystemExit) as ended:
        main(line, environment={})
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_job_that_can_not_save_is_not_interrupted(tmp_path: Path) -> None:
    script = f"""{TRAINING}
page.clear_flags(WorkerFlags.SAVES_ON_REQUEST)
train(until=Path("warned").exists)
"""
    line = [*_discovery(tmp_path, "localhost:1"), "-np", "1", *worker(script)]
    patched = f"""
import os, sys
from tfddl._src.launcher import main, supervisor
supervisor._CANT_SAVE_S = 0.5
sys.exit(main.main({line}, environment=os.environ))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", patched],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _wait_for_start(tmp_path, 0, 1)
            _write_hosts(tmp_path, "localhost:2")
            assert process.stderr is not None
            lines = [process.stderr.readline(), process.stderr.readline()]
            (tmp_path / "warned").touch()
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "[0] start 0: 0 of 1\n", "")
    assert lines == [
        "tfddlrun: the hosts are now localhost:2\n",
        "tfddlrun: the hosts have changed, but rank 0 can't save its training now, so it isn't "
        "interrupted. HINT: tfddl.callbacks.Checkpoint in fit, or hvd.elastic.run with a state "
        "that is committed\n",
    ]
