"""`tfddlrun --preload`: a worker that was forked is as one that was started."""

import json
import os
import re
import signal
from pathlib import Path
from unittest import mock

import pytest

from tests.launching import launch, launched, of_ranks
from tests.processes import wait_until
from tfddl._src.launcher import main
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.preloading import split_command
from tfddl.errors import LaunchError

PRELOAD = ["--preload", "fractions,numpy"]

PROBE = """
import json, os, signal, sys, warnings
main = sys.modules["__main__"]
names = ("__name__", "__file__", "__doc__", "__package__", "__cached__")
print("found " + json.dumps({
    "argv": sys.argv,
    "command": sys.orig_argv,
    "main": main.__dict__ is globals(),
    "names": {name: globals().get(name, "not there") for name in names},
    "spec": getattr(globals()["__spec__"], "name", None),
    "loader": type(globals()["__loader__"]).__name__,
    "path": sys.path,
    "flags": list(sys.flags),
    "filters": len(warnings.filters),
    "folder": os.getcwd(),
    "environment": {n: v for n, v in os.environ.items() if not n.endswith(("_FD", "PAGE"))},
    "session": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "cores": sorted(os.sched_getaffinity(0)),
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "input": os.fstat(0).st_rdev,
    "buffering": [sys.stdout.line_buffering, sys.stdout.write_through],
}, sort_keys=True), flush=True)
"""

TRAINING = """
import keras
import numpy as np
import tfddl

tfddl.init()
keras.utils.set_random_seed(tfddl.rank())
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
model.compile(tfddl.DistributedOptimizer(keras.optimizers.Adam()), "mse")
x = np.arange(64, dtype="float32").reshape(16, 4)
data = tfddl.shard_dataset(x, x[:, :1], batch_size=4, seed=1)
model.fit(data, epochs=2, verbose=0)
print("trained", float(sum(w.numpy().sum() for w in model.weights)))
"""

# What no two starts have alike: ports, secrets, descriptors.
UNLIKE = ("TF_CONFIG", "TFDDL_SECRET", "TFDDL_PROGRESS", "TFDDL_COMMITS")


def _found(*line: str, cwd: Path) -> list[dict[str, object]]:
    done = launch("-np", "2", *line, cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = [json.loads(text[6:]) for text in of_ranks(done.stdout.splitlines(), "found ", 2)]
    for one in found:
        rank = json.loads(one["environment"]["TF_CONFIG"])["task"]["index"]
        for name in UNLIKE:
            one["environment"].pop(name, None)
        one["environment"] = dict(sorted(one["environment"].items()))
        one["rank"] = rank
    return found


@pytest.mark.parametrize(
    "command",
    [
        ["python", "probe.py", "a", "--b=c d"],
        pytest.param(["python", "-u", "-W", "error", "folder/../probe.py"], marks=pytest.mark.long),
        ["python", "-m", "probe", "-x"],
        pytest.param(["python", "-X", "dev", "-c", PROBE, "a"], marks=pytest.mark.long),
    ],
    ids=["script", "options", "module", "text"],
)
def test_a_forked_worker_finds_what_a_started_one_does(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "folder").mkdir()
    forked = _found("--preload", "fractions", *command, cwd=tmp_path)
    assert forked == _found(*command, cwd=tmp_path)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("import sys; sys.exit(7)", 7),
        pytest.param("raise SystemExit('why')", 1, marks=pytest.mark.long),
        ("def f():\n    raise ValueError('why')\nf()", 1),
        pytest.param(
            "import sys\nsys.excepthook = lambda *e: print(e[1], file=sys.stderr)\n1 / 0",
            1,
            marks=pytest.mark.long,
        ),
        ("raise KeyboardInterrupt", 130),
        pytest.param("1 +", 1, marks=pytest.mark.long),
        ("import os; os.kill(os.getpid(), 9)", 137),
        pytest.param("import atexit, os; atexit.register(os._exit, 3)", 3, marks=pytest.mark.long),
        pytest.param(None, 2, marks=pytest.mark.long),
    ],
)
def test_a_forked_worker_ends_as_a_started_one_does(
    tmp_path: Path, script: str | None, status: int
) -> None:
    """The same status, and the same on stderr, traceback included."""
    if script is not None:
        (tmp_path / "script.py").write_text(script)
    ends = []
    for flags in (PRELOAD, []):
        done = launch("-np", "1", *flags, "python", "script.py", cwd=tmp_path)
        assert done.returncode == status
        ends.append([line for line in done.stderr.splitlines() if line.startswith("[0]")])
    # The interpreter calls itself by the name that it was started with.
    forked, started = ("\n".join(lines).replace("python3", "python") for lines in ends)
    assert re.sub(r"\S*/python", "python", forked) == re.sub(r"\S*/python", "python", started)


