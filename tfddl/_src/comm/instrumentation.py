"""What the collectives of this process do: counted, timed, traced, and which of them is under way.

One object records it all, and `InstrumentedGroup` feeds it with what a process group does whose
operations are TensorFlow's. `NativeGroup` feeds it from the Python that its operations run anyway.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.comm.lazy_variable import LazyVariable, counter
from tfddl._src.comm.native.thread_stacks import is_in_pipeline
from tfddl._src.comm.process_group import DynamicSignature

_MAX_STRETCHES = 64

_AHEAD = 2**40
"""More operations than any job has."""
_MAX_EVENTS = 1_000_000

Launch = Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]
"""Starts an operation on tensors, and returns its results."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A collective, as one rank saw it."""

    name: str
    ranks: tuple[int, ...]
    """Those that took part."""

    num_bytes: int
    """What this rank gave."""

    begin_s: float
    """When this rank was ready, in seconds since the epoch, by its own clock."""

    end_s: float


@dataclasses.dataclass(frozen=True)
class OperationInfo:
    """What is recorded of an operation, the same each time: its names and ranks."""

    name: str
    """What a trace calls it: "allreduce sum <loss>"."""

    text: str
    """What messages call it, with the tensors."""

    ranks: tuple[int, ...]
    """Who takes part, as the job counts them."""

    @classmethod
    def of(cls, signature: DynamicSignature, ranks: tuple[int, ...]) -> "OperationInfo":
        """What is recorded of a signature's operation."""
        call = signature.static
        return cls(call.text.partition("\n")[0], str(call), ranks)


class _Counts:
    """Operations that have begun and ended: in Python, and in TensorFlow's graphs."""

    def __init__(self) -> None:
        # Python's and graphs' counts are apart: a lock in Python can't guard what a graph adds to.
        self._begun = self._ended = 0
        self._lock = threading.Lock()
        self.keep_on("CPU:0")

    def keep_on(self, device: str) -> None:
        self.begun = counter("tfddl_begun", device)
        self.ended = counter("tfddl_ended", device)

    def begin(self) -> None:
        with self._lock:
            self._begun += 1

    def end(self) -> None:
        with self._lock:
            self._ended += 1

    def skip(self, number: int) -> None:
        with self._lock:
            self._begun += number
            self._ended += number

    def read(self) -> tuple[int, int]:
        return self._begun + self.begun.number, self._ended + self.ended.number


