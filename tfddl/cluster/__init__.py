"""Who takes part in a job: read from the environment, checked, written back.

Loads no TensorFlow.

Usage::

    import os

    from tfddl import cluster

    me = cluster.detect(os.environ)  # TF_CONFIG, Open MPI, Slurm, else one worker alone
    print(me.rank, me.size, me.local_rank, me.hosts)
    text = cluster.tf_config.render(me)  # the TF_CONFIG that says the same
"""

from tfddl.cluster import openmpi, rendezvous, slurm, tf_config
from tfddl.cluster.cluster import Cluster, PartialCluster, join_address
from tfddl.cluster.detect import detect
from tfddl.cluster.nodes import NodeRank, detect_nodes
from tfddl.cluster.variables import (
    CORES,
    SECRET,
    START_TIMEOUT,
    read_cores,
    read_start_timeout,
)

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
    "openmpi",
    "read_cores",
    "read_start_timeout",
    "rendezvous",
    "slurm",
    "tf_config",
]
