"""What a process has started: threads, devices, the strategy, the transport.

The one mutable module global of tfddl lives here.
"""

import atexit
import dataclasses
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import tensorflow as tf

from tfddl import wire
from tfddl.cluster import Cluster, rendezvous
from tfddl.commits import CommitStore
from tfddl.errors import DisagreementError, NotInitializedError, StartError, WireError
from tfddl.progress import Board, Teller
from tfddl.threads import cores_of_worker, has_own_core
from tfddl.transport import (
    DEFAULT_PIECES,
    MOST_PIECES,
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

_TOO_LATE = (
    "tfddl.init() has to come before the first TensorFlow operation of the process, because "
    "threads, devices and collectives can't be set up afterwards. Move it to the top of the "
    "script, before any model, tensor or dataset is made."
)

_NO_SHARED_MEMORY = (
    "the workers of a host can't share memory: TensorFlow's collectives take over, which are slower"
)

_AFTER_ROLL_S = 5.0
"""How much longer than the roll the workers of one of several hosts wait for each other."""

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `tfddl.init()` was asked for; None leaves the choice to us."""

    collective: Collective | None = None
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    pieces: int | None = None
    timeout_s: float = 600.0
    start_timeout_s: float | None = None
    """How long to wait for the other workers at the start; None for `timeout_s`."""

    stall_warning_s: float = 60.0
    """After how long to warn of ranks that haven't come to an operation; 0 is never."""

    cores: int | None = None
    """How many cores are this worker's own; None where nobody has divided them yet."""

    def __post_init__(self) -> None:
        for name in ("intra_op_threads", "inter_op_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StartError(f"{name} is {value}; it must be at least 1, or None.")
        if self.pieces is not None and not 1 <= self.pieces <= MOST_PIECES:
            raise StartError(f"pieces is {self.pieces}; it must be 1..{MOST_PIECES}, or None.")
        for name in ("timeout_s", "start_timeout_s", "stall_warning_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < math.inf:
                raise StartError(f"{name} is {seconds}; it must be 0 (never) or more.")


class Statistics(Protocol):
    """What every rank's batch changes, and all ranks then take the mean of."""

    def change(self, dtype: tf.DType) -> list[tf.Tensor]:
        """What this rank has changed: flat tensors, of the same sizes on all ranks."""

    def take(self, changes: Sequence[tf.Tensor]) -> None:
        """Takes in the mean over the ranks, by count."""


@dataclasses.dataclass
class Step:
    """What the training step that is being traced or run knows of itself."""

    count: tf.Tensor | None = None
    """What the rank's mean loss was divided by; None where nobody said."""

    averages: bool = True
    """Whether gradients are averaged by these counts; otherwise they are added up."""

    stop: tf.Variable | None = None
    """Float scalar: above 0 where this rank wants training to end."""

    stop_agreed: tf.Variable | None = None
    """Float scalar that becomes above 0 once any rank wants training to end."""

    totals: tf.Variable | None = None
    """Float, (2,): becomes all ranks' count and number of examples once the step has heard them."""

    statistics: Statistics | None = None
    """What else is averaged along with the gradients, by the number of examples."""

    examples: tf.Tensor | None = None
    """How many examples the rank has in the step, 0 for a stand-in."""


class Runtime:
    """The runtime of this process; `start` makes the only one."""

    def __init__(self, cluster: Cluster, options: Options, board: Board) -> None:
        self.cluster = cluster
        self.options = options
        self.board = board
        """Where the launcher reads how far this worker has come."""
        self.agreed: dict[str, tf.Variable] = {}
        """Signatures that all ranks have compared inside a graph, and whether they have yet."""
        self.eager_turn = threading.RLock()
        """Held by the thread whose eager operation is under way, where they can't be told apart."""
        self.epoch: int | None = None
        """The epoch of the `fit` that is running, if one is."""
        self.fit: Any = None
        """The `fit` that is running on all ranks, if one is; `tfddl.keras_hooks` keeps it."""
        self.resume: Any = None
        """The `tfddl.data.Resume` of the `fit` that is running, if it takes up an epoch."""
        self.process_sets: tuple[Any, ...] = ()
        """Those that Horovod's `init` was told of, in the order of their ids."""
        self.commits: CommitStore | None = None
        """What outlives this process, if the launcher has given it anything."""
        self.elastic_runs = 0
        """How many times Horovod's `elastic.run` has been begun in this process."""
        self.step = Step()
        self.num_cores = cores_of_worker(cluster.local_size, own=options.cores)
        """How many cores this worker may count on."""
        self._strategy: tf.distribute.Strategy | None = None
        self.collective = _set_up_devices(cluster, options, self.num_cores)
        self.tracer = Tracer()
        self.pieces = 1
        """In how many pieces at once TensorFlow's collectives send what is large."""
        self._rounds: tf.Variable | None = None
        self.transport = self._connect()
        self._report_progress()

    def strategy(self) -> tf.distribute.Strategy:
        """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default."""
        if self._strategy is None:
            self._strategy = _make_strategy(self.cluster, self.collective)
        return self._strategy

    @contextmanager
    def in_step(self, step: Step) -> Iterator[None]:
        """Makes `step` the one that optimizers see."""
        before, self.step = self.step, step
        try:
            yield
        finally:
            self.step = before

    def count_round(self) -> None:
        """Lets the launcher see an exchange of gradients outside of `fit`, in graphs too."""
        if self._rounds is not None and self.fit is None:
            with tf.device("CPU:0"):
                self._rounds.assign_add(1, read_value=False)

    def _report_progress(self) -> None:
        self.board.sign()
        self.board.show_stacks_at_signal()
        if self.board.is_shared and self.cluster.size > 1:
            with tf.device("CPU:0"):
                rounds = tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_rounds")
            self._rounds = rounds
            teller = Teller(self.board, self.transport.counts, lambda: int(rounds.numpy()))
            atexit.register(teller.end)

    def _connect(self) -> Transport:
        if self.cluster.size == 1:
            return AloneTransport()
        start_s = self.options.start_timeout_s
        rendezvous.meet(
            self.cluster, timeout_s=self.options.timeout_s if start_s is None else start_s
        )
        device = self.strategy().extended.worker_devices[0]
        patience = wire.Patience(
            warn_s=self.options.stall_warning_s, give_up_s=self.options.timeout_s
        )
        self.tracer.open(self.cluster.rank)
        options = StrategyOptions(
            device=device,
            collective=self.collective,
            timeout_s=2 * self.options.timeout_s,  # The last resort: the roll knows more.
        )
        whole = StrategyTransport(self.cluster.rank, self.cluster.size, options)
        mesh = self._share_memory(patience)
        shares = _compare(whole, shares_memory=mesh is not None, pieces=self.options.pieces)
        self.pieces = self._choose_pieces(whole, only_leaders=shares)
        transport = TimedTransport(whole.in_pieces(self.pieces))
        roll = Roll(self.cluster.rank, patience)
        if mesh is None or not shares:
            if self._wants_shared_memory():
                _LOG.warning(_NO_SHARED_MEMORY)
            if mesh is not None:
                mesh.close()
            roll.watch(transport)
            return TracedTransport(transport, self.tracer, roll)
        layout = self.cluster.ranks_of_hosts
        if len(layout) == 1:
            overlaps = self.num_cores > 1
            return HostTransport(mesh, range(mesh.size), self.tracer, overlaps=overlaps)
        local = HostTransport(mesh, range(mesh.size)) if mesh.size > 1 else AloneTransport()
        both = TwoLevelTransport(self.cluster.rank, layout, local, transport)
        roll.watch(local, transport)
        return TracedTransport(both, self.tracer, roll)

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

    def _wants_shared_memory(self) -> bool:
        """Whether gradients go through memory: several CPU workers on a host, nobody forbids it."""
        return (
            self.options.collective is None
            and self.collective is Collective.RING
            and max(map(len, self.cluster.ranks_of_hosts)) > 1
        )

    def _share_memory(self, patience: wire.Patience) -> wire.Mesh | None:
        """Connects the workers of this host, if that is wanted and can be done."""
        if not self._wants_shared_memory():
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


class _Slot:
    """Holds the runtime of the process."""

    runtime: Runtime | None = None
    active: bool = False


_SLOT = _Slot()


def start(cluster: Cluster, options: Options, board: Board) -> Runtime:
    """Starts the runtime, or takes up the one that is there.

    Args:
        cluster: Who takes part.
        options: What was asked for.
        board: Where the launcher reads how far this worker has come.

    Raises:
        StartError: A TensorFlow operation ran before; a port is taken, or not all workers came in
            time; or a runtime with other settings is there.
        DisagreementError: The ranks were told of different clusters.
    """
    if _SLOT.runtime is None:
        _SLOT.runtime = Runtime(cluster, options, board)
    elif (_SLOT.runtime.cluster, _SLOT.runtime.options) != (cluster, options):
        raise StartError(
            "tfddl.init() was called before with other settings, and TensorFlow can't change them "
            f"in a running process. Before: {_SLOT.runtime.options}, {_SLOT.runtime.cluster}. "
            f"Now: {options}, {cluster}. Call it once, or with the same settings."
        )
    _SLOT.active = True
    return _SLOT.runtime


def stop() -> None:
    """Forgets that the runtime was started; TensorFlow's servers stay until the process ends."""
    _SLOT.active = False


def is_started() -> bool:
    """Whether `start` has been called, and `stop` not since."""
    return _SLOT.active


def current() -> Runtime:
    """The runtime of this process.

    Raises:
        NotInitializedError: There is none.
    """
    if _SLOT.runtime is None or not _SLOT.active:
        raise NotInitializedError("tfddl has not been initialized; call tfddl.init() first.")
    return _SLOT.runtime


def choose_collective(asked: Collective | None, *, num_gpus: int, local_size: int) -> Collective:
    """NCCL where there are GPUs, RING on CPUs, or as asked.

    Raises:
        StartError: NCCL without a GPU, or more workers on this host than GPUs.
    """
    if asked is Collective.NCCL and not num_gpus:
        raise StartError(
            'collective="nccl" needs GPUs, but TensorFlow sees none on this host. Use "auto" or '
            '"ring" for CPUs; for GPUs install tensorflow[and-cuda] and check nvidia-smi.'
        )
    if num_gpus and local_size > num_gpus:
        raise StartError(
            f"{local_size} workers run on this host, but TensorFlow sees {num_gpus} GPUs; every "
            f"worker needs one of its own. Start at most {num_gpus} workers here, or set "
            'CUDA_VISIBLE_DEVICES="" to train on CPUs.'
        )
    return asked or (Collective.NCCL if num_gpus else Collective.RING)


def _set_up_devices(cluster: Cluster, options: Options, num_cores: int) -> Collective:
    gpus = tf.config.list_physical_devices("GPU")
    collective = choose_collective(
        options.collective, num_gpus=len(gpus), local_size=cluster.local_size
    )
    intra, inter = options.intra_op_threads, options.inter_op_threads
    if intra is None and cluster.local_size > 1:
        intra = num_cores
    if inter is None and cluster.local_size > 1:
        inter = intra  # More than there are cores make each other slower.
    try:
        if intra is not None:
            tf.config.threading.set_intra_op_parallelism_threads(intra)
        if inter is not None:
            tf.config.threading.set_inter_op_parallelism_threads(inter)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.set_visible_devices(gpus[cluster.local_rank], "GPU")
    except RuntimeError as error:
        raise StartError(_TOO_LATE) from error
    return collective


def _make_strategy(cluster: Cluster, collective: Collective) -> tf.distribute.Strategy:
    if cluster.size == 1:
        # TensorFlow's default. Under any other, Keras fails where a single worker accumulates
        # gradients, or runs several steps at once.
        return tf.distribute.get_strategy()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        rpc_layer="grpc",
    )
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation[collective.name]
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver, communication_options=options
        )
    except RuntimeError as error:
        raise StartError(_TOO_LATE) from error


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
