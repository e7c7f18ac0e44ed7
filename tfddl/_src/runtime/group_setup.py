"""How the workers get connected: which transport, and what it needs."""

import dataclasses
import logging
from collections.abc import Callable

import tensorflow as tf

from tfddl._src.cluster import Cluster
from tfddl._src.comm import (
    DEFAULT_PIECES,
    Between,
    Collective,
    HierarchicalGroup,
    NativeGroup,
    ProcessGroup,
    ReduceOp,
    SingleProcessGroup,
    StallInspector,
    TensorFlowGroup,
    TensorFlowGroupOptions,
    TimedTransport,
    TracedTransport,
    Tracer,
    make_tensorflow_group,
    measured_pieces,
)
from tfddl._src.comm.native import Network
from tfddl._src.rendezvous import Rendezvous
from tfddl._src.runtime.native_setup import NativeSetup
from tfddl._src.runtime.options import Options
from tfddl._src.runtime.startup_checks import JoinedJob
from tfddl.errors import StartError

_NO_SHARED_MEMORY = (
    "the workers of a host can't share memory: TensorFlow's collectives take over, which are slower"
)
_NOT_REACHED = (
    "not all workers can reach those of the other hosts by TCP; the warnings of those that can't "
    "say whom. HINT: let the hosts of the job reach all ports of each other, or use "
    "between_hosts='ring', which needs only those of TF_CONFIG."
)
_NOT_READY = (
    "TCP between hosts needs memory that the workers of each host share, and a port to listen on; "
    "some can't have them, and their warnings say why. HINT: mend that, or use "
    "between_hosts='ring'."
)

