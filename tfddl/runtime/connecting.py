"""How the workers get connected: which transport, and what it needs."""

import dataclasses
import logging

import tensorflow as tf

from tfddl import wire
from tfddl.cluster import Cluster
from tfddl.errors import DisagreementError, StartError, WireError
from tfddl.runtime.options import Options
from tfddl.threads import has_own_core
from tfddl.transport import (
    DEFAULT_PIECES,
    AloneTransport,
    Collective,
    HostTransport,
    Reduction,
    Roll,
    StrategyOptions,
    StrategyTransport,
    TimedTransport,
    TracedTransport,
    Tracer,
    Transport,
    TwoLevelTransport,
    measured_pieces,
)

_NO_SHARED_MEMORY = (
    "the workers of a host can't share memory: TensorFlow's collectives take over, which are slower"
)

_AFTER_ROLL_S = 5.0
"""How much longer than the roll the workers of one of several hosts wait for each other."""

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connected:
    """What came of it."""

    transport: Transport

    pieces: int
    """In how many pieces at once TensorFlow's collectives send what is large."""


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
            StartError: TensorFlow doesn't order the workers by rank.
            DisagreementError: The ranks were given different options.
        """
        patience = wire.Patience(
            warn_s=self.options.stall_warning_s, give_up_s=self.options.timeout_s
        )
        tracer.open(self.cluster.rank)
        roll = Roll(self.cluster.rank, self.cluster.size, patience)
        whole = self._strategy_transport()
        roll.watch(whole)
        mesh = self._share_memory(patience)
        shares = _compare(whole, shares_memory=mesh is not None, pieces=self.options.pieces)
        pieces = self._choose_pieces(whole, only_leaders=shares)
        layout = self.cluster.ranks_of_hosts
        if mesh is not None and shares and len(layout) == 1:
            roll.close()  # Those who share memory know by themselves whom they wait for.
            overlaps = self.num_cores > 1
            transport = HostTransport(mesh, range(mesh.size), tracer, overlaps=overlaps)
            return Connected(transport=transport, pieces=pieces)
        slow = TimedTransport(whole.in_pieces(pieces))
        if mesh is None or not shares:
            if self._wants_shared_memory:
                _LOG.warning(_NO_SHARED_MEMORY)
            if mesh is not None:
                mesh.close()
            return Connected(transport=TracedTransport(slow, tracer, roll), pieces=pieces)
        local = HostTransport(mesh, range(mesh.size)) if mesh.size > 1 else AloneTransport()
        roll.watch(local)
        both = TwoLevelTransport(self.cluster.rank, layout, local, slow)
        return Connected(transport=TracedTransport(both, tracer, roll), pieces=pieces)

    def _strategy_transport(self) -> StrategyTransport:
        options = StrategyOptions(
            device=self.device,
            collective=self.collective,
            timeout_s=2 * self.options.timeout_s,  # The last resort: the roll knows more.
        )
        return StrategyTransport(self.cluster.rank, self.cluster.size, options)

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
    def _wants_shared_memory(self) -> bool:
        """Whether gradients go through memory: several CPU workers on a host, nobody forbids it."""
        return (
            self.options.collective is None
            and self.collective is Collective.RING
            and max(map(len, self.cluster.ranks_of_hosts)) > 1
        )

    def _share_memory(self, patience: wire.Patience) -> wire.Mesh | None:
        """Connects the workers of this host, if that is wanted and can be done."""
        if not self._wants_shared_memory:
            return None
        cluster = self.cluster
        if len(cluster.hosts) > 1:  # Who is missing may be elsewhere: the roll gives up first.
            later_s = patience.give_up_s and patience.give_up_s + _AFTER_ROLL_S
            patience = dataclasses.replace(patience, give_up_s=later_s)
        seat = wire.Seat(
            # Hosts may be names of one machine.
            job=" ".join([cluster.host, *cluster.addresses]),
            rank=cluster.local_rank,
            size=cluster.local_size,
            names=cluster.ranks_of_hosts[cluster.hosts.index(cluster.host)],
            patience=patience,
            spins=has_own_core(cluster.local_size, own=self.options.cores),
        )
        try:
            return wire.connect(seat)
        except WireError as error:
            _LOG.warning("rank %d can't share memory: %s", cluster.rank, error)
            return None


def _compare(transport: Transport, *, shares_memory: bool, pieces: int | None) -> bool:
    """Makes sure that the first collective works, in TensorFlow's order, and that ranks cut alike.

    Returns:
        Whether all ranks share memory with those of their hosts.
    """
    mine = [transport.rank, int(shares_memory), pieces or 0]
    said = transport.all_gather(tf.constant(mine)).numpy()
    order = said[:, 0].tolist()
    if order != list(range(transport.size)):
        raise StartError(
            f"TensorFlow ordered the workers as {order} instead of by rank, so that gathered "
            "tensors would be mixed up. This TensorFlow can't be used."
        )
    wanted = said[:, 2].tolist()
    other = next((rank for rank, number in enumerate(wanted) if number != wanted[0]), None)
    if other is not None:
        raise DisagreementError(
            f"tfddl.init got pieces={wanted[0] or None} on rank 0, but "
            f"pieces={wanted[other] or None} on rank {other}. HINT: give all ranks the same."
        )
    return bool(said[:, 1].all())
