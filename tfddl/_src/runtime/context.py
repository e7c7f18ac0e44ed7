"""What this process has started: the context that all layers above share.

What these keep for it, they keep in a `PerRuntime` of their own.
"""

import atexit
import signal
from collections.abc import Callable
from types import FrameType

import tensorflow as tf

from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.comm.forked_process import ForkedProcessGroup
from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.lazy_variable import counter
from tfddl._src.comm.process_group import ProcessGroup
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.tensorflow_private import forget_traces
from tfddl._src.cpu import cores_of_worker
from tfddl._src.heartbeat import ProgressPage, ProgressReporter, WorkerFlags
from tfddl._src.runtime.devices import make_strategy, resolve_transport, set_up_gpus, set_up_threads
from tfddl._src.runtime.forked_children import in_children
from tfddl._src.runtime.group_setup import GroupSetup
from tfddl._src.runtime.grpc_servers import calling_line, start_servers
from tfddl._src.runtime.options import Options
from tfddl._src.runtime.startup_checks import JoinedJob, join_job
from tfddl.errors import NotInitializedError, StartError

SignalHandler = Callable[[int, FrameType | None], None] | signal.Handlers


class Runtime:
    """The runtime of this process; `start` makes the only one.

    It knows nothing of the layers above: what these keep for it, they keep in a `PerRuntime`.

    Attributes:
        asked: What `start` was told of the cluster; `cluster` is what came of it.
        options: What `tfddl.init()` was asked for.
        cluster: Who takes part, and which of them this worker is.
        transport: Which of TensorFlow's collectives there would be.
        num_cores: How many cores this worker may count on.
        job: Where all ranks have joined; None for one worker.
        process_group: All workers, and how tensors travel between them.
        instrumentation: What the collectives of this process do.
        progress_page: Where the launcher reads how far this worker has come.
        started_strategy: What `strategy` has returned; None before.
        sigterm_handler: What we ourselves have put in place for SIGTERM, if anything.
        is_child: Whether this is a process that was forked from the worker.
    """

    def __init__(
        self,
        cluster: Cluster | PartialCluster,
        options: Options,
        progress_page: ProgressPage,
        secret: bytes,
        *,
        sets_devices: bool = True,
    ) -> None:
        """Joins the job, and connects to the others.

        Args:
            cluster: Who takes part.
            options: What was asked for.
            progress_page: Where the launcher reads how far this worker has come.
            secret: What the launcher has told all workers.
            sets_devices: Whether threads and GPUs are still to be set up, once per process.
        """
        self.asked = cluster
        self.options = options
        self.progress_page = progress_page
        self.started_strategy: tf.distribute.Strategy | None = None
        self.sigterm_handler: SignalHandler | None = None
        self.is_child = False
        self._gathered = 0
        self._rounds = counter("tfddl_rounds")
        self._counts_rounds = False
        self.instrumentation = Instrumentation(cluster.size)
        self.process_group: ProcessGroup = SingleProcessGroup()
        self.job: JoinedJob | None = None
        if cluster.size > 1:
            progress_page.set_flags(WorkerFlags.JOINS)
            self.job = join_job(cluster, options, secret)
            progress_page.clear_flags(WorkerFlags.JOINS)
        if self.job is None:
            assert isinstance(cluster, Cluster)
            self.cluster, self.transport = cluster, resolve_transport(cluster, options)
        else:
            self.cluster = self.job.rendezvous.cluster
            self.transport = self.job.choice.transport
        self.num_cores = cores_of_worker(self.cluster.local_size, own=options.cores)
        self._reporter: ProgressReporter | None = None
        try:
            if sets_devices:
                set_up_threads(self.cluster, options, self.num_cores)
                set_up_gpus(self.cluster)
            if self.job is not None:
                self.process_group = self._connect(self.job)
        except BaseException:
            if self.job is not None:
                self.job.close()
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
        if self.job is None:
            self.started_strategy = make_strategy(self.cluster, self.transport)
        else:
            self.started_strategy = start_servers(
                self.job.rendezvous,
                self.job.choice,
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
        assert self.job is not None
        self._gathered += 1
        limits = [s for s in (timeout_s, self.options.timeout_s) if s > 0]
        unique = f"{key} ({self._gathered}. time)"
        return self.job.rendezvous.gather(unique, text, timeout_s=min(limits, default=0.0))

    def count_round(self) -> None:
        """Lets the launcher see an exchange of gradients, in graphs too."""
        if self._counts_rounds:
            with tf.device("CPU:0"):
                self._rounds.value.assign_add(1, read_value=False)

    @property
    def can_regroup(self) -> bool:
        """Whether this process can leave the job and join it again, with other workers.

        TensorFlow's servers, and so RING and NCCL, stay until the process ends. Nothing in the
        graphs of one worker alone would notice that there are several now.
        """
        return (
            self.job is not None
            and self.started_strategy is None
            and self.process_group.can_close
            and not self.is_child
        )

    def close(self, text: str) -> None:
        """Leaves the job, where `can_regroup`; a second call does nothing.

        Args:
            text: What the errors of operations say that are called nevertheless.
        """
        if self.job is None:
            return
        if self._reporter is not None:
            self._reporter.stop()
            atexit.unregister(self._reporter.stop)
        self.process_group.close(text)
        self.job.close()
        self.job = None

    def disown(self) -> None:
        """In a forked child: lets go of what is the worker's."""
        self.is_child = True
        self.progress_page.detach()
        if self.cluster.size > 1:
            self.process_group = ForkedProcessGroup(self.cluster.rank, range(self.cluster.size))

    def _report_progress(self) -> None:
        self.progress_page.record_pid()
        self.progress_page.enable_stack_dumps()
        if self.progress_page.is_shared and self.cluster.size > 1:
            self._counts_rounds = True
            counts = self.instrumentation.counts
            rounds = self._rounds
            reporter = ProgressReporter(self.progress_page, counts, lambda: rounds.number)
            atexit.register(reporter.stop)
            self._reporter = reporter

    def _connect(self, job: JoinedJob) -> ProcessGroup:
        def start_strategy(why: str) -> tf.distribute.Strategy:
            hint = "move tfddl.init() to the top of the script"
            self.started_strategy = start_servers(job.rendezvous, job.choice, why=why, hint=hint)
            return self.started_strategy

        setup = GroupSetup(
            job=job,
            num_cores=self.num_cores,
            instrumentation=self.instrumentation,
            start_strategy=start_strategy,
        )
        group = setup.connect()
        # Two jobs with the same addresses may have been mixed at the start: whoever finds it ends
        # what waits.
        job.rendezvous.on_conflict(group.abort)
        return group


class _Slot:
    """Holds the runtime of the process."""

    runtime: Runtime | None = None
    active: bool = False


_SLOT = _Slot()


def start(
    cluster: Cluster | PartialCluster,
    options: Options,
    progress_page: ProgressPage,
    *,
    secret: bytes = b"",
) -> Runtime:
    """Starts the runtime, or takes up the one that is there.

    Args:
        cluster: Who takes part.
        options: What was asked for.
        progress_page: Where the launcher reads how far this worker has come.
        secret: What the launcher has told all workers, and nobody else; b"" if it hasn't.

    Raises:
        StartError: A TensorFlow operation ran before; a port is taken, or not all workers came in
            time; or a runtime with other settings is there.
        DisagreementError: The ranks have different descriptions of the cluster.
    """
    if _SLOT.runtime is None:
        _SLOT.runtime = Runtime(cluster, options, progress_page, secret)
        # Registered once per process: os.register_at_fork has no way back.
        in_children(_disown, own_handler=_sigterm_handler)
    elif (_SLOT.runtime.asked, _SLOT.runtime.options) != (cluster, options):
        raise StartError(
            "tfddl.init() was called before with other settings, and TensorFlow can't change them "
            f"in a running process. Before: {_SLOT.runtime.options}, {_SLOT.runtime.asked}. "
            f"Now: {options}, {cluster}. Call it once, or with the same settings."
        )
    _SLOT.active = True
    return _SLOT.runtime


def restart(cluster: Cluster | PartialCluster, *, secret: bytes) -> Runtime:
    """Starts a runtime with other workers, in place of the closed one, with the same options.

    What was traced before is forgotten: it may have the number of workers as a constant.

    Raises:
        TfddlError: As for `start`; the closed runtime is still there, and this may be tried again.
    """
    before = _SLOT.runtime
    assert before is not None
    runtime = Runtime(cluster, before.options, before.progress_page, secret, sets_devices=False)
    runtime.sigterm_handler = before.sigterm_handler
    forget_traces()
    _SLOT.runtime = runtime
    return runtime


def _disown() -> None:
    assert _SLOT.runtime is not None
    _SLOT.runtime.disown()


def _sigterm_handler() -> SignalHandler | None:
    assert _SLOT.runtime is not None
    return _SLOT.runtime.sigterm_handler


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
