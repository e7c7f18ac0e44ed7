"""Who takes part in a job: read from the environment, checked, written back.

Loads no TensorFlow.

Usage::

    import os

    from tfddl import cluster

    me = cluster.detect(os.environ)  # TF_CONFIG, torchrun, MPI, SageMaker, Slurm, …; else alone
    print(me.rank, me.size)
    if isinstance(me, cluster.Cluster):  # else rank 0 collects the addresses of the others
        print(me.local_rank, me.hosts)
        text = cluster.tf_config.render(me)  # the TF_CONFIG that says the same
"""

from tfddl.cluster import mpi, rendezvous, sagemaker, slurm, tf_config
from tfddl.cluster.cluster import Cluster, PartialCluster, join_address
from tfddl.cluster.cores import read_cores
from tfddl.cluster.detect import detect
from tfddl.cluster.nodes import NodeRank, detect_nodes
from tfddl.cluster.parsing import parse_int, parse_json
from tfddl.cluster.secret import SECRET, read_secret
from tfddl.cluster.variables import CORES, START_TIMEOUT, read_start_timeout

__all__ = [
    "CORES",
    "SECRET",
    "START_TIMEOUT",
    "Cluster",
    "NodeRank",
    "PartialCluster",
    "detect",
    "detect_nodes",
    "join_address",
    "mpi",
    "parse_int",
    "parse_json",
    "read_cores",
    "read_secret",
    "read_start_timeout",
    "rendezvous",
    "sagemaker",
    "slurm",
    "tf_config",
]
