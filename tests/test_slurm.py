"""Jobs in a real Slurm of two nodes: see `tests.slurm_cluster`."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import wait_until
from tests.slurm_cluster import SlurmCluster, missing_for_slurm, slurm_cluster

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests/scripts/engine_train.py"
SBATCH = ROOT / "launch/slurm.sbatch"
TRAIN_S = 200.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    if missing := missing_for_slurm():
        pytest.skip(missing)
    # The paths of pytest are too long for sockets.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            with slurm_cluster(folder) as cluster:
                yield cluster
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a script, an environment, the batch script, and no checkout of tfddl."""
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "venv").symlink_to(sys.prefix)
    shutil.copy(SCRIPT, folder / "train.py")
    shutil.copy(SBATCH, folder / "slurm.sbatch")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The weights of one worker."""
    folder = tmp_path_factory.mktemp("alone")
    environment = {**os.environ, "TFDDL_ALONE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, SCRIPT, str(folder)], env=environment, check=True, timeout=TRAIN_S
    )
    return _ranks(folder)[0]["weights"]


def _ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank has left, in their order."""
    return [
        json.loads((folder / f"rank.{rank}").read_text())
        for rank in range(len(list(folder.glob("rank.*"))))
    ]


def _check(folder: Path, alone: list[float], *, nodes: list[str]) -> list[dict[str, Any]]:
    """The ranks of a job ran on these nodes, and have the weights of one worker."""
    ranks = _ranks(folder)
    assert [found["node"] for found in ranks] == nodes
    assert len({found["network"] for found in ranks}) == len(set(nodes))
    for found in ranks:
        np.testing.assert_allclose(found["weights"], alone, rtol=1e-4, atol=1e-5)
    return ranks


def _end(slurm: SlurmCluster, job: str, folder: Path) -> str:
    """How a job ended, and what it wrote."""
    state = slurm.wait(job, *ENDED, timeout_s=TRAIN_S)
    return "\n".join([state, *(path.read_text() for path in folder.glob("slurm-*.out"))])


FOUR = ["n1", "n1", "n2", "n2"]
TASKS = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=5")


SHOW = """
import json, os, sys
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
open(f"rank.{rank}", "w").write(json.dumps({"node": os.uname().nodename, "argument": sys.argv[1]}))
"""


