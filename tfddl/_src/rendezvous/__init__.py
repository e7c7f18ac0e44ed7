"""The workers of a job find each other, compare what they are about to do, and keep notes.

Rank 0 listens at the first address of the job: by a Unix socket where all workers are on one host,
otherwise by TCP. Every other rank connects to it, says who it is, which addresses it was told, and
some *facts* about itself. Once all have come, each gets the facts of all, and a secret that only
they have, for what they open to each other later. Nothing of TensorFlow is needed for it.

The connections stay. Through them any rank can write *notes*, short texts that all can read,
whatever the others are doing: what a rank waits in, or that it records a timeline.

Who may join is decided by `rendezvous.handshake`: whoever knows the job's secret, where the
launcher has made one (TFDDL_SECRET); otherwise whoever speaks our protocol, or on one host any
process of this user. Then rank, job, and addresses are compared, and no rank can be there twice.
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
    REPORT_S,
    Identity,
    Rendezvous,
    StartDeadline,
    host_and_port,
    port_taken,
)
from tfddl._src.rendezvous.client import visit
from tfddl._src.rendezvous.server import SECRET_BYTES, host

__all__ = ["PORT_TAKEN", "SECRET_BYTES", "Rendezvous", "join", "check_port_free"]


def join(
    cluster: Cluster | PartialCluster,
    *,
    secret: bytes = b"",
    facts: Mapping[str, Any],
    timeout_s: float,
    report_s: float = REPORT_S,
) -> Rendezvous:
    """Returns once all workers have come. All ranks must call it together.

    Args:
        cluster: who takes part, as this worker was told; at least two workers.
        secret: what the launcher has told all workers, and nobody else; b"" if it hasn't.
        facts: what to tell all others: a JSON object.
        timeout_s: after how many seconds to give up; 0 waits for ever.
        report_s: how often to log who is missing.

    Raises:
        StartError: another program has the port, or not all workers came in time.
        DisagreementError: the workers were told of different clusters, or two claim one rank.
        ClusterError: where the workers are contradicts what their launcher said.
    """
    patience = StartDeadline(timeout_s, report_s)
    identity = Identity.of(cluster)
    if cluster.rank == 0:
        return host(identity, secret, dict(facts), patience)
    return visit(identity, secret, dict(facts), patience)


def check_port_free(cluster: Cluster) -> None:
    """Makes sure that TensorFlow's server can have this worker's port.

    Raises:
        StartError: another program has it.
    """
    name, port = host_and_port(cluster.addresses[cluster.rank])
    if not is_free(port):
        raise port_taken(cluster.rank, name, port, os.strerror(errno.EADDRINUSE))