_YES, _NO = "yes", "no"

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connected:
    """What came of it."""

    transport: ProcessGroup

    pieces: int
    """In how many pieces at once TensorFlow's collectives send what is large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSetup:
    """Connects several workers, once they have met. All of them do so alike."""

    met: JoinedJob
    num_cores: int
    """How many cores this worker may count on."""

    start_strategy: Callable[[str], tf.distribute.Strategy]
    """Starts TensorFlow's servers, where they are needed. It is told why."""

    @property
    def rendezvous(self) -> Rendezvous:
        """Where they have met."""
        return self.met.rendezvous

    @property
    def options(self) -> Options:
        """What was asked for."""
        return self.met.choice.options

    @property
    def collective(self) -> Collective:
        """Which of TensorFlow's collectives there would be."""
        return self.met.choice.collective

    def connect(self, tracer: Tracer) -> Connected:
        """Chooses the transport, and makes sure that it works.

        Args:
            tracer: Is told what travels, while it is on.

        Raises:
            StartError: TensorFlow doesn't order the workers by rank, or its servers are needed and
                can't be started any more; or TCP was asked for, and can't be had.
            StalledError: Not all ranks have come as far as this one in time.
        """
        tracer.notes = self.rendezvous
        roll = StallInspector(self.rendezvous, self.options.patience)
        networks = NativeSetup(self.rendezvous, self.options)
        memory = self._share_memory(networks)
        shares_memory = memory is not None or not self.met.choice.wants_shared_memory(self._cluster)
        hosts = self._reach(networks, shares_memory=shares_memory)
        one = self._one_network(memory, hosts)
        if one is not None:
            roll.close()  # These know by themselves whom they wait for.
            transport = NativeGroup(one, range(one.mesh.size), tracer, overlaps=self.num_cores > 1)
            return Connected(transport=transport, pieces=DEFAULT_PIECES)
        if hosts is None:
            whole = self._strategy_transport(shares_memory=shares_memory)
            roll.watch(whole)
            pieces = self._choose_pieces(whole, only_leaders=memory is not None)
            world: ProcessGroup = TimedTransport(whole.in_pieces(pieces))
        else:
            pieces = DEFAULT_PIECES
            world = NativeGroup(hosts, range(hosts.mesh.size), overlaps=self.num_cores > 1)
            roll.watch(world)
        if memory is not None:
            world = self._in_two_levels(memory, world, roll)
        return Connected(transport=TracedTransport(world, tracer, roll), pieces=pieces)

    @property
    def _cluster(self) -> Cluster:
        return self.rendezvous.cluster

    def _share_memory(self, networks: NativeSetup) -> Network | None:
        """Memory within this host, if all hosts have it."""
        if not self.met.choice.wants_shared_memory(self._cluster):
            return None
        memory = networks.share_memory()
        if self._all("tfddl.init, sharing memory", memory is not None):
            return memory
        _LOG.warning(_NO_SHARED_MEMORY)
        if memory is not None:
            memory.close()
        return None

    def _all(self, what: str, mine: bool) -> bool:
        """Whether all ranks say yes; all call it together."""
        timeout_s = self.options.rendezvous_timeout_s
        texts = self.rendezvous.gather(what, _YES if mine else _NO, timeout_s=timeout_s)
        return all(text == _YES for text in texts)

    def _one_network(self, memory: Network | None, hosts: Network | None) -> Network | None:
        """The network that connects all workers, if there is one."""
        sizes = [len(ranks) for ranks in self._cluster.ranks_of_hosts]
        if len(sizes) == 1:
            return memory
        return hosts if max(sizes) == 1 else None

    def _in_two_levels(
        self, memory: Network, world: ProcessGroup, roll: StallInspector
    ) -> ProcessGroup:
        local: ProcessGroup = SingleProcessGroup()
        if memory.mesh.size > 1:
            overlaps = self.num_cores > 1 or world.overlaps
            local = NativeGroup(memory, range(memory.mesh.size), overlaps=overlaps)
        roll.watch(local)
        return HierarchicalGroup(self._cluster.rank, self._cluster.ranks_of_hosts, local, world)

    def _strategy_transport(self, *, shares_memory: bool) -> TensorFlowGroup:
        why = f"collectives go through TensorFlow's {self.collective.name}"
        if self.options.collective is None and not shares_memory:
            why += ", since the workers of a host can't share memory"
        options = TensorFlowGroupOptions(
            device=self.start_strategy(why).extended.worker_devices[0],
            collective=self.collective,
            timeout_s=2 * self.options.timeout_s,  # The last resort: the roll knows more.
        )
        whole = make_tensorflow_group(self._cluster.rank, self._cluster.size, options)
        order = whole.all_gather(tf.constant([self._cluster.rank], tf.int64)).numpy()[:, 0].tolist()
        if order != list(range(self._cluster.size)):
            raise StartError(
                f"TensorFlow ordered the workers as {order} instead of by rank, so that gathered "
                "tensors would be mixed up. This TensorFlow can't be used."
            )
        return whole

    def _choose_pieces(self, whole: TensorFlowGroup, *, only_leaders: bool) -> int:
        """In how many pieces at once large sums go through TensorFlow's collectives.

        RING adds up the numbers of three ranks or more in an order that depends on how a tensor is
        cut. So the choice is only measured between two: there it changes no bit of any result, and
        may turn out differently after a restart.
        """
        if self.options.pieces is not None:
            return self.options.pieces
        if self.collective is Collective.NCCL:
            return 1
        hosts = self._cluster.ranks_of_hosts
        leaders = tuple(sorted(ranks[0] for ranks in hosts))
        if len(hosts) != 2 or not (only_leaders or self._cluster.size == 2):
            return DEFAULT_PIECES
        measured = 0
        if self._cluster.rank in leaders:
            between = whole.among(leaders)
            assert isinstance(between, TensorFlowGroup)
            measured = measured_pieces(between)
        told = whole.all_reduce(tf.constant([measured]), ReduceOp.MAX)
        return int(told.numpy()[0])

    def _reach(self, networks: NativeSetup, *, shares_memory: bool) -> Network | None:
        """Connects to the other hosts, if all ranks want to, and all can."""
        if not self.met.choice.wants_tcp(self._cluster):
            return None
        found, missing, lobby = None, _NOT_READY, self.met.lobby
        ports = [fact["port"] for fact in self.rendezvous.facts]
        if lobby is not None and shares_memory and all(ports):
            found, missing = networks.reach_hosts(lobby, ports), _NOT_REACHED
        if self._all("tfddl.init, reaching hosts", found is not None):
            return found
        if found is not None:
            found.close()
        elif lobby is not None:
            lobby.close()
        if self.options.between_hosts is Between.TCP:
            raise StartError(f"between_hosts is 'tcp', but {missing}")
        if self._cluster.rank == 0:
            _LOG.warning("TensorFlow's RING speaks between hosts, which is slower: %s", missing)
        return None
