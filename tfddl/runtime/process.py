"""What this process has started, and what its training step knows.

The one mutable module global of tfddl lives here.
"""

import atexit
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import tensorflow as tf

from tfddl.cluster import Cluster, rendezvous
from tfddl.commits import CommitStore
from tfddl.errors import NotInitializedError, StartError
from tfddl.progress import Board, Teller
from tfddl.runtime.connecting import Connecting
from tfddl.runtime.devices import make_strategy, set_up_devices
from tfddl.runtime.options import Options
from tfddl.threads import cores_of_worker
from tfddl.transport import AloneTransport, Tracer, Transport


class Statistics(Protocol):
    """What every rank's batch changes, and all ranks then take the mean of."""

    def change(self, dtype: tf.DType) -> tf.Tensor:
        """What this rank has changed: flat, of a length that is known and alike on all ranks."""

    def take(self, changes: tf.Tensor) -> None:
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

    is_plain: bool = False
    """Whether it is Keras' own: one loss, from which all gradients come."""

    divided_by: int = 1
    """What the loss was divided by before its gradients were computed."""


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
        self.collective = set_up_devices(cluster, options, self.num_cores)
        self.tracer = Tracer()
        self._rounds: tf.Variable | None = None
        self.transport: Transport = AloneTransport()
        self.pieces = 1
        """In how many pieces at once TensorFlow's collectives send what is large."""
        if cluster.size > 1:
            self._connect()
        self._report_progress()

    def strategy(self) -> tf.distribute.Strategy:
        """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default."""
        if self._strategy is None:
            self._strategy = make_strategy(self.cluster, self.collective)
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

    def _connect(self) -> None:
        start_s = self.options.start_timeout_s
        rendezvous.meet(
            self.cluster, timeout_s=self.options.timeout_s if start_s is None else start_s
        )
        connected = Connecting(
            cluster=self.cluster,
            options=self.options,
            device=self.strategy().extended.worker_devices[0],
            collective=self.collective,
            num_cores=self.num_cores,
        ).connect(self.tracer)
        self.transport, self.pieces = connected.transport, connected.pieces


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
