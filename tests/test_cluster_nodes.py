"""What `tfddlrun` knows of the other hosts, where an engine started it once on each."""

import json
import re
from typing import Any

import pytest

from tests import environments as env
from tests.environments import tf_config
from tfddl._src.cluster import NodeRank, detect_nodes
from tfddl.errors import ClusterError


@pytest.fixture(autouse=True)
def without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tfddl._src.cluster.environments.mpi_address.exchange", lambda *_, **__: None
    )


@pytest.fixture
def pod_name(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The full name of this host; a test may change it."""
    name = ["train-2.workers.default.svc.cluster.local"]
    monkeypatch.setattr("socket.getfqdn", lambda: name[0])
    return name


# srun -N2 --ntasks-per-node=1 (Slurm 22.05.8), as seen on the second node.
ONE_PER_NODE = env.SRUN | {
    "SLURM_JOB_ID": "10",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
ONE_PER_HOST = env.OPEN_MPI_4 | {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
OMPI_NAMES = (
    "OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK, "
    "OMPI_COMM_WORLD_LOCAL_SIZE"
)

NODES: dict[str, tuple[dict[str, str], NodeRank | None]] = {
    "tfjob": (
        tf_config(env.TFJOB),
        NodeRank(2, 3, master="mnist-chief-0.team.svc:2222", source="TF_CONFIG"),
    ),
    "TF_CONFIG of one": (
        tf_config({"cluster": {"worker": ["a:1"]}}, type="worker", index=0),
        NodeRank(0, 1, source="TF_CONFIG"),
    ),
    "TF_CONFIG of two": (
        tf_config(env.PAI),
        NodeRank(0, 2, master="dlc1-worker-0.t16.svc:2222", source="TF_CONFIG"),
    ),
    "torchrun, one process per node": (
        env.TORCHRUN
        | {"LOCAL_RANK": "0", "RANK": "1", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
        | {"TORCHELASTIC_RUN_ID": "none"},
        NodeRank(
            1,
            2,
            master="node1.example.com:29500",
            source="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE",
        ),
    ),
    "ranks of nodes, without a master": (
        {"RANK": "1", "WORLD_SIZE": "2"},
        NodeRank(1, 2, source="RANK, WORLD_SIZE"),
    ),
    "kubeflow trainer": (
        env.TRAINER | {"PET_NPROC_PER_NODE": "4"},
        NodeRank(
            2,
            3,
            master="job-node-0-0.job:29400",
            workers_per_node=4,
            source="PET_NNODES, PET_NODE_RANK",
        ),
    ),
    "kubeflow trainer, auto": (
        env.TRAINER | {"PET_NPROC_PER_NODE": "auto"},
        NodeRank(2, 3, master="job-node-0-0.job:29400", source="PET_NNODES, PET_NODE_RANK"),
    ),
    "kubeflow trainer, one node": (
        {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2"},
        NodeRank(0, 1, workers_per_node=2, source="PET_NNODES, PET_NODE_RANK"),
    ),
    "elastic, of one number": (
        env.TRAINER | {"PET_NNODES": "3:3", "PET_RDZV_ID": "run-1"},
        NodeRank(
            2,
            3,
            master="job-node-0-0.job:29400",
            workers_per_node=1,
            job="run-1",
            source="PET_NNODES, PET_NODE_RANK",
        ),
    ),
    # PyTorchJob's WORLD_SIZE counts workers; PET_NNODES counts pods.
    "pytorchjob": (
        env.PYTORCHJOB | {"PET_NPROC_PER_NODE": "4", "WORLD_SIZE": "8"},
        NodeRank(
            1,
            2,
            master="mnist-master-0:23456",
            workers_per_node=4,
            source="PET_NNODES, PET_NODE_RANK",
        ),
    ),
    # Alibaba PAI: RANK and WORLD_SIZE count nodes.
    "pai": (
        {
            "RANK": "1",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "dlc18-master-0",
            "MASTER_PORT": "23456",
            "NPROC_PER_NODE": "8",
        },
        NodeRank(
            1, 2, master="dlc18-master-0:23456", workers_per_node=8, source="RANK, WORLD_SIZE"
        ),
    ),
    "azure ml, one process per node": (
        env.AZURE | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "1"},
        NodeRank(1, 2, master="10.0.0.4:6105", source="RANK, WORLD_SIZE, LOCAL_RANK"),
    ),
    "sagemaker": (
        env.SAGEMAKER | {"SM_NUM_GPUS": "8"},
        NodeRank(
            1,
            2,
            master="algo-1:12345",
            workers_per_node=8,
            job="train-2026-11-30",
            source="SM_HOSTS",
        ),
    ),
    "sagemaker on CPUs": (
        env.SAGEMAKER | {"SM_NUM_GPUS": "0", "TFDDL_PORT": "7000"},
        NodeRank(1, 2, master="algo-1:7000", job="train-2026-11-30", source="SM_HOSTS"),
    ),
    "slurm": (
        ONE_PER_NODE,
        NodeRank(1, 2, master="n1:12345", job="10.0", source="SLURM_STEP_NODELIST, SLURM_PROCID"),
    ),
    "slurm --mpi=pmi2": (
        ONE_PER_NODE | {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "10.0"},
        NodeRank(1, 2, master="n1:12345", job="10.0", source="SLURM_STEP_NODELIST, SLURM_PROCID"),
    ),
    "mpirun -npernode 1": (
        ONE_PER_HOST | {"TFDDL_MASTER": "hostA"},
        NodeRank(1, 2, master="hostA:12345", job="2946367489", source=OMPI_NAMES),
    ),
    "mpirun -npernode 1, without a master": (
        ONE_PER_HOST,
        NodeRank(1, 2, job="2946367489", source=OMPI_NAMES),
    ),
    "kubernetes": (
        {"JOB_COMPLETION_INDEX": "2", "TFDDL_NNODES": "3", "HOSTNAME": "train-2"},
        NodeRank(
            2,
            3,
            master="train-0.workers.default.svc.cluster.local:12345",
            job="train",
            source="JOB_COMPLETION_INDEX",
        ),
    ),
    "kubernetes, TFDDL_MASTER": (
        {"JOB_COMPLETION_INDEX": "2", "TFDDL_NNODES": "3", "TFDDL_MASTER": "train-0.workers"},
        NodeRank(2, 3, master="train-0.workers:12345", source="JOB_COMPLETION_INDEX"),
    ),
    "nothing": ({"HOME": "/"}, None),
    "sbatch": (env.SBATCH, None),
    "salloc": (env.SALLOC, None),
    "mpirun -np 1": ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
    "asked for": ({"TFDDL_ALONE": "1", **env.SAGEMAKER}, None),
}

REFUSED = {
    "several workers per host": (
        tf_config({"cluster": {"worker": ["a:1", "a:2", "b:1"]}}, type="worker", index=0),
        "TF_CONFIG names 3 workers on 2 hosts; for tfddlrun, which starts the workers of a host, "
        "it must name each host once. HINT: run the script itself, without tfddlrun",
    ),
    "several tasks per node": (
        env.SRUN,
        "srun started tfddlrun 4 times on 2 hosts; it must run once on each, and starts the "
        "workers itself. HINT: srun --ntasks-per-node=1 tfddlrun …, or srun python train.py "
        "without tfddlrun",
    ),
    "several ranks per host": (
        env.OPEN_MPI_4,
        f"Open MPI started tfddlrun 4 times, 2 of them on this host ({OMPI_NAMES}); it must run "
        "once on each, and starts the workers itself. HINT: let Open MPI run the script, without "
        "tfddlrun",
    ),
    "in torchrun": (
        env.TORCHRUN,
        "torchrun started tfddlrun 8 times, 4 of them on this host (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE); it must run once on each, and starts the workers itself. HINT: let "
        "torchrun run the script, without tfddlrun",
    ),
    "both of torchrun on one host": (
        env.TORCHRUN | {"LOCAL_RANK": "1", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
        "torchrun started tfddlrun 2 times, 2 of them on this host (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE); it must run once on each, and starts the workers itself. HINT: let "
        "torchrun run the script, without tfddlrun",
    ),
    "the first of several in torchrun": (
        env.TORCHRUN | {"LOCAL_RANK": "0", "RANK": "4", "NODE_RANK": "4"},
        "torchrun started tfddlrun 8 times, 4 of them on this host (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE); it must run once on each, and starts the workers itself. HINT: let "
        "torchrun run the script, without tfddlrun",
    ),
    "azure ml, several processes per node": (
        env.AZURE | {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "NODE_RANK": "1"},
        "torchrun started tfddlrun 4 times, several of them on this host (RANK, WORLD_SIZE, "
        "LOCAL_RANK); it must run once on each, and starts the workers itself. HINT: let torchrun "
        "run the script, without tfddlrun",
    ),
    "an elastic number of nodes": (
        env.TRAINER | {"PET_NNODES": "1:3"},
        "PET_NNODES is '1:3', a number that changes while the job runs; expected one number. HINT: "
        "give the job as many nodes at least as at most",
    ),
    "an Indexed Job of unknown size": (
        {"JOB_COMPLETION_INDEX": "0"},
        "JOB_COMPLETION_INDEX is 0: this is a pod of an Indexed Job, which doesn't tell how many "
        "there are. HINT: tfddlrun --nnodes N …, the completions of the Job; or TFDDL_NNODES=N in "
        "its manifest; or --nnodes 1, where each pod trains by itself",
    ),
    "a pod beyond the last": (
        {"JOB_COMPLETION_INDEX": "3", "TFDDL_NNODES": "3"},
        "the node rank is 3 among 3 nodes in JOB_COMPLETION_INDEX; it must be 0..2",
    ),
    "an evaluator": (
        tf_config(env.TFJOB, type="evaluator", index=0),
        "TF_CONFIG makes this process an evaluator, and tfddl has none: the workers evaluate "
        "together, in fit(validation_data=…) and evaluate(). They train without this process. "
        "HINT: leave the evaluator out of the job",
    ),
    "a sign": (
        {"HOROVOD_SIZE": "2"},
        "HOROVOD_SIZE is 2: this process was started beside others, and its environment doesn't "
        "say how to find them. It doesn't train alone unless told to. HINT: start the workers by "
        "tfddlrun instead of horovodrun; or, where it is to train alone, set TFDDL_ALONE=1 or "
        "unset HOROVOD_SIZE",
    ),
}


@pytest.mark.usefixtures("pod_name")
@pytest.mark.parametrize(("environ", "expected"), NODES.values(), ids=NODES)
def test_nodes(environ: dict[str, str], expected: NodeRank | None) -> None:
    before = dict(environ)
    assert detect_nodes(environ) == expected
    assert environ == before


@pytest.mark.usefixtures("pod_name")
@pytest.mark.parametrize(("environ", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError, match=f"^{re.escape(message)}$"):
        detect_nodes(environ)


@pytest.mark.parametrize(
    "name", ["train-2", "train-2.", "elsewhere.svc", "-2.svc", "train-12.svc", "2.svc"]
)
def test_a_pod_without_a_service_has_no_master(name: str, pod_name: list[str]) -> None:
    pod_name[0] = name
    found = detect_nodes({"JOB_COMPLETION_INDEX": "2", "TFDDL_NNODES": "3"})
    assert found is not None
    assert found.master is None


@pytest.mark.usefixtures("pod_name")
def test_numbers_of_pods() -> None:
    environ = {"JOB_COMPLETION_INDEX": "70", "TFDDL_NNODES": "71"}
    found = detect_nodes(environ)
    assert found is not None
    assert (found.node_rank, found.num_nodes) == (70, 71)
    alone = detect_nodes({"JOB_COMPLETION_INDEX": "0", "TFDDL_NNODES": "1"})
    assert alone is not None
    assert (alone.node_rank, alone.num_nodes) == (0, 1)


@pytest.mark.usefixtures("pod_name")
def test_the_flag_gives_the_number_of_nodes() -> None:
    index = {"JOB_COMPLETION_INDEX": "2"}
    found = detect_nodes(index, num_nodes=4)
    assert found is not None
    assert (found.node_rank, found.num_nodes) == (2, 4)
    assert detect_nodes(index, num_nodes=1) == NodeRank(0, 1, source="--nnodes")
    assert detect_nodes(env.SAGEMAKER, num_nodes=1) == NodeRank(0, 1, source="--nnodes")
    assert detect_nodes({}, num_nodes=4) is None  # the rank has to come from a flag, too
    message = "--nnodes is 4, but there are 2 by SM_HOSTS. HINT: leave --nnodes out"
    with pytest.raises(ClusterError, match=f"^{message}$"):
        detect_nodes(env.SAGEMAKER, num_nodes=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"node_rank": 2, "num_nodes": 2}, "the node rank is 2 among 2 nodes; it must be 0..1"),
        ({"node_rank": -1, "num_nodes": 2}, "the node rank is -1 among 2 nodes; it must be 0..1"),
        ({"node_rank": 0, "num_nodes": 0}, "the number of nodes is 0; it must be 1..65536"),
        (
            {"node_rank": 0, "num_nodes": 2, "master": "a"},
            "the address of node 0 is 'a', without a port; expected \"host:port\"",
        ),
        (
            {"node_rank": 0, "num_nodes": 2, "workers_per_node": 0, "source": "X"},
            "the number of workers of a node is 0 in X; it must be 1..65536",
        ),
    ],
)
def test_bad_node_ranks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        NodeRank(**arguments)


def test_a_job_of_one_host_is_read_from_tf_config_of_tfddlrun() -> None:
    """A worker of `tfddlrun -np 1`, in which tfddlrun is run again."""
    text = json.dumps(
        {"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}
    )
    assert detect_nodes({"TF_CONFIG": text}) == NodeRank(0, 1, source="TF_CONFIG")
