"""Every environment that tells who takes part, in the shape that its documentation shows."""

import json
import re

import pytest

from tests.environments import (
    AZURE,
    FLUX,
    INTEL,
    MASTER,
    MPICH,
    MVAPICH,
    OPEN_MPI_4,
    OPEN_MPI_5,
    PAI,
    PALS,
    PYTORCHJOB,
    SAGEMAKER,
    SALLOC,
    SBATCH,
    SRUN,
    SRUN_PMI2,
    STANDALONE,
    TFJOB,
    TORCHRUN,
    TRAINER,
    VERTEX,
    WITH_EVALUATOR,
    tf_config,
)
from tfddl._src.cluster import Cluster, PartialCluster, detect
from tfddl._src.cluster.detection import Source, detect_source
from tfddl._src.cluster.environments import sagemaker, torchrun
from tfddl.errors import ClusterError


@pytest.fixture(autouse=True)
def without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where mpi4py isn't installed; `test_cluster_mpi.py` tries it."""
    monkeypatch.setattr(
        "tfddl._src.cluster.environments.mpi_address.exchange", lambda *_, **__: None
    )


TWO_ON_LOOPBACK = ("127.0.0.1:12345", "127.0.0.1:12346")
SRUN_ADDRESSES = ("n1:12345", "n1:12346", "n2:12345", "n2:12346")
OMPI_NAMES = (
    "OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK, "
    "OMPI_COMM_WORLD_LOCAL_SIZE"
)
PMI_NAMES = "PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS"

