"""All workers join the job, and compare what they were asked for, before TensorFlow starts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src import rendezvous
from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.comm.native import TcpConnector, format_ranks
from tfddl._src.comm.native.posted_arrays import SLOTS_PER_WORKER, max_posted_bytes
from tfddl._src.comm.process_group import InterHostTransport, Transport
from tfddl._src.rendezvous import Rendezvous
from tfddl._src.rendezvous.endpoint import MAX_PENDING
from tfddl._src.rlimits import require_descriptors
from tfddl._src.runtime.devices import (
    TOO_LATE,
    choose_transport,
    identity_of_gpu,
    operations_have_run,
    resolve_transport,
)
from tfddl._src.runtime.gpu_discovery import check_gpu_sharing, compare_transports
from tfddl._src.runtime.native_setup import listen_for_hosts
from tfddl._src.runtime.options import Options
from tfddl.errors import DisagreementError, StartError


@dataclasses.dataclass(frozen=True)
class Choice:
    """What decides by which way gradients go."""

    options: Options
    """What was asked for."""

    transport: Transport
    """Which of TensorFlow's collectives there would be."""

    @property
    def has_own_networks(self) -> bool:
        """Whether gradients may go otherwise than by TensorFlow's collectives."""
        return self.options.collective is None and self.transport is Transport.RING

    def wants_shared_memory(self, cluster: Cluster) -> bool:
        """Whether the workers of each host are to share memory."""
        return self.has_own_networks and max(map(len, cluster.ranks_of_hosts)) > 1

    def wants_tcp(self, cluster: Cluster | PartialCluster) -> bool:
        """Whether hosts are to speak TCP; True, too, where their number isn't known yet."""
        if not self.has_own_networks or self.options.between_hosts is InterHostTransport.RING:
            return False
        return isinstance(cluster, PartialCluster) or len(cluster.hosts) > 1

    def needs_strategy(self, cluster: Cluster) -> bool:
        """Whether TensorFlow's servers are needed for certain."""
        is_own = self.has_own_networks and len(cluster.hosts) == 1
        return not (is_own or self.wants_tcp(cluster))


@dataclasses.dataclass(frozen=True)
class JoinedJob:
    """What a worker has once all workers have joined the job."""

    rendezvous: Rendezvous
    choice: Choice
    listener: TcpConnector | None
    """Where the other hosts connect to this worker, if they may."""

    def close(self) -> None:
        """Closes all connections."""
        self.rendezvous.close()
        if self.listener is not None:
            self.listener.close()


def join_job(cluster: Cluster | PartialCluster, options: Options, secret: bytes) -> JoinedJob:
    """Joins the job. All ranks must call it together.

    What keeps this worker from starting is reported to the others, too: none waits for it.

    Args:
        cluster: Who takes part, at least two.
        options: What was asked for.
        secret: See `rendezvous.join`.

    Raises:
        StartError: This worker, or another one, can't start; or not all have joined in time.
        DisagreementError: They have different descriptions of the cluster, or different options.
        ClusterError: See `rendezvous.join`.
    """
    problem = ""
    try:
        choice = Choice(options, resolve_transport(cluster, options))
        _require_descriptors(cluster)
    except StartError as error:
        # It joins all the same, to tell the others why they can't start.
        choice, problem = Choice(options, Transport.RING), str(error)
    listener = None
    if not problem and choice.wants_tcp(cluster):
        listener = listen_for_hosts(cluster.rank)
    facts = {
        "collective": str(options.collective or "auto"),
        "between_hosts": str(options.between_hosts or "auto"),
        "resolved": str(choice.transport),
        "port": listener.port if listener is not None else 0,
        "num_gpus": len(tf.config.list_physical_devices("GPU")),
        "gpu": identity_of_gpu(cluster),
        "has_run": operations_have_run(),
        "problem": problem,
    }
    try:
        found = rendezvous.join(
            cluster, secret=secret, metadata=facts, timeout_s=options.rendezvous_timeout_s
        )
    except BaseException:
        if listener is not None:
            listener.close()
        raise
    job = JoinedJob(found, choice, listener)
    try:
        compare(found.cluster, found.metadata)
        late = [rank for rank, fact in enumerate(found.metadata) if fact["has_run"]]
        if late and choice.needs_strategy(found.cluster):
            raise StartError(f"{format_ranks(late)} can't start: {TOO_LATE}")
    except BaseException:
        job.close()
        raise
    return job


def compare(cluster: Cluster, facts: Sequence[Mapping[str, Any]]) -> None:
    """Makes sure that all ranks can start, and were asked for the same.

    Args:
        cluster: Who they are.
        facts: What each has told, in rank order.

    Raises:
        StartError: Some can't.
        DisagreementError: They differ.
    """
    for rank, fact in enumerate(facts):
        if fact["problem"]:
            raise StartError(f"rank {rank} can't start: {fact['problem']}")
    for name in ("collective", "between_hosts"):
        values = [fact[name] for fact in facts]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise DisagreementError(
                f"tfddl.init got {name}={values[0]!r} on rank 0, but {name}={values[other]!r} on "
                f"rank {other}. HINT: give all ranks the same."
            )
    resolved = [Transport(fact["resolved"]) for fact in facts]
    compare_transports(resolved, cluster.hosts_by_rank)
    check_gpu_sharing(resolved[0], [fact["gpu"] for fact in facts], cluster.ranks_of_hosts)
    for ranks in cluster.ranks_of_hosts:
        for rank in ranks:
            # Again: not every launcher has said how many workers a host has.
            choose_transport(None, num_gpus=facts[rank]["num_gpus"], local_size=len(ranks))


def _require_descriptors(cluster: Cluster | PartialCluster) -> None:
    """Makes sure that there can be a socket to each worker, as some operations need it.

    Not for ever: process sets, and operations in several threads, take more memory of others.

    Raises:
        StartError: So many descriptors are not to be had.
    """
    # To each a link, and a stream or its memory; to rank 0 one more, by which it has come.
    each = 3 if cluster.rank == 0 else 2
    local_size = cluster.local_size or cluster.size
    slots = SLOTS_PER_WORKER * local_size if max_posted_bytes(local_size) else 0
    require_descriptors(
        each * cluster.size + slots + MAX_PENDING, f"links to {cluster.size - 1} other workers"
    )
