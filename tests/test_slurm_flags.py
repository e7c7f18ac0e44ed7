"""`tfddlrun --launcher slurm` without Slurm: its flags and variables, and a stand-in for srun."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.environments import SALLOC, SBATCH, SRUN
from tests.launching import launch, worker
from tfddl._src.cluster.environments.slurm import read_allocation
from tfddl._src.launcher import slurm_flags
from tfddl._src.launcher.fleet import FleetOptions
from tfddl._src.launcher.host_flags import make_fleet, repeat
from tfddl._src.launcher.main import make_parser
from tfddl._src.launcher.srun import SrunOptions
from tfddl.errors import ClusterError, LaunchError

NODES = {"SLURM_JOB_NODELIST": "n[1-2],gpu07"}
ONE_EACH = {"n1": 1, "n2": 1, "gpu07": 1}
TASKS = {"SLURM_TASKS_PER_NODE": "1(x3)"}
ALLOCATION = SBATCH | NODES | {"SLURM_TASKS_PER_NODE": "2(x2),1"}


@pytest.mark.parametrize(
    ("environment", "nodes"),
    [
        (ALLOCATION, {"n1": 2, "n2": 2, "gpu07": 1}),
        # salloc -N3, which asks for no tasks.
        (NODES | {"SLURM_JOB_ID": "7", "SLURM_TASKS_PER_NODE": "1(x3)"}, ONE_EACH),
        (NODES | {"SLURM_JOB_ID": "7"}, ONE_EACH),
    ],
)
def test_the_nodes_of_an_allocation(environment: dict[str, str], nodes: dict[str, int]) -> None:
    assert read_allocation(environment) == nodes


@pytest.mark.parametrize(
    ("nodes", "tasks", "message"),
    [
        ("", "", "no allocation of Slurm (SLURM_JOB_ID and SLURM_JOB_NODELIST are not set). HINT:"),
        ("n[1", "1", "SLURM_JOB_NODELIST is 'n[1'; expected a list of hosts like"),
        ("n[1-99999]", "1", "SLURM_JOB_NODELIST is 'n[1-99999]', more than"),
        ("n[1-3]", "2(x2)", "names 3 hosts, and SLURM_TASKS_PER_NODE is '2(x2)'; one number of"),
        ("n[1-3]", "1", "one number of tasks per host is expected. HINT: outside of srun"),
        ("n1", "two", "SLURM_TASKS_PER_NODE is 'two'; expected counts like"),
    ],
)
def test_an_allocation_that_cant_be_read(nodes: str, tasks: str, message: str) -> None:
    variables = {"SLURM_JOB_NODELIST": nodes, "SLURM_TASKS_PER_NODE": tasks}
    with pytest.raises(ClusterError) as caught:
        read_allocation(SALLOC | variables)
    assert message in str(caught.value)


def _resolve(*line: str, **changes: str) -> Any:
    arguments = make_parser("tfddlrun").parse_args(["--launcher", "slurm", *line, "true"])
    slurm_flags.resolve(arguments, {**ALLOCATION, "PATH": os.environ["PATH"], **changes})
    return arguments


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that is used like srun: it starts the program, or says why it can't."""
    path = tmp_path / "bin/srun"
    path.parent.mkdir()
    path.write_text(f"""#!/bin/sh
echo "$*" >>{shlex.quote(str(tmp_path / "asked"))}
node="${{1#--nodelist=}}"
env | grep -E '^SLURM_(CPUS_PER_TASK|CPUS_PER_GPU|GPUS|LABELIO|NTASKS_PER_NODE)=' && exit 9
while [ "${{1#--}}" != "$1" ]; do shift; done
# What slurmd sets: of this job the GPUs of each node.
[ "$node" = 127.0.0.2 ] && CUDA_VISIBLE_DEVICES=2,3 || CUDA_VISIBLE_DEVICES=0,1
export CUDA_VISIBLE_DEVICES
if [ "$node" = 127.0.0.9 ]; then
  echo "srun: error: Unable to create step for job 6: Job/step already completing" >&2
  echo "srun: error: 127.0.0.9: task 0: Exited with exit code 1" >&2
  exit 1
fi
cd / && exec "$@"
""")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.usefixtures("srun")
@pytest.mark.parametrize(
    ("line", "hosts"),
    [
        ((), "n1:2,n2:2,gpu07:1"),
        (("-np", "3"), "n1:2,n2:2,gpu07:1"),  # of which the last stays empty
        (("-H", "gpu07:4"), "gpu07:4"),
        (("--host-discovery-script", "./x", "-np", "2"), None),
    ],
)
def test_its_nodes_are_the_hosts(line: tuple[str, ...], hosts: str | None) -> None:
    assert _resolve(*line).hosts == hosts


