"""What this process has started, and what its training step knows.

The one mutable module global of tfddl lives here.
"""

import atexit
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import tensorflow as tf

from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.comm import ForkedProcessGroup, ProcessGroup, SingleProcessGroup, Tracer, counter
from tfddl._src.commits import CommitStore
from tfddl._src.cpu import cores_of_worker
from tfddl._src.heartbeat import ProgressPage, ProgressReporter
from tfddl._src.runtime.devices import (
    make_strategy,
    resolve_collective,
    set_up_gpus,
    set_up_threads,
)
from tfddl._src.runtime.forked_children import in_children
from tfddl._src.runtime.group_setup import GroupSetup
from tfddl._src.runtime.grpc_servers import calling_line, start_servers
from tfddl._src.runtime.options import Options
from tfddl._src.runtime.startup_checks import JoinedJob, join_job
from tfddl.errors import NotInitializedError, StartError


class Statistics(Protocol):
    """What every rank's batch changes, and all ranks then take the mean of."""

    def change(self, dtype: tf.DType) -> tf.Tensor:
        """What this rank has changed: flat, of a length that is known and alike on all ranks."""

    def take(self, changes: tf.Tensor) -> None:
        """Takes in the mean over the ranks, by count."""


@dataclasses.dataclass(frozen=True)
class AgreedGradients:
    """Which gradients there are in the steps of a graph, as some ranks have agreed."""

    function: str
    """How Python calls the `tf.function` that was traced."""

    variables: tuple[weakref.ref[Any] | None, ...]
    """This rank's, in order; None for what isn't a variable but a tensor, another in each trace."""

    described: tuple[str, ...]
    """What they are, the same on all ranks."""

    kinds: tuple[int, ...]
    """Of each variable, what kind of gradient it has; `tfddl._src.gradients` numbers them."""

    differed: bool
    """Whether ranks came with different ones, so that each has zeros where only others have one."""


