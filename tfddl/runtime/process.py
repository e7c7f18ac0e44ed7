"""What this process has started, and what its training step knows.

The one mutable module global of tfddl lives here.
"""

import atexit
import dataclasses
import linecache
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import tensorflow as tf

from tfddl.cluster import Cluster, PartialCluster, rendezvous
from tfddl.cluster.rendezvous import Rendezvous
from tfddl.commits import CommitStore
from tfddl.errors import NotInitializedError, StartError
from tfddl.launcher.exposure import server_warning
from tfddl.progress import Board, Teller
from tfddl.runtime import connecting
from tfddl.runtime.connecting import Connecting
from tfddl.runtime.devices import (
    TOO_LATE,
    identity_of_gpu,
    make_strategy,
    operations_have_run,
    resolve_collective,
    set_up_gpus,
    set_up_threads,
)
from tfddl.runtime.networks import open_lobby
from tfddl.runtime.options import Options
from tfddl.threads import cores_of_worker
from tfddl.transport import AloneTransport, Collective, Tracer, Transport, counter
from tfddl.wire import Lobby, rank_names


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

    def __init__(
        self, cluster: Cluster | PartialCluster, options: Options, board: Board, secret: bytes
    ) -> None:
        self.asked = cluster
        """What `start` was told of the cluster; `cluster` is what came of it."""
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
        self.started_strategy: tf.distribute.Strategy | None = None
        """What `strategy` has returned; None before."""
        self.tracer = Tracer()
        self._rounds = counter("tfddl_rounds")
        self._counts_rounds = False
        self.transport: Transport = AloneTransport()
        self.pieces = 1
        """In how many pieces at once TensorFlow's collectives send what is large."""
        self.rendezvous: Rendezvous | None = None
        """Where all ranks have met; None for one worker."""
        self.cluster: Cluster
        self.collective: Collective
        """Which of TensorFlow's collectives it uses, or would use."""
        self.num_cores: int
        """How many cores this worker may count on."""
        lobby = self._meet(cluster, secret)
        self.num_cores = cores_of_worker(self.cluster.local_size, own=options.cores)
        set_up_threads(self.cluster, options, self.num_cores)
        set_up_gpus(self.cluster)
        if self.rendezvous is not None:
            self._connect(self.rendezvous, lobby)
        self._report_progress()

    def strategy(self) -> tf.distribute.Strategy:
        """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default.

        The first call starts TensorFlow's servers, where `start` hasn't. All ranks must call it
        together.

        Raises:
            StartError: Operations of TensorFlow have run before; or a port is taken.
            StalledError: Other ranks don't call it in time.
        """
        if self.started_strategy is None:
            self.started_strategy = self._start_strategy("tfddl.strategy() was called")
        return self.started_strategy

    def _start_strategy(self, why: str) -> tf.distribute.Strategy:
        if self.rendezvous is None:
            return make_strategy(self.cluster, self.collective)
        states = self.rendezvous.gather(
            "tfddl.strategy",
            _HAS_RUN if operations_have_run() else "",
            timeout_s=self.options.rendezvous_timeout_s,
        )
        late = [rank for rank, state in enumerate(states) if state == _HAS_RUN]
        if late:
            raise StartError(
                f"{why}, which starts TensorFlow's servers, but on {rank_names(late)} operations "
                "of TensorFlow have run before. HINT: "
                + (
                    f"move {_calling_line()} to the top of the script, right after tfddl.init(), "
                    "before any model, tensor or dataset is made"
                    if self.transport.size > 1
                    else "call tfddl.init() at the top of the script"
                )
            )
        self.rendezvous.stop_listening()
        rendezvous.require_free_port(self.cluster)
        if self.cluster.local_rank == 0 and not self.options.trusts_network:
            warning = server_warning(self.cluster)
            if warning is not None:
                _LOG.warning("%s", warning)
        return make_strategy(self.cluster, self.collective)

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
        if self._counts_rounds and self.fit is None:
            with tf.device("CPU:0"):
                self._rounds.value.assign_add(1, read_value=False)

    def _report_progress(self) -> None:
        self.board.sign()
        self.board.show_stacks_at_signal()
        if self.board.is_shared and self.cluster.size > 1:
            self._counts_rounds = True
            teller = Teller(self.board, self.transport.counts, lambda: self._rounds.number)
            atexit.register(teller.end)

    def _meet(self, cluster: Cluster | PartialCluster, secret: bytes) -> Lobby | None:
        """Meets all other workers, before anything of TensorFlow is started.

        What keeps this worker from starting is told to the others, too: none waits for it in vain.

        Returns:
            Where the other hosts find this worker, if they may call it.
        """
        problem = ""
        try:
            self.collective = resolve_collective(cluster, self.options)
        except StartError as error:
            if cluster.size == 1:
                raise
            problem, self.collective = str(error), Collective.RING
        if cluster.size == 1:
            assert isinstance(cluster, Cluster)
            self.cluster = cluster
            return None
        lobby = None
        if not problem and connecting.wants_tcp(cluster, self):
            lobby = open_lobby(cluster.rank)
        facts = connecting.facts_of(
            self.options,
            self.collective,
            lobby=lobby,
            gpus=(len(tf.config.list_physical_devices("GPU")), identity_of_gpu(cluster)),
            problem=problem,
            has_run=operations_have_run(),
        )
        self.rendezvous = rendezvous.join(
            cluster, secret=secret, facts=facts, timeout_s=self.options.rendezvous_timeout_s
        )
        self.cluster = self.rendezvous.cluster
        connecting.compare(self.cluster, self.rendezvous.facts)
        late = [rank for rank, fact in enumerate(self.rendezvous.facts) if fact["has_run"]]
        if late and connecting.needs_strategy(self.cluster, self):
            raise StartError(f"{rank_names(late)} can't start: {TOO_LATE}")
        return lobby

    def _connect(self, met: Rendezvous, lobby: Lobby | None) -> None:
        def start_strategy(why: str) -> tf.distribute.Strategy:
            self.started_strategy = self._start_strategy(why)
            return self.started_strategy

        connected = Connecting(
            rendezvous=met,
            options=self.options,
            collective=self.collective,
            num_cores=self.num_cores,
            start_strategy=start_strategy,
        ).connect(self.tracer, lobby)
        self.transport, self.pieces = connected.transport, connected.pieces
        met.when_in_conflict(self.transport.end)