class Instrumentation:
    """Counts, times and traces the collectives of this process, and knows which is under way.

    The clock runs from when a rank's tensors are ready until the results are there. So it counts
    the waiting for ranks that come later; of operations that overlap, each moment counts once.
    Whether time is measured, or events are collected, is asked when a graph runs, not when it is
    made; a graph for which nobody wants to know pays next to nothing.
    """

    def __init__(self, size: int) -> None:
        """Begins at 0.

        Args:
            size: Of the job.
        """
        self._everyone = tuple(range(size))
        self._of_everyone, self._of_some = _Counts(), _Counts()
        self._device, self._stays_on_device = "CPU:0", False
        self._measures = False
        self.is_tracing = False
        """Whether events are collected."""
        self._is_wanted = LazyVariable(self._new_flag)
        self._seconds = 0.0
        self._covered: list[tuple[float, float]] = []
        """The last stretches of time that `_seconds` has, disjoint and ascending."""
        self._events: collections.deque[Event] = collections.deque(maxlen=_MAX_EVENTS)
        self._lock = threading.Lock()
        self.has_subgroups = False
        """Whether there are operations of some ranks only, which not all ranks count."""
        self.is_in_pipelines = False
        """Whether there are operations in `tf.data` pipelines, whose threads nobody sees."""
        self._operations: list[OperationInfo] = [
            OperationInfo("", "the first operation", self._everyone)
        ]
        self._numbers: dict[OperationInfo, int] = {}
        self._current = counter("tfddl_current_operation")
        self._eager: OperationInfo | None = None

    def keep_on(self, device: str, *, stays_there: bool) -> None:
        """Says where counters of graphs are kept; to be called before anything is recorded.

        Args:
            device: Where the tensors are: an edge from a GPU to the CPU waits for all that the GPU
                was given before.
            stays_there: Whether nothing else may be used. Then there is no clock: the CPU tells the
                time, and to ask it would keep the GPU waiting. Events are recorded only in graphs
                that are made while events are collected.
        """
        self._device, self._stays_on_device = device, stays_there
        self._current = counter("tfddl_current_operation", device)
        for counts in (self._of_everyone, self._of_some):
            counts.keep_on(device)

    def counts(self) -> tuple[int, int]:
        """How many operations of all ranks have begun and ended here; any thread may ask.

        All ranks begin the same ones, in the same order: so the one that has begun fewest is the
        one that others wait for.
        """
        return self._of_everyone.read()

    def counts_of_all_groups(self) -> tuple[int, int]:
        """Like `counts`, with the operations of some ranks only."""
        (begun, ended), (more_begun, more_ended) = self.counts(), self._of_some.read()
        return begun + more_begun, ended + more_ended

    def measure(self, wanted: bool) -> bool:
        """Starts or stops the clock that `seconds` reads; this rank's own affair.

        Returns:
            Whether collectives are measured now. They can't be where tensors stay on a GPU.
        """
        self._measures = wanted and not self._stays_on_device
        self._update_flag()
        return self._measures

    def seconds(self) -> float:
        """For how many seconds this rank has been in collectives while the clock ran."""
        return self._seconds

    def start_tracing(self) -> None:
        """Forgets all events, and collects new ones: the last million of them."""
        self._events.clear()
        self.is_tracing = True
        self._update_flag()

    def stop_tracing(self) -> list[Event]:
        """Collects no more; returns what there is, in the order in which it ended."""
        self.is_tracing = False
        self._update_flag()
        events = list(self._events)
        self._events.clear()
        return events

    def current_operation(self) -> OperationInfo:
        """The operation of TensorFlow's that this rank has entered last; any thread may ask."""
        return self._eager or self._operations[self._current.number]

    @contextlib.contextmanager
    def record(self, operation: OperationInfo, num_bytes: int) -> Iterator[None]:
        """Around an operation that runs in Python.

        Args:
            operation: What it is.
            num_bytes: What this rank gives.
        """
        # perf_counter is monotonic, so that no clock that is set makes a time negative; an event
        # gets the time of day only in the end, which hosts can compare.
        begin_s = time.perf_counter()
        counts = self._counts_of(operation)
        counts.begin()
        try:
            yield
        finally:
            counts.end()
            if self._measures or self.is_tracing:
                self._add(operation, num_bytes, begin_s)

    @contextlib.contextmanager
    def joining(self, ranks: tuple[int, ...]) -> Iterator[Callable[[int], None]]:
        """Around a wait in which this rank isn't to blame for operations that it hasn't begun.

        Args:
            ranks: Who waits.

        Yields:
            To be told how many operations the others had meanwhile, which then count here, too.
        """
        counts = self._of_everyone if ranks == self._everyone else self._of_some
        counts.skip(_AHEAD)
        try:
            yield counts.skip
        finally:
            counts.skip(-_AHEAD)

    def around(
        self,
        operation: OperationInfo,
        tensors: Sequence[tf.Tensor],
        launch: Launch,
        *,
        needs: Sequence[tf.Tensor] = (),
    ) -> list[tf.Tensor]:
        """Launches an operation of TensorFlow's, eagerly or in a graph.

        Args:
            operation: What it is; it begins when all that it gets is there.
            tensors: What this rank gives.
            launch: Launches it.
            needs: What else it gets. Where a check that this depends on fails, the operation
                has never begun; otherwise it would seem to be under way for ever.

        Returns:
            What `launch` has returned, once the operation is recorded.
        """
        self.is_in_pipelines |= is_in_pipeline()
        counts = self._counts_of(operation)
        is_eager = tf.executing_eagerly()
        is_timed = self.is_tracing or not self._stays_on_device
        # Made within the dependencies below, they would wait instead of what takes them.
        with tf.device(self._device):
            one = tf.constant(1, tf.int64)
            number = None if is_eager else tf.constant(self._number_of(operation), tf.int64)
        before: list[Any] = []
        with tf.control_dependencies([*tensors, *needs]):
            if is_timed:
                with tf.device("CPU:0"):
                    before.append(tf.cond(self._is_wanted.value, _now, _zero))
            with tf.device(self._device):
                before.append(counts.begun.value.assign_add(one, read_value=False))
                if number is not None:
                    before.append(self._current.value.assign(number, read_value=False))
        if is_eager:
            self._eager = operation
        try:
            with tf.control_dependencies([] if is_eager else before):
                arrived = launch([tf.identity(tensor) for tensor in tensors])
        except BaseException:
            if is_eager:  # It is no longer under way: others may follow.
                counts.ended.value.assign_add(one, read_value=False)
            raise
        finally:
            if is_eager:
                self._eager = None
        with tf.control_dependencies(arrived):
            if is_timed:
                self._add_in_graph(operation, tensors, before[0])
            with tf.device(self._device):
                ended = counts.ended.value.assign_add(one, read_value=False)
        with tf.control_dependencies([] if is_eager else [ended]):
            return [tf.identity(tensor) for tensor in arrived]

    def _counts_of(self, operation: OperationInfo) -> _Counts:
        return self._of_everyone if operation.ranks == self._everyone else self._of_some

    def _number_of(self, operation: OperationInfo) -> int:
        with self._lock:
            if operation not in self._numbers:
                self._numbers[operation] = len(self._operations)
                self._operations.append(operation)
            return self._numbers[operation]

    def _add_in_graph(
        self, operation: OperationInfo, tensors: Sequence[tf.Tensor], begin_s: tf.Tensor
    ) -> None:
        def add(begin_s: Any, num_bytes: Any) -> Any:
            self._add(operation, int(num_bytes), float(begin_s))
            return np.float64(0.0)

        def added() -> tf.Tensor:
            num_bytes = tf.add_n([tf.size(t, tf.int64) * t.dtype.size for t in tensors])
            return _scalar(tf.numpy_function(add, [begin_s, num_bytes], tf.float64))

        with tf.device("CPU:0"):
            tf.cond(begin_s > 0, added, _zero)

    def _add(self, operation: OperationInfo, num_bytes: int, begin_s: float) -> None:
        now_s = time.perf_counter()
        with self._lock:
            if self._measures:
                self._cover(begin_s, now_s)
            if self.is_tracing:
                end_s = time.time()
                begin_s += end_s - now_s
                event = Event(operation.name, operation.ranks, num_bytes, begin_s, end_s)
                self._events.append(event)

    def _cover(self, begin_s: float, end_s: float) -> None:
        """Adds what isn't counted yet of an operation that ends now: others may overlap with it."""
        counted_s, start_s = 0.0, begin_s
        while self._covered and self._covered[-1][1] > begin_s:
            first_s, last_s = self._covered.pop()
            counted_s += last_s - first_s
            start_s = min(start_s, first_s)
        self._covered.append((start_s, end_s))
        del self._covered[:-_MAX_STRETCHES]
        self._seconds += end_s - start_s - counted_s

    def _new_flag(self) -> tf.Variable:
        with tf.device("CPU:0"):
            wanted = self._measures or self.is_tracing
            return tf.Variable(wanted, trainable=False, name="tfddl_is_recording")

    def _update_flag(self) -> None:
        self._is_wanted.set(self._measures or self.is_tracing)


def _now() -> tf.Tensor:
    # Not tf.timestamp, which `enable_op_determinism` refuses.
    return _scalar(tf.numpy_function(lambda: np.float64(time.perf_counter()), [], tf.float64))


def _zero() -> tf.Tensor:
    return tf.zeros([], tf.float64)


def _scalar(value: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(value, [])
