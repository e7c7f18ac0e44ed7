"""How the workers get connected: which transport, and what it needs."""

import dataclasses
import logging
import secrets
import struct

import tensorflow as tf

from tfddl.cluster import Cluster
from tfddl.errors import DisagreementError, StartError
from tfddl.runtime.networks import Networks
from tfddl.runtime.options import Options
from tfddl.transport import (
    DEFAULT_PIECES,
    AloneTransport,
    Between,
    Collective,
    Reduction,
    Roll,
    StrategyOptions,
    StrategyTransport,
    TimedTransport,
    TracedTransport,
    Tracer,
    Transport,
    TwoLevelTransport,
    WireTransport,
    measured_pieces,
    strategy_transport,
)
from tfddl.wire import SECRET_BYTES, Lobby, Network

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

_SECRET = struct.Struct("<qq")
_COLLECTIVES = (None, *Collective)
_BETWEEN = (None, *Between)

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connected:
    """What came of it."""

    transport: Transport

    pieces: int
    """In how many pieces at once TensorFlow's collectives send what is large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Said:
    """What all ranks have said of themselves."""

    share_memory: bool
    """Whether all share memory with those of their hosts."""

    ports: tuple[int, ...]
    """Where each one's lobby listens; 0 where it has none."""

    secret: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connecting:
    """Connects several workers. All of them do so alike, once TensorFlow's servers run."""

    cluster: Cluster
    options: Options

    device: str
    """The strategy's of this worker."""

    collective: Collective
    """Which of TensorFlow's."""

    num_cores: int
    """How many cores this worker may count on."""

    def connect(self, tracer: Tracer) -> Connected:
        """Chooses the transport, and makes sure that it works.

        Args:
            tracer: Is told what travels, while it is on.

        Raises:
            StartError: TensorFlow doesn't order the workers by rank; or TCP was asked for, and
                can't be had.
            DisagreementError: The ranks were given different options.
        """
        tracer.open(self.cluster.rank)
        roll = Roll(self.cluster.rank, self.cluster.size, self.options.patience)
        whole = self._strategy_transport()
        roll.watch(whole)
        networks = Networks(self.cluster, self.options)
        memory = networks.share_memory() if self._wants_shared_memory else None
        lobby = networks.open_lobby() if self._wants_tcp else None
        said = self._compare(whole, memory, lobby)
        if self._wants_shared_memory and not said.share_memory:
            _LOG.warning(_NO_SHARED_MEMORY)
            if memory is not None:
                memory.close()
            memory = None
        hosts = self._reach(whole, networks, lobby, said)
        one = self._one_network(memory, hosts)
        if one is not None:
            roll.close()  # These know by themselves whom they wait for.
            transport = WireTransport(
                one, range(one.mesh.size), tracer, overlaps=self.num_cores > 1
            )
            return Connected(transport=transport, pieces=DEFAULT_PIECES)
        if hosts is None:
            pieces = self._choose_pieces(whole, only_leaders=memory is not None)
            world: Transport = TimedTransport(whole.in_pieces(pieces))
        else:
            pieces = DEFAULT_PIECES
            world = WireTransport(hosts, range(hosts.mesh.size), overlaps=self.num_cores > 1)
            roll.watch(world)
        if memory is not None:
            world = self._in_two_levels(memory, world, roll)
        return Connected(transport=TracedTransport(world, tracer, roll), pieces=pieces)

    def _one_network(self, memory: Network | None, hosts: Network | None) -> Network | None:
        """The network that connects all workers, if there is one."""
        sizes = [len(ranks) for ranks in self.cluster.ranks_of_hosts]
        if len(sizes) == 1:
            return memory
        return hosts if max(sizes) == 1 else None

    def _in_two_levels(self, memory: Network, world: Transport, roll: Roll) -> Transport:
        local: Transport = AloneTransport()
        if memory.mesh.size > 1:
            overlaps = self.num_cores > 1 or world.overlaps
            local = WireTransport(memory, range(memory.mesh.size), overlaps=overlaps)
        roll.watch(local)
        return TwoLevelTransport(self.cluster.rank, self.cluster.ranks_of_hosts, local, world)

    def _strategy_transport(self) -> StrategyTransport:
        options = StrategyOptions(
            device=self.device,
            collective=self.collective,
            timeout_s=2 * self.options.timeout_s,  # The last resort: the roll knows more.
        )
        return strategy_transport(self.cluster.rank, self.cluster.size, options)

    def _choose_pieces(self, whole: StrategyTransport, *, only_leaders: bool) -> int:
        """In how many pieces at once large sums go through TensorFlow's collectives.

        RING adds up the numbers of three ranks or more in an order that depends on how a tensor is
        cut. So the choice is only measured between two: there it changes no bit of any result, and
        may turn out differently after a restart.
        """
        if self.options.pieces is not None:
            return self.options.pieces
        if self.collective is Collective.NCCL:
            return 1
        hosts = self.cluster.ranks_of_hosts
        leaders = tuple(sorted(ranks[0] for ranks in hosts))
        if len(hosts) != 2 or not (only_leaders or self.cluster.size == 2):
            return DEFAULT_PIECES
        measured = 0
        if self.cluster.rank in leaders:
            between = whole.among(leaders)
            assert isinstance(between, StrategyTransport)
            measured = measured_pieces(between)
        told = whole.all_reduce(tf.constant([measured]), Reduction.MAX)
        return int(told.numpy()[0])

    @property
    def _has_own_networks(self) -> bool:
        """Whether gradients may go otherwise than by TensorFlow's collectives."""
        return self.options.collective is None and self.collective is Collective.RING

    @property
    def _wants_shared_memory(self) -> bool:
        return self._has_own_networks and max(map(len, self.cluster.ranks_of_hosts)) > 1

    @property
    def _wants_tcp(self) -> bool:
        return (
            self._has_own_networks
            and len(self.cluster.hosts) > 1
            and self.options.between_hosts is not Between.RING
        )

    def _reach(
        self, whole: Transport, networks: Networks, lobby: Lobby | None, said: _Said
    ) -> Network | None:
        """Connects to the other hosts, if all ranks want to, and all can."""
        if not self._wants_tcp:
            return None
        found, missing = None, _NOT_READY
        is_ready = said.share_memory or not self._wants_shared_memory
        if lobby is not None and is_ready and all(said.ports):
            found, missing = networks.reach_hosts(lobby, said.ports, said.secret), _NOT_REACHED
        reached = whole.all_reduce(tf.constant([int(found is not None)]), Reduction.MIN)
        if reached.numpy()[0]:
            return found
        if found is not None:
            found.close()
        elif lobby is not None:
            lobby.close()
        if self.options.between_hosts is Between.TCP:
            raise StartError(f"between_hosts is 'tcp', but {missing}")
        if self.cluster.rank == 0:
            _LOG.warning("TensorFlow's RING speaks between hosts, which is slower: %s", missing)
        return None

    def _compare(self, whole: Transport, memory: Network | None, lobby: Lobby | None) -> _Said:
        """Makes sure that the first collective works, in TensorFlow's order, and options agree."""
        mine = [
            self.cluster.rank,
            int(memory is not None),
            self.options.pieces or 0,
            _COLLECTIVES.index(self.options.collective),
            _BETWEEN.index(self.options.between_hosts),
            lobby.port if lobby is not None else 0,
            *_SECRET.unpack(secrets.token_bytes(SECRET_BYTES)),
        ]
        said = whole.all_gather(tf.constant(mine, tf.int64)).numpy()
        order, shares, pieces, collectives, between, ports = said.T[:6].tolist()
        if order != list(range(self.cluster.size)):
            raise StartError(
                f"TensorFlow ordered the workers as {order} instead of by rank, so that gathered "
                "tensors would be mixed up. This TensorFlow can't be used."
            )
        _require_same("pieces", [number or None for number in pieces])
        _require_same("collective", [str(_COLLECTIVES[n] or "auto") for n in collectives])
        _require_same("between_hosts", [str(_BETWEEN[n] or "auto") for n in between])
        return _Said(
            share_memory=all(shares),
            ports=tuple(ports),
            secret=_SECRET.pack(*said[0, 6:].tolist()),
        )


def _require_same(name: str, values: list[int | None] | list[str]) -> None:
    """Refuses a setting that differs between ranks."""
    other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
    if other is not None:
        raise DisagreementError(
            f"tfddl.init got {name}={values[0]!r} on rank 0, but {name}={values[other]!r} on rank "
            f"{other}. HINT: give all ranks the same."
        )
