"""Which workers take part in a job: read from the environment, checked, written back.

Loads no TensorFlow.

Usage::

    import os

    from tfddl._src import cluster

    me = cluster.detect(os.environ)  # TF_CONFIG, torchrun, MPI, Slurm, …; else one worker
    print(me.rank, me.size)
    if isinstance(me, cluster.Cluster):  # else the rendezvous collects the addresses
        print(me.local_rank, me.hosts)
        text = cluster.tf_config.render(me)  # the TF_CONFIG that says the same
"""

from tfddl._src.cluster.cluster import Cluster, PartialCluster, join_address
from tfddl._src.cluster.detection import detect
from tfddl._src.cluster.environment_variables import CORES, START_TIMEOUT, read_start_timeout
from tfddl._src.cluster.environments import mpi, sagemaker, slurm, tf_config
from tfddl._src.cluster.nodes import NodeRank, detect_nodes
from tfddl._src.cluster.parsing import parse_int, parse_json
from tfddl._src.cluster.secret import SECRET, read_secret
from tfddl._src.cluster.worker_cpus import read_cores

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
    "sagemaker",
    "slurm",
    "tf_config",
]
