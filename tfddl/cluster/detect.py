"""Finds out who takes part, from whatever started this process."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl.cluster import openmpi, slurm, tf_config
from tfddl.cluster.cluster import Cluster


def detect(environ: Mapping[str, str]) -> Cluster:
    """Reads the cluster from the environment.

    TF_CONFIG comes first, since it is what a user sets by hand; then the variables of Open MPI
    (whose `mpirun` may itself run in a Slurm allocation), then Slurm's. With none of them this
    process is alone. An empty TF_CONFIG counts as not set.

    Args:
        environ: usually `os.environ`, which only doors read.

    Raises:
        ClusterError: what was found is wrong. It is never taken for "alone", or every process
            would train by itself.
    """
    text = environ.get(tf_config.VARIABLE, "")
    if text.strip():
        return tf_config.parse(text)
    return openmpi.parse(environ) or slurm.parse(environ) or Cluster.alone()