def test_agents_are_steps_of_the_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    line = ("--launcher", "slurm", sys.executable, "-S", "-c", SHOW, "a b\n$c")
    tfddlrun = (sys.executable, "-m", "tfddl.launcher", *line)
    done = slurm.run("salloc", *TASKS, *tfddlrun, cwd=tmp_path, timeout_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = _ranks(tmp_path)
    assert [found["node"] for found in ranks] == FOUR
    assert {found["argument"] for found in ranks} == {"a b\n$c"}


@pytest.mark.long
def test_a_worker_per_task_from_the_folder_of_a_user(
    slurm: SlurmCluster, project: Path, alone: list[float]
) -> None:
    job = slurm.submit(*TASKS, "slurm.sbatch", "python", "train.py", ".", cwd=project)
    said = _end(slurm, job, project)
    assert said.startswith("COMPLETED"), said
    ranks = _check(project, alone, nodes=FOUR)
    assert [found["local"] for found in ranks] == [[0, 2], [1, 2], [0, 2], [1, 2]]
    assert {found["cores"] for found in ranks} == {"1"}


@pytest.mark.long
def test_a_tfddlrun_per_node(slurm: SlurmCluster, project: Path, alone: list[float]) -> None:
    line = ("tfddlrun", "-np", "2", "python", "train.py", ".")
    shape = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--time=5")
    said = _end(slurm, slurm.submit(*shape, "slurm.sbatch", *line, cwd=project), project)
    assert said.startswith("COMPLETED"), said
    ranks = _check(project, alone, nodes=FOUR)
    assert [found["local"] for found in ranks] == [[0, 2], [1, 2], [0, 2], [1, 2]]


@pytest.mark.long
def test_it_is_queued_again_when_it_has_saved_and_resumes(
    slurm: SlurmCluster, project: Path, alone: list[float]
) -> None:
    """What `--signal=B:TERM@90` sends comes here from `scancel --batch`: to the script alone."""
    job = slurm.submit(*TASKS, "slurm.sbatch", "python", "train.py", ".", "wait", cwd=project)
    waits = [project / f"event.{rank}" for rank in range(4)]
    wait_until(lambda: all(path.exists() for path in waits), timeout_s=TRAIN_S)
    assert slurm.run("scancel", "--batch", "--signal=TERM", job).returncode == 0
    wait_until(lambda: (project / "rank.3").exists(), timeout_s=TRAIN_S)
    said = _end(slurm, job, project)
    assert said.startswith("COMPLETED"), said
    assert f"slurm.sbatch: saved; queueing job {job} again" in said
    ranks = _check(project, alone, nodes=FOUR)
    assert {found["restarts"] for found in ranks} == {"1"}


@pytest.mark.long
def test_a_job_that_the_user_cancels_is_not_queued_again(
    slurm: SlurmCluster, project: Path
) -> None:
    """It gets SIGTERM, too, and saves."""
    (project / "job.sh").write_text(
        "trap 'exit 75' TERM\ntouch runs.$SLURM_PROCID\nwhile :; do sleep 0.1; done\n"
    )
    job = slurm.submit(*TASKS, "slurm.sbatch", "sh", "job.sh", cwd=project)
    runs = [project / f"runs.{task}" for task in range(4)]
    wait_until(lambda: all(path.exists() for path in runs), timeout_s=60)
    assert slurm.run("scancel", job).returncode == 0
    said = _end(slurm, job, project)
    assert said.startswith("CANCELLED"), said
    assert "again" not in said.replace("is not queued again", "")


@pytest.mark.long
def test_only_the_job_of_an_array_that_has_saved_is_queued_again(
    slurm: SlurmCluster, project: Path
) -> None:
    """One of them has the array's own id."""
    (project / "job.sh").write_text(
        "trap 'exit 75' TERM\n"
        "touch runs.$SLURM_ARRAY_TASK_ID.${SLURM_RESTART_COUNT:-0}\n"
        "while [ ! -e end ] && [ -z $SLURM_RESTART_COUNT ]; do sleep 0.1; done\n"
    )
    shape = ("--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--time=5")
    job = slurm.submit("--array=0-1", *shape, "slurm.sbatch", "sh", "job.sh", cwd=project)
    for index in range(2):
        wait_until((project / f"runs.{index}.0").exists, timeout_s=60)
    # The one that shares its id with the array.
    (last,) = [
        index
        for index in range(2)
        if slurm.run("squeue", "-h", "--format=%A", f"--jobs={job}_{index}").stdout == f"{job}\n"
    ]
    line = ("scancel", "--batch", "--signal=TERM", f"{job}_{last}")
    assert slurm.run(*line).returncode == 0
    wait_until((project / f"runs.{last}.1").exists, timeout_s=60)
    (project / "end").touch()
    for index in range(2):
        assert _end(slurm, f"{job}_{index}", project).startswith("COMPLETED")
    assert not (project / f"runs.{1 - last}.1").exists()


@pytest.mark.long
def test_jobs_of_an_array_share_nodes_and_no_ports(
    slurm: SlurmCluster, project: Path, alone: list[float]
) -> None:
    """Each waits until the other trains: they run at the same time."""
    for index in range(2):
        (project / f"task.{index}").mkdir()
    command = ("sh", "-c", 'exec python train.py "task.$SLURM_ARRAY_TASK_ID" wait')
    shape = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5")
    job = slurm.submit("--array=0-1", *shape, "slurm.sbatch", *command, cwd=project)
    waits = [project / f"task.{index}/event.{rank}" for index in range(2) for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in waits), timeout_s=TRAIN_S)
    assert slurm.run("scancel", "--batch", "--signal=TERM", job).returncode == 0
    ends = [project / f"task.{index}/rank.{rank}" for index in range(2) for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in ends), timeout_s=TRAIN_S)
    for index in range(2):
        assert _end(slurm, f"{job}_{index}", project).startswith("COMPLETED")
    found = [_check(project / f"task.{index}", alone, nodes=["n1", "n2"]) for index in range(2)]
    assert len({ranks[0]["port"] for ranks in found}) == 2


@pytest.mark.long
def test_srun_starts_the_agents_of_one_tfddlrun(
    slurm: SlurmCluster, project: Path, alone: list[float]
) -> None:
    """In `salloc`, and again after a worker was killed."""
    tfddlrun = ("venv/bin/tfddlrun", "--launcher", "slurm", "--max-restarts", "1", "--verbose")
    line = ("salloc", *TASKS, *tfddlrun, "venv/bin/python", "train.py", ".", "kill")
    done = slurm.run(*line, cwd=project, timeout_s=TRAIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 3 on n2" in done.stderr, done.stderr
    assert "SIGKILL" in done.stderr, done.stderr
    _check(project, alone, nodes=FOUR)


@pytest.mark.long
def test_nothing_is_left_of_a_tfddlrun_that_is_killed(slurm: SlurmCluster, project: Path) -> None:
    """Its agents on other nodes notice, and Slurm knows of no step any more."""
    script = "import os, time; open(f'pid.{os.getpid()}', 'w'); time.sleep(500)"
    tfddlrun = ("venv/bin/tfddlrun", "--launcher", "slurm", "venv/bin/python", "-c", script)
    job = slurm.submit(*TASKS, "--wrap", f"exec {shlex.join(tfddlrun)}", cwd=project)
    wait_until(lambda: len(list(project.glob("pid.*"))) == 4, timeout_s=60)
    workers = [int(path.suffix[1:]) for path in project.glob("pid.*")]
    assert slurm.run("scancel", "--batch", "--signal=KILL", job).returncode == 0
    assert slurm.wait(job, *ENDED, timeout_s=60) != "COMPLETED"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), timeout_s=60)
