"""Networks of our own, beside TensorFlow's: memory within a host, TCP between hosts."""

import atexit
import dataclasses
import logging
import sys
from collections.abc import Sequence

from tfddl._src.cluster import Cluster
from tfddl._src.comm import native
from tfddl._src.cpu import has_own_core
from tfddl._src.rendezvous import Rendezvous
from tfddl._src.runtime.options import Options
from tfddl.errors import CommunicationError

_AFTER_INSPECTOR_S = 5.0
"""How much longer than the stall inspector the workers of one of several hosts wait for each
other."""

_REACH_S = 15.0
"""How long to try to reach other hosts; a firewall may swallow what is sent."""

_LOG = logging.getLogger("tfddl")


def listen_for_hosts(rank: int) -> native.TcpConnector | None:
    """Listens for connections of the other hosts.

    Args:
        rank: This worker's.

    Returns:
        None if it can't be done; the log says why.
    """
    try:
        return native.TcpConnector(rank)
    except CommunicationError as error:
        _LOG.warning("rank %d: %s", rank, error)
        return None


@dataclasses.dataclass(frozen=True)
class NativeSetup:
    """Connects one worker to the others by networks of our own."""

    rendezvous: Rendezvous
    options: Options

    @property
    def cluster(self) -> Cluster:
        """All workers of the job."""
        return self.rendezvous.cluster

    def share_memory(self) -> native.Network | None:
        """Connects the workers of this host. All of them must call it together.

        Returns:
            None if it can't be done; the log says why.
        """
        cluster = self.cluster
        config = native.PeerConfig(
            # Hosts may be names of one machine.
            job=f"{self.rendezvous.secret.hex()} {cluster.host}",
            secret=self.rendezvous.secret,
            rank=cluster.local_rank,
            size=cluster.local_size,
            global_ranks=cluster.ranks_of_hosts[cluster.hosts.index(cluster.host)],
            timeouts=self._timeouts,
            spins=self._spins,
        )
        try:
            return _announcing_exit(native.connect_local(config))
        except CommunicationError as error:
            _LOG.warning("rank %d can't share memory: %s", cluster.rank, error)
            return None

    def reach_hosts(
        self, listener: native.TcpConnector, ports: Sequence[int]
    ) -> native.Network | None:
        """Connects to workers of other hosts. All ranks must call it together.

        Args:
            listener: This worker's.
            ports: Of each rank's listener.

        Returns:
            None if it can't be done; the log says why.
        """
        cluster = self.cluster
        host_of = {rank: h for h, ranks in enumerate(cluster.ranks_of_hosts) for rank in ranks}
        hosts = [cluster.hosts[host_of[rank]] for rank in range(cluster.size)]
        addresses = [native.Address(*at) for at in zip(hosts, ports, strict=True)]
        listener.start(addresses, self.rendezvous.secret)
        config = native.PeerConfig(
            job="",
            rank=cluster.rank,
            size=cluster.size,
            connect_timeout_s=_REACH_S,
            timeouts=self._timeouts,
            spins=self._spins,
        )
        leaders = sorted(ranks[0] for ranks in cluster.ranks_of_hosts)
        try:
            return _announcing_exit(native.connect_hosts(config, listener, leaders))
        except CommunicationError as error:
            _LOG.warning("rank %d can't speak to other hosts by itself: %s", cluster.rank, error)
            return None

    @property
    def _spins(self) -> bool:
        return has_own_core(self.cluster.local_size, own=self.options.cores)

    @property
    def _timeouts(self) -> native.Timeouts:
        """Of two levels, the stall inspector gives up first: it knows who is missing elsewhere."""
        timeouts = self.options.timeouts
        sizes = [len(ranks) for ranks in self.cluster.ranks_of_hosts]
        if len(sizes) == 1 or max(sizes) == 1 or not timeouts.abort_s:
            return timeouts
        return dataclasses.replace(timeouts, abort_s=timeouts.abort_s + _AFTER_INSPECTOR_S)


def _announcing_exit(network: native.Network) -> native.Network:
    """Lets a network tell the other workers, in the end, how the script of this one has ended."""

    def announce() -> None:
        # Python sets it when it has printed an uncaught exception, before it calls functions of
        # atexit.
        network.mesh.announce_exit(native.describe_exit(getattr(sys, "last_value", None)))

    atexit.register(announce)
    return network