WHOLE = {
    "tfjob": (
        tf_config(TFJOB),
        Cluster(
            (
                "mnist-chief-0.team.svc:2222",
                "mnist-worker-0.team.svc:2222",
                "mnist-worker-1.team.svc:2222",
            ),
            2,
        ),
    ),
    "tfjob chief": (
        tf_config(PAI | {"cluster": {"chief": ["c:1"], "worker": ["w:1"]}}, type="chief", index=0),
        Cluster(("c:1", "w:1"), 0),
    ),
    "vertex": (
        tf_config(VERTEX),
        Cluster(
            (
                "cmle-training-chief-b8f1-0:2222",
                "cmle-training-worker-b8f1-0:2222",
                "cmle-training-worker-b8f1-1:2222",
            ),
            1,
        ),
    ),
    "master means chief": (tf_config(MASTER), Cluster(("algo-1:2222", "algo-2:2222"), 0)),
    "worker beside a master": (
        tf_config(MASTER, type="worker", index=0),
        Cluster(("algo-1:2222", "algo-2:2222"), 1),
    ),
    "pai": (
        tf_config(PAI),
        Cluster(("dlc1-worker-0.t16.svc:2222", "dlc1-worker-1.t16.svc:2222"), 0),
    ),
    # The evaluator refuses (below); the others leave it out.
    "beside an evaluator": (tf_config(WITH_EVALUATOR), Cluster(("a:1", "b:1"), 1)),
    "torchrun on one host": (
        STANDALONE,
        Cluster(("127.0.0.1:41001", "127.0.0.1:41002"), 1),  # not the agent's own port
    ),
    "torchrun on one host, without an agent's store": (
        STANDALONE | {"TORCHELASTIC_USE_AGENT_STORE": "False"},
        Cluster(("127.0.0.1:41000", "127.0.0.1:41001"), 1),
    ),
    "torchrun on one host, TFDDL_PORT": (
        STANDALONE | {"TFDDL_PORT": "500"},
        Cluster(("127.0.0.1:500", "127.0.0.1:501"), 1),
    ),
    "open mpi 5": (OPEN_MPI_5, Cluster(TWO_ON_LOOPBACK, 1, "prterun-vm-12786@1")),
    "open mpi 4, TFDDL_HOSTS": (
        OPEN_MPI_4 | {"TFDDL_HOSTS": "a:2,b:2"},
        Cluster(("a:12345", "a:12346", "b:12345", "b:12346"), 3, "2946367489"),
    ),
    "mpich": (MPICH, Cluster(TWO_ON_LOOPBACK, 1)),
    "intel mpi": (INTEL, Cluster(TWO_ON_LOOPBACK, 0, "24290000-33c4-cf11-7e61-0600feae8f34")),
    "mvapich": (MVAPICH, Cluster(TWO_ON_LOOPBACK, 0)),
    "sagemaker": (SAGEMAKER, Cluster(("algo-1:12345", "algo-2:12345"), 1, "train-2026-11-30")),
    # Sorted as strings, as SageMaker documents it.
    "sagemaker, twelve hosts": (
        SAGEMAKER
        | {
            "SM_HOSTS": json.dumps([f"algo-{n}" for n in range(1, 13)]),
            "SM_CURRENT_HOST": "algo-10",
        },
        Cluster(
            tuple(f"algo-{n}:12345" for n in (1, 10, 11, 12, *range(2, 10))), 1, "train-2026-11-30"
        ),
    ),
    "srun": (SRUN, Cluster(SRUN_ADDRESSES, 3, "1.0")),
    "srun --mpi=pmi2": (SRUN_PMI2, Cluster(SRUN_ADDRESSES, 3, "1.0")),
    "srun, and the same numbers by hand": (
        SRUN | {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
        Cluster(SRUN_ADDRESSES, 3, "1.0"),
    ),
    # A size of 1 never overrules one of several: it stays behind in shells and pods.
    "WORLD_SIZE=1 beside srun": (
        SRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        Cluster(SRUN_ADDRESSES, 3, "1.0"),
    ),
    "WORLD_SIZE=1 beside mpirun": (
        OPEN_MPI_5 | {"RANK": "0", "WORLD_SIZE": "1"},
        Cluster(TWO_ON_LOOPBACK, 1, "prterun-vm-12786@1"),
    ),
    "mpirun -np 1 in a step of several": (
        SRUN | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        Cluster(SRUN_ADDRESSES, 3, "1.0"),
    ),
    # mpirun starts its helpers by srun, one per node; processes inherit the helpers' variables.
    "mpirun in an allocation": (
        OPEN_MPI_5 | SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        Cluster(TWO_ON_LOOPBACK, 1, "prterun-vm-12786@1"),
    ),
    # tfddlrun in an allocation, a pod, or under mpirun once per node.
    "TF_CONFIG first": (
        SRUN | SAGEMAKER | TORCHRUN | OPEN_MPI_4 | tf_config(PAI),
        Cluster(("dlc1-worker-0.t16.svc:2222", "dlc1-worker-1.t16.svc:2222"), 0),
    ),
    "an empty TF_CONFIG": (
        OPEN_MPI_5 | {"TF_CONFIG": " "},
        Cluster(TWO_ON_LOOPBACK, 1, "prterun-vm-12786@1"),
    ),
    "TF_CONFIG of one worker in an Indexed Job": (
        {
            "JOB_COMPLETION_INDEX": "3",
            "TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
        },
        Cluster(("a:1",), 0),
    ),
}

PARTIAL = {
    "torchrun": (
        TORCHRUN,
        PartialCluster(
            rank=5,
            size=8,
            master="node1.example.com:29500",
            local_rank=1,
            local_size=4,
            job="job-77",
            source="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    "torchrun with an agent's store": (
        TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"},
        PartialCluster(
            rank=5,
            size=8,
            master="node1.example.com:29501",
            local_rank=1,
            local_size=4,
            source="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    # torchrun starts its processes last: srun --ntasks-per-node=1 torchrun, mpirun -npernode 1.
    "torchrun in a step": (
        SRUN | OPEN_MPI_4 | TORCHRUN,
        PartialCluster(
            rank=5,
            size=8,
            master="node1.example.com:29500",
            local_rank=1,
            local_size=4,
            job="job-77",
            source="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    "pytorchjob": (
        PYTORCHJOB,
        PartialCluster(
            rank=1,
            size=2,
            master="mnist-master-0:23456",
            source="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    "kubeflow trainer": (
        TRAINER,
        PartialCluster(
            rank=2,
            size=3,
            master="job-node-0-0.job:29400",
            local_rank=0,
            local_size=1,
            source="PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT",
        ),
    ),
    "azure ml": (
        AZURE,
        PartialCluster(
            rank=3,
            size=4,
            master="10.0.0.4:6105",
            local_rank=1,
            source="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    "by hand on one host": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
        PartialCluster(
            rank=0, size=2, master="localhost:12345", source="RANK, WORLD_SIZE, MASTER_ADDR"
        ),
    ),
    "open mpi, TFDDL_MASTER": (
        OPEN_MPI_4 | {"TFDDL_MASTER": "hostA", "TFDDL_PORT": "7000"},
        PartialCluster(
            rank=3,
            size=4,
            master="hostA:7000",
            local_rank=1,
            local_size=2,
            job="2946367489",
            source=f"{OMPI_NAMES}, TFDDL_MASTER",
        ),
    ),
    "open mpi, MASTER_ADDR": (
        OPEN_MPI_4 | {"MASTER_ADDR": "fd00::1", "MASTER_PORT": "7001"},
        PartialCluster(
            rank=3,
            size=4,
            master="[fd00::1]:7001",
            local_rank=1,
            local_size=2,
            job="2946367489",
            source=f"{OMPI_NAMES}, MASTER_ADDR, MASTER_PORT",
        ),
    ),
    "intel mpi on two hosts": (
        INTEL | {"PMI_SIZE": "4", "TFDDL_MASTER": "[fd00::1]:99"},
        PartialCluster(
            rank=0,
            size=4,
            master="[fd00::1]:99",
            local_rank=0,
            local_size=2,
            job="24290000-33c4-cf11-7e61-0600feae8f34",
            source=f"{PMI_NAMES}, TFDDL_MASTER",
        ),
    ),
    "pals": (
        PALS | {"TFDDL_MASTER": "x1000c0s0b0n0"},
        PartialCluster(
            rank=13,
            size=24,
            master="x1000c0s0b0n0:12345",
            local_rank=1,
            local_size=12,
            job="8d2a5f1c-3a55-4b6f-9e11-0d7c6a5e4b21",
            source="PMI_RANK, PMI_SIZE, PMI_LOCAL_RANK, PMI_LOCAL_SIZE, TFDDL_MASTER",
        ),
    ),
    "flux": (
        FLUX | {"TFDDL_MASTER": "fd00::1"},
        PartialCluster(
            rank=2,
            size=4,
            master="[fd00::1]:12345",
            local_rank=0,
            job="ƒ2yu3qUNj",
            source="FLUX_TASK_RANK, FLUX_JOB_SIZE, FLUX_TASK_LOCAL_ID, TFDDL_MASTER",
        ),
    ),
}


@pytest.mark.parametrize(
    ("environ", "is_told"),
    [
        (SBATCH, True),
        (SALLOC, True),
        (SALLOC | {"TFDDL_ALONE": "1"}, False),
        (SALLOC | {"SLURM_NTASKS": "1"}, False),
        (SALLOC | {"SLURM_NTASKS": "many"}, False),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        (SALLOC | tf_config(PAI | {"cluster": {"worker": ["a:1"]}}), False),
    ],
)
def test_one_worker_is_told_of_slurm_s_other_tasks(
    environ: dict[str, str], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert detect(environ).size == 1
    text = "Slurm has allocated 4 tasks (SLURM_NTASKS), but srun hasn't started this process"
    assert (text in caplog.text) == is_told


ALONE = {
    "nothing": {"HOME": "/root", "PATH": "/bin"},
    "sbatch": SBATCH,
    "salloc": SALLOC,
    "a job array": {"SLURM_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "9"},
    "srun of one task": SRUN
    | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0"},
    "mpirun -np 1": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    "torchrun of one": TORCHRUN
    | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    "one pod of pytorchjob": PYTORCHJOB
    | {"RANK": "0", "WORLD_SIZE": "1", "PET_NNODES": "1", "PET_NODE_RANK": "0"},
    "one container of sagemaker": SAGEMAKER
    | {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"},
    "the first pod of an Indexed Job": {"JOB_COMPLETION_INDEX": "0"},
    # Common words, with other meanings.
    "RANK is no number": {"RANK": "captain", "LOCAL_RANK": "-"},
    "asked for, and TF_CONFIG of one": {
        "TFDDL_ALONE": "1",
        **tf_config({"cluster": {"worker": ["a:1"]}}, type="worker", index=0),
    },
    "an allocation with a step's number": {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},
    "asked for": {"TFDDL_ALONE": "1", **OPEN_MPI_4, **SAGEMAKER, "JOB_COMPLETION_INDEX": "4"},
}

# What speaks of others without saying where they are, or of two things at once.
REFUSED = {
    "evaluator": (
        tf_config(WITH_EVALUATOR, type="evaluator", index=0),
        "TF_CONFIG makes this process an evaluator, and tfddl has none: the workers evaluate "
        "together, in fit(validation_data=…) and evaluate(). They train without this process. "
        "HINT: leave the evaluator out of the job",
    ),
    # Outside of the cluster, as Kubeflow and Vertex AI write it.
    "evaluator outside": (
        tf_config(TFJOB, type="evaluator", index=0),
        "TF_CONFIG makes this process an evaluator, and tfddl has none: the workers evaluate "
        "together, in fit(validation_data=…) and evaluate(). They train without this process. "
        "HINT: leave the evaluator out of the job",
    ),
    "parameter servers": (
        tf_config({"cluster": {"worker": ["a:1"], "ps": ["b:1", "c:1"]}}, type="worker", index=0),
        "TF_CONFIG names 2 parameter servers (tasks of type 'ps'), and tfddl has none: workers "
        "average their gradients among themselves. HINT: set the replicas of 'ps' to 0, and make "
        "them workers if you like",
    ),
    "a parameter server": (
        tf_config({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}, type="ps", index=0),
        "TF_CONFIG makes this process a parameter server, and tfddl has none: workers average "
        "their gradients among themselves. HINT: set the replicas of 'ps' to 0",
    ),
    "TF_CONFIG of one beside mpirun": (
        OPEN_MPI_5 | tf_config({"cluster": {"worker": ["a:1"]}}, type="worker", index=0),
        f"TF_CONFIG names this worker alone, but Open MPI started 2 ({OMPI_NAMES}). HINT: unset "
        "TF_CONFIG to train together, or set TFDDL_ALONE=1 to train alone",
    ),
    "TF_CONFIG of one beside torchrun": (
        TORCHRUN | tf_config({"cluster": {"worker": ["a:1"]}}, type="worker", index=0),
        "TF_CONFIG names this worker alone, but torchrun started 8 (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE). HINT: unset TF_CONFIG to train together, or set TFDDL_ALONE=1 to train "
        "alone",
    ),
    "alone, and TF_CONFIG": (
        {"TFDDL_ALONE": "1", **tf_config(PAI)},
        "TFDDL_ALONE is 1, but TF_CONFIG names 2 workers. HINT: unset one of them",
    ),
    "alone, perhaps": (
        {"TFDDL_ALONE": "yes"},
        "TFDDL_ALONE is 'yes'; expected 1 (train alone), 0 or nothing",
    ),
    "mpirun on two hosts": (
        OPEN_MPI_4,
        "Open MPI started 4 workers, 2 of them on this host, and doesn't say where the others "
        "are. HINT: pip install 'tfddl[mpi]' on every host; or mpirun -x TFDDL_MASTER=hostA …, "
        "the host of rank 0; or mpirun -x TFDDL_HOSTS=hostA:2,hostB:2 …, all hosts with their "
        "slots (mpiexec -genv NAME VALUE in MPICH and Intel MPI)",
    ),
    "a loopback master": (
        OPEN_MPI_4 | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        "MASTER_ADDR, MASTER_PORT gives localhost:29500 as the address of rank 0, which on each "
        f"host means that host, but only 2 of 4 workers are on this one ({OMPI_NAMES}). HINT: the "
        "name or IP address of rank 0's host",
    ),
    "no master": (
        {"RANK": "1", "WORLD_SIZE": "2"},
        "by RANK, WORLD_SIZE there are 2 workers, but no address of rank 0 is set; expected "
        "MASTER_ADDR and MASTER_PORT, or TFDDL_MASTER. HINT: TFDDL_MASTER=hostA in every process",
    ),
    "no master port": (
        PYTORCHJOB | {"MASTER_PORT": "99999"},
        "MASTER_PORT is '99999'; expected a number in 1..65535",
    ),
    "WORLD_SIZE without RANK": (
        {"WORLD_SIZE": "4", "MASTER_ADDR": "a"},
        "WORLD_SIZE is 4: this process was started beside others, and its environment doesn't "
        "say how to find them. It doesn't train alone unless told to. HINT: set RANK, "
        "WORLD_SIZE, MASTER_ADDR and MASTER_PORT in every process; or, where it is to train "
        "alone, set TFDDL_ALONE=1 or unset WORLD_SIZE",
    ),
    "RANK against srun": (
        SRUN | {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "a"},
        "RANK, WORLD_SIZE say rank 0 of 8, but Slurm started this process as rank 3 of 4 "
        "(SLURM_STEP_NUM_TASKS, SLURM_PROCID). HINT: unset RANK, WORLD_SIZE, if they are left from "
        "something else",
    ),
    "RANK against mpirun": (
        OPEN_MPI_5 | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
        "RANK, WORLD_SIZE say rank 0 of 2, but Open MPI started this process as rank 1 of 2 "
        f"({OMPI_NAMES}). HINT: unset RANK, WORLD_SIZE, if they are left from something else",
    ),
    "several workers per pod": (
        PYTORCHJOB | {"PET_NPROC_PER_NODE": "4", "WORLD_SIZE": "8"},
        "PET_NPROC_PER_NODE asks for 4 workers in this pod, but this is a single process, which "
        "no launcher has started. HINT: run `tfddlrun python train.py` in the pod, or "
        "ask for one worker per node",
    ),
    "several workers per node": (
        TRAINER | {"PET_NPROC_PER_NODE": "2"},
        "PET_NPROC_PER_NODE asks for 2 workers in this pod, but this is a single process, which "
        "no launcher has started. HINT: run `tfddlrun python train.py` in the pod, or "
        "ask for one worker per node",
    ),
    "an elastic number of nodes": (
        {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "a-worker-0:23456"},
        "PET_NNODES is '1:4', a number that changes while the job runs; expected one number. HINT: "
        "give the job as many nodes at least as at most",
    ),
    "torchrun --standalone on each of two hosts": (
        SAGEMAKER | STANDALONE,
        "torchrun started all of its 2 workers on this host (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE), but was itself started 2 times, by SM_HOSTS. Each group would train "
        "by itself. HINT: one job over all hosts, as by tfddlrun on each of them; or unset "
        "SM_HOSTS, to train separately",
    ),
    "torchrun --standalone in each task": (
        SRUN | STANDALONE,
        "torchrun started all of its 2 workers on this host (RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE), but was itself started 4 times, by SLURM_STEP_NUM_TASKS, SLURM_PROCID. "
        "Each group would train by itself. HINT: one job over all hosts, as by tfddlrun "
        "on each of them; or unset SLURM_STEP_NUM_TASKS, SLURM_PROCID, to train separately",
    ),
    "a stranger to SageMaker": (
        SAGEMAKER | {"SM_CURRENT_HOST": "algo-3"},
        "SM_CURRENT_HOST is 'algo-3', which isn't among SM_HOSTS, '[\"algo-1\",\"algo-2\"]'",
    ),
    "SM_HOSTS is no list": (
        SAGEMAKER | {"SM_HOSTS": '{"algo-1": 1}'},
        'SM_HOSTS is \'{"algo-1": 1}\'; expected names like ["algo-1","algo-2"]',
    ),
    "a host twice": (
        SAGEMAKER | {"SM_HOSTS": '["algo-2","algo-2"]'},
        'SM_HOSTS names a host twice: \'["algo-2","algo-2"]\'',
    ),
    "numbers that contradict": (
        OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"},
        "Open MPI's variables: local rank is 1 among 3 workers of a host, of 2 in all; they "
        f"contradict each other ({OMPI_NAMES})",
    ),
}

# A sign of others, alone: each names its variable, and how to train alone all the same.
SIGNS = {
    "PMIX_RANK": "1",  # srun --mpi=pmix, without Slurm's variables
    "PALS_RANKID": "7",
    "JSM_NAMESPACE_SIZE": "2",
    "JSM_NAMESPACE_RANK": "1",
    "HOROVOD_SIZE": "2000000",  # Whatever it is, it is more than one.
    "HOROVOD_RANK": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "NODE_RANK": "1",
    "PET_NODE_RANK": "1",
    "JOB_COMPLETION_INDEX": "1",
    "TFDDL_NNODES": "2",
}


@pytest.mark.parametrize(("environ", "expected"), WHOLE.values(), ids=WHOLE)
def test_all_addresses_are_known(environ: dict[str, str], expected: Cluster) -> None:
    assert detect(environ) == expected


@pytest.mark.parametrize(("environ", "expected"), PARTIAL.values(), ids=PARTIAL)
def test_rank_0_collects_the_addresses(environ: dict[str, str], expected: PartialCluster) -> None:
    assert detect(environ) == expected


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE)
def test_single_workers(environ: dict[str, str]) -> None:
    assert detect(environ) == Cluster.single_worker()


@pytest.mark.parametrize(("environ", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError, match=f"^{re.escape(message)}$"):
        detect(environ)


@pytest.mark.parametrize(("name", "value"), SIGNS.items())
def test_indicators_of_others_refuse(name: str, value: str) -> None:
    message = (
        f"{name} is {value}: this process was started beside others, and its environment doesn't "
        "say how to find them. It doesn't train alone unless told to. HINT: "
    )
    end = f"; or, where it is to train alone, set TFDDL_ALONE=1 or unset {name}"
    with pytest.raises(ClusterError, match=f"^{re.escape(message)}.*{re.escape(end)}$"):
        detect({name: value})
    assert detect({name: value, "TFDDL_ALONE": "1"}) == Cluster.single_worker()


@pytest.mark.parametrize(
    "hosts", ["[]", '["algo-1", ""]', '["algo-1", 2]', json.dumps([f"h{n}" for n in range(65537)])]
)
def test_sagemaker_hosts_that_are_refused(hosts: str) -> None:
    with pytest.raises(ClusterError, match='SM_HOSTS is .*; expected names like ."algo-1"'):
        detect(SAGEMAKER | {"SM_HOSTS": hosts})


def test_as_many_hosts_of_sagemaker_as_a_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sagemaker, "MAX_CLUSTER_SIZE", 2)
    assert detect(SAGEMAKER).size == 2
    with pytest.raises(ClusterError, match="SM_HOSTS is "):
        detect(SAGEMAKER | {"SM_HOSTS": '["algo-1", "algo-2", "algo-3"]'})


def test_sagemaker_gpus_and_interface() -> None:
    found = sagemaker.find(SAGEMAKER)
    assert found is not None
    assert (found.hosts, found.index) == (("algo-1", "algo-2"), 1)
    without = {name: value for name, value in SAGEMAKER.items() if name != "SM_NUM_GPUS"}
    for environ, num_gpus in ((without, 0), (without | {"SM_NUM_GPUS": "8"}, 8)):
        container = sagemaker.find(environ)
        assert container is not None
        assert container.num_gpus == num_gpus
    name = "SM_NETWORK_INTERFACE_NAME"
    assert sagemaker.read_network_interface({name: "eth0"}) == "eth0"
    assert sagemaker.read_network_interface({name: ""}) is None
    assert sagemaker.read_network_interface({}) is None


def test_which_rank_counts() -> None:
    """A process's own, or that of its whole host."""
    assert torchrun.is_per_process({"LOCAL_RANK": "0"})
    assert torchrun.is_per_process({"TORCHELASTIC_RUN_ID": "none"})
    assert not torchrun.is_per_process({"RANK": "0", "WORLD_SIZE": "2"})


def test_pmi_counts_as_slurm_only_where_both_agree() -> None:
    task = SRUN_PMI2 | {"PMI_RANK": "0", "PMI_SIZE": "3"}
    assert detect_source(SRUN_PMI2).source is Source.SLURM
    assert detect_source(task).source is Source.MPI


def test_all_ranks_agree() -> None:
    """Each rank of a launcher sees the same addresses, and itself in its own place."""
    for rank in range(4):
        local, node = rank % 2, rank // 2
        environ = SRUN | {
            "SLURM_PROCID": f"{rank}",
            "SLURM_LOCALID": f"{local}",
            "SLURM_NODEID": f"{node}",
        }
        assert detect(environ) == Cluster(SRUN_ADDRESSES, rank, "1.0")


def test_nothing_is_written() -> None:
    for environ, _ in (*WHOLE.values(), *PARTIAL.values()):
        before = dict(environ)
        detect(environ)
        assert environ == before