def test_ranks_draw_different_numbers(tmp_path: Path) -> None:
    script = "import random, numpy; print('drew', random.random(), numpy.random.rand())"
    done = launch("-np", "2", *PRELOAD, "python", "-c", script, cwd=tmp_path)
    first, second = of_ranks(done.stdout.splitlines(), "drew ", 2)
    assert not {*first.split()[1:]} & {*second.split()[1:]}


def test_modules_are_imported_once(tmp_path: Path) -> None:
    """What they write then is the first worker's."""
    (tmp_path / "slow.py").write_text("import os\nprint('imported')\npid = os.getpid()")
    (tmp_path / "script.py").write_text("import slow\nprint('by', slow.pid)")
    line = ["-np", "3", "--preload", "slow", "python", "script.py"]
    done = launch(*line, cwd=tmp_path)
    assert len(set(of_ranks(done.stdout.splitlines(), "by ", 3))) == 1
    assert "[0] imported" in done.stderr.splitlines()
    assert (done.stdout + done.stderr).count("imported") == 1


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise ImportError('no such library')", "can't import 'mine': ImportError: no such libr"),
        pytest.param(
            "import sys; sys.exit('enough')",
            "can't import 'mine': SystemExit: enough",
            marks=pytest.mark.long,
        ),
        (
            "from threading import Event, Thread\nThread(target=Event().wait, daemon=True).start()",
            "'mine' has started threads (Thread-1",
        ),
        pytest.param(
            "import os; os.write(1, b'last words'); os.abort()",
            "ended. It wrote: last words",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_can_t_be_preloaded(tmp_path: Path, module: str, told: str) -> None:
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "script.py").touch()
    done = launch("-np", "2", "--preload", "mine", "python", "script.py", cwd=tmp_path)
    assert done.returncode == 127
    assert told in done.stderr
    assert "HINT: without --preload" in done.stderr


def test_a_job_of_forked_workers_starts_again(tmp_path: Path) -> None:
    script = "import os, sys; sys.exit(int(os.environ['TFDDL_RESTARTS'] == '0'))"
    done = launch("-np", "2", "--max-restarts", "1", *PRELOAD, "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    """Neither workers nor what they were forked from, whatever ends the launcher's processes."""
    script = "import os, time; print('at', os.getpid(), os.getppid(), flush=True); time.sleep(40)"
    command = ["-np", "2", *PRELOAD, "python", "-c", script]
    with launched(*command, "--grace-period", "0", cwd=tmp_path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        pids = [[int(word) for word in line.split()[-2:]] for line in lines]
        [agent] = {parent for _, parent in pids}
        family = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        assert len(family) == 3
        os.kill(agent if number == signal.SIGKILL else process.pid, number)
        process.communicate(timeout=30)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("python train.py -m x", 1),
        ("/usr/bin/python3.12 -u -X dev -Wd train.py", 5),
        ("python -Xfrozen_modules=off -m package.train", 2),
        ("python -c pass -u", 1),
        ("python --check-hash-based-pycs always.py", 2),
    ],
)
def test_split_command(line: str, at: int) -> None:
    words = line.split()
    assert split_command(words) == (words[:at], words[at:])


@pytest.mark.parametrize(
    "line",
    [
        "sh train.sh",
        "python",
        "python -u",
        "python -m",
        "python -um train",
        "python -",
        "bash -c x",
    ],
)
def test_commands_that_are_no_python_scripts(line: str) -> None:
    with pytest.raises(LaunchError, match="--preload can't .*expected"):
        JobOptions(num_workers=1, command=tuple(line.split()), preload=("numpy",))


def test_other_hosts_are_refused(tmp_path: Path) -> None:
    line = ["--preload", "numpy", "-H", "localhost:1,other:1", "python", "train.py"]
    done = launch(*line, cwd=tmp_path)
    assert done.returncode == 2
    assert "--preload starts workers on this machine only" in done.stderr


def test_where_a_gpu_is_nothing_is_preloaded(capsys: pytest.CaptureFixture[str]) -> None:
    """CUDA doesn't outlive a fork."""
    argv = ["--preload", "nosuchmodule", "-np", "1", "python", "-c", "pass"]
    with (
        mock.patch.object(main, "has_gpu", return_value=True),
        mock.patch.object(main, "run_job", lambda options, environment: len(options.preload)),
    ):
        assert main.main(argv, environment=os.environ) == 0
    assert "--preload is left out: this machine has a GPU" in capsys.readouterr().err


@pytest.mark.long
def test_a_forked_worker_trains(tmp_path: Path) -> None:
    """TensorFlow works in forks of a process that has only imported it."""
    (tmp_path / "train.py").write_text(TRAINING)
    line = ["-np", "2", "--preload", "tensorflow,keras,tfddl", "python", "train.py"]
    done = launch(*line, cwd=tmp_path, timeout_s=120)
    assert done.returncode == 0, done.stderr
    first, second = of_ranks(done.stdout.splitlines(), "trained ", 2)
    assert first == second