def _calling_line() -> str:
    """Where a script calls us, and the line that stands there."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tfddl"):
        frame = frame.f_back
    name, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(name, number).strip()
    return f"{line!r} ({name}, line {number})" if line else "the line that calls it"


_LOG = logging.getLogger("tfddl")
_HAS_RUN = "operations have run"


class _Slot:
    """Holds the runtime of the process."""

    runtime: Runtime | None = None
    active: bool = False


_SLOT = _Slot()


def start(
    cluster: Cluster | PartialCluster, options: Options, board: Board, *, secret: bytes = b""
) -> Runtime:
    """Starts the runtime, or takes up the one that is there.

    Args:
        cluster: Who takes part.
        options: What was asked for.
        board: Where the launcher reads how far this worker has come.
        secret: What the launcher has told all workers, and nobody else; b"" if it hasn't.

    Raises:
        StartError: A TensorFlow operation ran before; a port is taken, or not all workers came in
            time; or a runtime with other settings is there.
        DisagreementError: The ranks were told of different clusters.
    """
    if _SLOT.runtime is None:
        _SLOT.runtime = Runtime(cluster, options, board, secret)
    elif (_SLOT.runtime.asked, _SLOT.runtime.options) != (cluster, options):
        raise StartError(
            "tfddl.init() was called before with other settings, and TensorFlow can't change them "
            f"in a running process. Before: {_SLOT.runtime.options}, {_SLOT.runtime.asked}. "
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
