"""The environment of a worker that runs a Horovod script. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import tfddl
from tfddl._src.cluster import Cluster

# Python runs the `sitecustomize` of this folder at its start. It is named by its path, because
# what is in it is loaded on demand, and belongs to higher layers.
_SITE = Path(tfddl.__file__).parent / "_src" / "horovod" / "site"

MEMBERSHIP = (
    "HOROVOD_HOSTNAME",
    *(f"HOROVOD_{place}{kind}" for place in ("", "LOCAL_", "CROSS_") for kind in ("RANK", "SIZE")),
)
"""Those that say who takes part."""


def variables(cluster: Cluster, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that Horovod's launcher sets, and those that make ``import horovod`` ours.

    Args:
        cluster: who takes part, and which worker this is.
        environment: what the worker inherits; its PYTHONPATH is kept.

    Returns:
        What is to be added to the environment.
    """
    paths = [str(_SITE), *filter(None, [environment.get("PYTHONPATH")])]
    return {
        "HOROVOD_HOSTNAME": cluster.host,
        "HOROVOD_RANK": str(cluster.rank),
        "HOROVOD_SIZE": str(cluster.size),
        "HOROVOD_LOCAL_RANK": str(cluster.local_rank),
        "HOROVOD_LOCAL_SIZE": str(cluster.local_size),
        "HOROVOD_CROSS_RANK": str(cluster.cross_rank),
        "HOROVOD_CROSS_SIZE": str(cluster.cross_size),
        "PYTHONPATH": os.pathsep.join(paths),
    }
