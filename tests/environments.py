"""What engines and launchers set, in the shapes that they document or were seen to set."""

import json
from collections.abc import Mapping

# Kubeflow's TFJob, as `genTFConfigJSONStr` of its training operator writes it.
TFJOB = {
    "cluster": {
        "chief": ["mnist-chief-0.team.svc:2222"],
        "ps": [],
        "worker": ["mnist-worker-0.team.svc:2222", "mnist-worker-1.team.svc:2222"],
    },
    "task": {"type": "worker", "index": 1},
    "environment": "cloud",
}
# Google Cloud, "TF_CONFIG and distributed training", its example without the parameter server.
VERTEX = {
    "cluster": {
        "chief": ["cmle-training-chief-b8f1-0:2222"],
        "worker": ["cmle-training-worker-b8f1-0:2222", "cmle-training-worker-b8f1-1:2222"],
    },
    "environment": "cloud",
    "job": {"workerCount": "2", "masterType": "standard"},
    "task": {"cloud": "a1b2c3", "index": 0, "trial": "1", "type": "worker"},
}
# TensorFlow 1 on SageMaker and AI Platform.
MASTER = {
    "cluster": {"master": ["algo-1:2222"], "worker": ["algo-2:2222"]},
    "environment": "cloud",
    "task": {"type": "master", "index": 0},
}
# Alibaba PAI, "Built-in environment variables".
PAI = {
    "cluster": {"worker": ["dlc1-worker-0.t16.svc:2222", "dlc1-worker-1.t16.svc:2222"]},
    "task": {"type": "worker", "index": 0},
}
WITH_EVALUATOR = {
    "cluster": {"worker": ["a:1", "b:1"], "evaluator": ["c:1"]},
    "task": {"type": "worker", "index": 1},
}


def tf_config(config: Mapping[str, object], **task: object) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({**config, **({"task": task} if task else {})})}


# torchrun, "Environment Variables": of one of 8 processes on 2 nodes.
TORCHRUN = {
    "LOCAL_RANK": "1",
    "RANK": "5",
    "GROUP_RANK": "1",
    "ROLE_RANK": "5",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_WORLD_SIZE": "8",
    "MASTER_ADDR": "node1.example.com",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "job-77",
}
# torchrun --standalone --nproc-per-node 2: its agent keeps MASTER_PORT.
STANDALONE = TORCHRUN | {
    "LOCAL_RANK": "1",
    "RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "41000",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
# Kubeflow's PyTorchJob, `setPodEnv` of its training operator: one master, one worker.
PYTORCHJOB = {
    "PYTHONUNBUFFERED": "0",
    "MASTER_ADDR": "mnist-master-0",
    "MASTER_PORT": "23456",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "mnist-master-0",
    "PET_MASTER_PORT": "23456",
}
# Kubeflow Trainer, `EnforceMLPolicy` of its torch plugin.
TRAINER = {
    "PET_NNODES": "3",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
    "JOB_COMPLETION_INDEX": "2",
}
# Azure Machine Learning, "Distributed GPU training guide", PyTorch with two processes per node.
AZURE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.4",
    "MASTER_PORT": "6105",
    "LOCAL_RANK": "1",
    "NODE_RANK": "1",
}
# Open MPI 4.1.4 (Debian 12), `mpirun -np 4 -H 10.77.0.1:2,10.77.0.2:2`, as seen on rank 3.
OPEN_MPI_4 = {
    "OMPI_APP_CTX_NUM_PROCS": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_MCA_ess_base_jobid": "2946367489",
    "OMPI_UNIVERSE_SIZE": "4",
    "PMIX_NAMESPACE": "2946367489",
    "PMIX_RANK": "3",
}
# Open MPI 5.0.11 (PyPI), `mpirun -np 2`, as seen on rank 1.
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_VERSION": "5.0.11",
    "OMPI_WORLD_LOCAL_SIZE": "2",
    "OMPI_WORLD_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-vm-12786@1",
    "PMIX_RANK": "1",
    "PRTE_LAUNCHED": "1",
}
# MPICH 5.0.2 (PyPI), `mpiexec -np 2`, as seen on rank 1.
MPICH = {
    "HYDI_CONTROL_FD": "8",
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "1",
    "PMI_FD": "12",
    "PMI_HOSTNAME": "vm",
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
}
# Intel MPI 2021.18 (PyPI), `mpiexec.hydra -np 2`, as seen on rank 0.
INTEL = {
    "I_MPI_HYDRA_UUID": "24290000-33c4-cf11-7e61-0600feae8f34",
    "I_MPI_PIN_INFO": "0",
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "0",
    "PMI_FD": "11",
    "PMI_RANK": "0",
    "PMI_SIZE": "2",
}
# HPE Cray PALS, the names of Slurm's plugin mpi/cray_shasta and of ALCF's user guide.
PALS = {
    "PALS_APID": "8d2a5f1c-3a55-4b6f-9e11-0d7c6a5e4b21",
    "PALS_RANKID": "13",
    "PALS_NODEID": "1",
    "PALS_LOCAL_RANKID": "1",
    "PMI_RANK": "13",
    "PMI_SIZE": "24",
    "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "12",
}
# MVAPICH2 user guide, "MV2_COMM_WORLD_…".
MVAPICH = {
    "MV2_COMM_WORLD_LOCAL_RANK": "0",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
    "MV2_COMM_WORLD_RANK": "0",
    "MV2_COMM_WORLD_SIZE": "2",
}
# flux-environment(7).
FLUX = {
    "FLUX_TASK_RANK": "2",
    "FLUX_TASK_LOCAL_ID": "0",
    "FLUX_JOB_SIZE": "4",
    "FLUX_JOB_NNODES": "2",
    "FLUX_JOB_ID": "ƒ2yu3qUNj",
}
# sagemaker-training-toolkit, "Environment variables".
SAGEMAKER = {
    "SM_CURRENT_HOST": "algo-2",
    "SM_HOSTS": '["algo-1","algo-2"]',
    "SM_NUM_GPUS": "1",
    "SM_NUM_CPUS": "32",
    "SM_NETWORK_INTERFACE_NAME": "ethwe",
    "SM_RESOURCE_CONFIG": '{"current_host":"algo-2","hosts":["algo-1","algo-2"]}',
    "TRAINING_JOB_NAME": "train-2026-11-30",
}
# Slurm 22.05.8 (Debian 12), `srun -N2 --ntasks-per-node=2`, as seen on rank 3.
SRUN = {
    "SLURM_CPUS_ON_NODE": "2",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1,0x2",
    "SLURM_CPU_BIND_LIST": "0x1,0x2",
    "SLURM_CPU_BIND_TYPE": "mask_cpu:",
    "SLURM_GTIDS": "2,3",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# The same, with `--mpi=pmi2`, on one node.
SRUN_PMI2 = SRUN | {
    "PMI_FD": "13",
    "PMI_JOBID": "1.0",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "SLURM_MPI_TYPE": "pmi2",
}
# The script of `sbatch -N2 --ntasks-per-node=2`, and a shell of `salloc -N2 -n4`.
SBATCH = {
    "SLURM_JOB_ID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}
