"""How the workers of a job find each other, compare what they were told, and share short texts.

Rank 0 is the server. It listens at the first address of the job: on a Unix socket where all workers
are on one host, otherwise by TCP. Every other rank connects as a client, and sends its rank, the
addresses that it was told, and *metadata* about itself. Once all have connected, each gets the
metadata of all, and a secret that only they have, for connections that they make later. No
TensorFlow is needed for it.

The connections stay. Through them every rank can read and write a small *key-value store*, whatever
the others are doing: what a rank waits in, or that it records a timeline.

Who may connect is decided by `rendezvous.handshake`: clients that know the job's secret, where the
launcher has made one (TFDDL_SECRET); otherwise clients that speak the protocol and, on one host,
belong to the same user. Then rank, job and addresses are compared, and no rank can connect twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from tfddl._src.cluster.cluster import Cluster, PartialCluster
from tfddl._src.cluster.ports import is_free
from tfddl._src.rendezvous.base import (
    PORT_TAKEN,
    WARN_S,
    Identity,
    Rendezvous,
    port_taken_error,
    split_address,
)
from tfddl._src.rendezvous.client import connect
from tfddl._src.rendezvous.server import SECRET_BYTES, serve
from tfddl._src.wait_timer import WaitTimer

__all__ = ["PORT_TAKEN", "SECRET_BYTES", "Rendezvous", "check_port_free", "join"]


def join(
    cluster: Cluster | PartialCluster,
    *,
    secret: bytes = b"",
    metadata: Mapping[str, Any],
    timeout_s: float,
    warn_s: float = WARN_S,
) -> Rendezvous:
    """Returns once all workers have connected. All ranks must call it together.

    Args:
        cluster: who takes part, as this worker was told; at least two workers.
        secret: what the launcher has told all workers and nobody else; b"" if it hasn't.
        metadata: about this worker, for all others: a JSON object.
        timeout_s: seconds after which to give up; 0 waits for ever.
        warn_s: seconds between warnings that say who is missing.

    Raises:
        StartError: another program has the port, or not all workers have connected in time.
        DisagreementError: the workers have different descriptions of the cluster, or two claim
            one rank.
        ClusterError: where the workers are contradicts what their launcher said.
    """
    timer = WaitTimer(warn_s=warn_s, abort_s=timeout_s)
    identity = Identity.of(cluster)
    run = serve if cluster.rank == 0 else connect
    return run(identity, secret, dict(metadata), timer)


def check_port_free(cluster: Cluster) -> None:
    """Makes sure that TensorFlow's server can have this worker's port.

    Raises:
        StartError: another program has it.
    """
    host, port = split_address(cluster.addresses[cluster.rank])
    if not is_free(port):
        raise port_taken_error(cluster.rank, host, port, os.strerror(errno.EADDRINUSE))