@dataclasses.dataclass
class StepContext:
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
        self,
        cluster: Cluster | PartialCluster,
        options: Options,
        board: ProgressPage,
        secret: bytes,
    ) -> None:
        self.asked = cluster
        """What `start` was told of the cluster; `cluster` is what came of it."""
        self.options = options
        self.board = board
        """Where the launcher reads how far this worker has come."""
        self.agreed: dict[str, tf.Variable] = {}
        """Signatures that all ranks have compared inside a graph, and whether they have yet."""
        self.agreed_gradients: dict[tuple[int, ...], list[AgreedGradients]] = {}
        """By the ranks that have agreed; the list is the same on all of these."""
        self.eager_turn = threading.RLock()
        """Held by the thread whose eager operation is under way, where they can't be told apart."""
        self.epoch: int | None = None
        """The epoch of the `fit` that is running, if one is."""
        self.fit: Any = None
        """The `fit` that is running on all ranks, if one is; `tfddl._src.keras_hooks` keeps it."""
        self.resume: Any = None
        """The `tfddl._src.data.ResumePoint` of the `fit` that is running, if it takes up an epoch."""
        self.process_sets: tuple[Any, ...] = ()
        """Those that Horovod's `init` was told of, in the order of their ids."""
        self.commits: CommitStore | None = None
        """What outlives this process, if the launcher has given it anything."""
        self.sigterm_handler: Any = None
        """What `tfddl.callbacks` has put in place for SIGTERM, if anything."""
        self.is_child = False
        """Whether this is a process that was forked from the worker."""
        self.elastic_runs = 0
        """How many times Horovod's `elastic.run` has been begun in this process."""
        self._gathered = 0
        self.step = StepContext()
        self.started_strategy: tf.distribute.Strategy | None = None
        """What `strategy` has returned; None before."""
        self.tracer = Tracer()
        self._rounds = counter("tfddl_rounds")
        self._counts_rounds = False
        self.transport: ProcessGroup = SingleProcessGroup()
        self.pieces = 1
        """In how many pieces at once TensorFlow's collectives send what is large."""
        self.met = join_job(cluster, options, secret) if cluster.size > 1 else None
        """Where all ranks have met; None for one worker."""
        if self.met is None:
            assert isinstance(cluster, Cluster)
            self.cluster, self.collective = cluster, resolve_collective(cluster, options)
        else:
            self.cluster = self.met.rendezvous.cluster
            self.collective = self.met.choice.collective
        self.num_cores = cores_of_worker(self.cluster.local_size, own=options.cores)
        """How many cores this worker may count on."""
        set_up_threads(self.cluster, options, self.num_cores)
        try:
            set_up_gpus(self.cluster)
            if self.met is not None:
                self._connect(self.met)
        except BaseException:
            if self.met is not None:
                self.met.close()
            raise
        self._report_progress()

    def strategy(self, *, called: str = "tfddl.strategy()") -> tf.distribute.Strategy:
        """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default.

        The first call starts TensorFlow's servers, where `start` hasn't. All ranks must call it
        together.

        Args:
            called: What the script calls, for messages.

        Raises:
            StartError: Operations of TensorFlow have run before; or a port is taken.
            StalledError: Other ranks don't call it in time.
        """
        if self.started_strategy is not None:
            return self.started_strategy
        if self.met is None:
            self.started_strategy = make_strategy(self.cluster, self.collective)
        else:
            self.started_strategy = start_servers(
                self.met.rendezvous,
                self.met.choice,
                why=f"{called} was called",
                hint=f"move {calling_line()} to the top of the script, right after tfddl.init(), "
                "before any model, tensor or dataset is made",
            )
        return self.started_strategy

    def gather_notes(self, key: str, text: str, *, timeout_s: float) -> tuple[str, ...]:
        """Collects a text of each rank without a collective, whatever other threads are in.

        All ranks must call it together, in the same order; there are several workers.

        Args:
            key: What it is about, for messages.
            text: This rank's.
            timeout_s: After how many seconds to give up; the operations' own, if that is less.

        Returns:
            Those of all, in rank order.

        Raises:
            StalledError: Ranks, which are named, haven't called it in time.
            PeerLostError: Rank 0 has ended.
        """
        assert self.met is not None
        self._gathered += 1
        limits = [s for s in (timeout_s, self.options.timeout_s) if s > 0]
        unique = f"{key} ({self._gathered}. time)"
        return self.met.rendezvous.gather(unique, text, timeout_s=min(limits, default=0.0))

    @contextmanager
    def in_step(self, step: StepContext) -> Iterator[None]:
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

    def disown(self) -> None:
        """In a forked child: lets go of what is the worker's."""
        self.is_child = True
        self.board.detach()
        self.commits = None
        if self.cluster.size > 1:
            self.transport = ForkedProcessGroup(self.cluster.rank, self.cluster.size)

    def _report_progress(self) -> None:
        self.board.record_pid()
        self.board.enable_stack_dumps()
        if self.board.is_shared and self.cluster.size > 1:
            self._counts_rounds = True
            reporter = ProgressReporter(
                self.board, self.transport.counts, lambda: self._rounds.number
            )
            atexit.register(reporter.stop)

    def _connect(self, met: JoinedJob) -> None:
        def start_strategy(why: str) -> tf.distribute.Strategy:
            hint = "move tfddl.init() to the top of the script"
            self.started_strategy = start_servers(met.rendezvous, met.choice, why=why, hint=hint)
            return self.started_strategy

        connected = GroupSetup(
            met=met, num_cores=self.num_cores, start_strategy=start_strategy
        ).connect(self.tracer)
        self.transport, self.pieces = connected.transport, connected.pieces
        met.rendezvous.on_conflict(self.transport.end)


class _Slot:
    """Holds the runtime of the process."""

    runtime: Runtime | None = None
    active: bool = False


_SLOT = _Slot()


def start(
    cluster: Cluster | PartialCluster, options: Options, board: ProgressPage, *, secret: bytes = b""
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
        runtime = _SLOT.runtime = Runtime(cluster, options, board, secret)
        in_children(runtime.disown, own_handler=lambda: runtime.sigterm_handler)
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