@pytest.mark.usefixtures("srun")
@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        ((), {"SLURM_JOB_ID": ""}, "--launcher slurm: there is no allocation of Slurm"),
        ((), {"PATH": "/none"}, "--launcher slurm takes srun, which is not on the PATH"),
        ((), SRUN | NODES | TASKS, "srun has started tfddlrun 4 times (SLURM_STEP_NUM_TASKS, SLU"),
        (("-np", "6"), {}, "the allocation has 5 tasks, on n1, n2, gpu07 (SLURM_TASKS_PER_NODE)"),
        (("-np", "6"), {}, "--ntasks-per-node=2, or -H n1:2,…"),
        (("-H", "n1:2,n9:2"), {}, "n9 (-H) is not in the allocation of n1, n2, gpu07. HINT"),
        (("-np", "auto"), {}, "-np auto counts the GPUs of one node, and --launcher slurm starts"),
        ((), {"SLURM_GPUS_PER_TASK": "1"}, "SLURM_GPUS_PER_TASK is 1, and the nodes have 1 "),
        (("-p", "22"), {}, "--ssh-port (-p) is for ssh, and --launcher slurm reaches the hosts by"),
        (("-i", "/k"), {}, "--ssh-identity-file (-i) is for ssh"),
        (("--ssh-command", "ssh -v"), {}, "--ssh-command is for ssh"),
        (("--nnodes", "2"), {}, "--nnodes is for a tfddlrun on each node"),
        (("--master-addr", "a"), {}, "--master-addr is for a tfddlrun on each node"),
    ],
)
def test_mistakes_are_said(line: tuple[str, ...], changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        _resolve(*line, **changes)
    assert message in str(caught.value)


def test_the_allocation_is_nothing_to_ssh() -> None:
    arguments = make_parser("tfddlrun").parse_args(["-np", "2", "true"])
    slurm_flags.resolve(arguments, ALLOCATION)
    assert arguments.hosts is None
    assert "--launcher=ssh" in repeat(arguments)


@pytest.mark.usefixtures("srun")
@pytest.mark.parametrize(
    ("per_task", "tasks", "asked"),
    [
        # Slurm 22.05 gives a step of one task those of one task.
        ("1", "2(x3)", "2"),
        ("a100:2", "4(x3)", "a100:8"),
        ("4", "1(x3)", None),
        ("", "2(x3)", None),
    ],
)
def test_an_agent_gets_the_gpus_of_all_tasks(per_task: str, tasks: str, asked: str | None) -> None:
    changes = {"SLURM_GPUS_PER_TASK": per_task, "SLURM_TASKS_PER_NODE": tasks}
    argv = make_fleet((), _resolve(**changes)).starter.argv("n2")
    found = [word for word in argv if word.startswith("--gpus-per-node=")]
    assert found == ([] if asked is None else [f"--gpus-per-node={asked}"])


def test_how_an_agent_is_started() -> None:
    arguments = _parse("--remote-python", "/opt/python")
    starter = make_fleet((), arguments).starter
    assert starter == SrunOptions(remote_python="/opt/python")
    *before, python, isolated, flag, _ = starter.argv("n2")
    assert (python, isolated, flag) == ("/opt/python", "-P", "-c")
    step = before[before.index("srun") :]
    assert step[1] == "--nodelist=n2"
    # One task beside all others, no lines that wait for their end, and no MPI.
    for option in ("--ntasks=1", "--nodes=1", "--overlap", "--unbuffered", "--mpi=none"):
        assert option in step
    said = ["srun: error: Unable to create step: Invalid generic resource (gres) specification"]
    text = starter.explain_end("n2", returncode=1, stderr_lines=said)
    assert text.endswith("; GPUs have to be asked for by --gpus-per-node")
    assert make_fleet((), make_parser("x").parse_args(["x"])) == FleetOptions(hosts=())
    with pytest.raises(LaunchError, match="--remote-python is empty"):
        SrunOptions(remote_python="")


def _parse(*line: str) -> Any:
    return make_parser("tfddlrun").parse_args(["--launcher", "slurm", *line, "true"])


# With what the node's part of the job is given, and what all workers are.
WRITES = """
names = ("SLURM_NTASKS_PER_NODE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
Path(f"rank.{rank}").write_text(" ".join(os.environ.get(name, "none") for name in names))
"""


def test_workers_run_on_all_nodes(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        **SBATCH,
        "SLURM_JOB_NODELIST": "127.0.0.[2-3]",
        "SLURM_TASKS_PER_NODE": "2,1",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_LABELIO": "1",
        "SLURM_GPUS": "6",
        "SLURM_CPUS_PER_GPU": "2",
        "CUDA_VISIBLE_DEVICES": "6,7",  # of the node that tfddlrun runs on
        "ROCR_VISIBLE_DEVICES": "5",
    }.items():
        monkeypatch.setenv(name, value)
    named = ("-x", "ROCR_VISIBLE_DEVICES")
    done = launch("--launcher", "slurm", *named, *worker(WRITES), cwd=srun)
    assert done.returncode == 0, done.stderr
    ranks = [(srun / f"rank.{rank}").read_text() for rank in range(3)]
    assert ranks == ["none 2,3 5", "none 2,3 5", "none 0,1 5"]
    asked = (srun / "asked").read_text().splitlines()
    nodes = [line.split()[0] for line in asked if "agent_server" in line]
    assert sorted(nodes) == ["--nodelist=127.0.0.2", "--nodelist=127.0.0.3"]


def test_a_node_that_cant_be_reached(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"SLURM_JOB_NODELIST": "127.0.0.[2,9]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    for name, value in {**SBATCH, **nodes}.items():
        monkeypatch.setenv(name, value)
    done = launch("--launcher", "slurm", *worker(WRITES), cwd=srun)
    assert done.returncode == 127
    assert (
        "rank 1 can't start: srun can't start an agent on 127.0.0.9 (status 1): srun: error: "
        "Unable to create step for job 6: Job/step already completing. HINT: this has to work in "
        "the allocation: srun --nodelist=127.0.0.9 "
    ) in done.stderr
    assert not list(srun.glob("rank.*"))


@pytest.mark.parametrize(("status", "ends_with"), [(75, 138), (7, 7)])
def test_the_status_of_a_training_that_has_saved(
    status: int, ends_with: int, tmp_path: Path
) -> None:
    line = ("-np", "1", "--saved-status", "138", "sh", "-c", f"exit {status}")
    assert launch(*line, cwd=tmp_path).returncode == ends_with


@pytest.mark.parametrize("text", ["0", "256", "x", "-1"])
def test_a_status_that_is_none(text: str, tmp_path: Path) -> None:
    done = launch("-np", "1", f"--saved-status={text}", "true", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{text!r} is no exit status; it must be 1..255" in done.stderr
