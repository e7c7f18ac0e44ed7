"""Through networks of our own: memory that the workers of a host share, TCP between hosts.

The arithmetic and the waiting are `comm.native`'s; here is how TensorFlow gets there. A graph calls
Python for it (`tf.numpy_function`), which costs some 0.03 ms and no copy on the way in; on the way
out TensorFlow takes over the buffer as it is. Large tensors of a pack go side by side, without
being joined first.

Calls of a graph run in program order. Each takes in a *ticket* and gives out the next, which goes
through a variable, for branches and loops, and straight from one call to the next within a graph:
Grappler's dependency optimizer drops some of the edges that only say what comes first.
"""

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.comm.errors import (
    RankDeadlockError,
    RankLostError,
    RanksDisagreeError,
    RankStalledError,
    RefusedError,
)
from tfddl._src.comm.lazy_variable import counter
from tfddl._src.comm.native import Communicator, Network, OpSignature, ReduceOp
from tfddl._src.comm.native.thread_stacks import is_in_pipeline
from tfddl._src.comm.process_group import ALL_DTYPES, Lengths, ProcessGroup, with_small_joined
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.tracer import Event, Tracer
from tfddl.errors import DeadlockError, DisagreementError, PeerLostError, StalledError

Arrays = list[np.ndarray]

_TICKETS = "tfddl_tickets"

_SMALL_BYTES = 2**16
"""Tensors up to this size are joined: to join them takes less time than each one more that enters
Python and leaves it."""


@dataclasses.dataclass
class _Clock:
    """Seconds in collectives, while somebody wants to know."""

    runs: bool = False
    seconds: float = 0.0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class _Counts:
    """Operations of some ranks that have begun and ended here."""

    def __init__(self, total: "_Counts | None" = None) -> None:
        """Begins at 0.

        Args:
            total: what counts those of all ranks and sets, too; None if this is it.
        """
        self.begun = self.ended = 0
        self._total = total
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self.begun += 1
        if self._total is not None:
            self._total.begin()

    def end(self) -> None:
        with self._lock:
            self.ended += 1
        if self._total is not None:
            self._total.end()


class _Family:
    """What the transports through one network have together."""

    def __init__(self) -> None:
        self.clock = _Clock()
        self.counts = _Counts()
        self.by_ranks: dict[tuple[int, ...], ProcessGroup] = {}
        """Each set's, by the network's numbers: two of one set would take each other's messages."""
        self.making = threading.Lock()


class NativeGroup(ProcessGroup):
    """A `Communicator` between workers. Compares calls by itself."""

    dtypes = ALL_DTYPES
    rounds_once = True
    compares = True

    def __init__(
        self,
        network: Network,
        ranks: Sequence[int],
        tracer: Tracer | None = None,
        *,
        overlaps: bool = True,
    ) -> None:
        """Sits down with some workers; all of them do.

        Args:
            network: connects them.
            ranks: who takes part, as the network numbers them, ascending.
            tracer: is told what travels, while it is on.
            overlaps: see `ProcessGroup.overlaps`.
        """
        self._wire = Communicator(network, ranks)
        super().__init__(self._wire.rank, self._wire.size)
        self.overlaps = overlaps
        self._network = network
        self.name = network.name
        self._call = OpSignature("", "an operation")
        self._shapes: tuple[tf.Tensor, ...] = ()
        self._tracer = tracer or Tracer()
        self._family = _Family()
        self._family.by_ranks[self._wire.ranks] = self
        self._counts = _Counts(self._family.counts)
        self._token = counter("tfddl_ticket")

    def bind(self, call: OpSignature, shapes: Sequence[tf.Tensor] = ()) -> ProcessGroup:
        """See `ProcessGroup.bind`."""
        bound = copy.copy(self)
        bound._call, bound._shapes = call, tuple(shapes)
        return bound

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        if len(ranks) == 1:
            return SingleProcessGroup()
        by_ranks, members = self._family.by_ranks, tuple(self._wire.ranks[rank] for rank in ranks)
        with self._family.making:
            if members not in by_ranks:
                made = copy.copy(self)
                made._counts = _Counts(self._family.counts)
                made._wire = Communicator(self._network, members)
                ProcessGroup.__init__(made, made._wire.rank, made._wire.size)
                by_ranks[members] = made
            return by_ranks[members]

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.all_reduce`."""
        return self.all_reduce_pack([flat], reduction)[0]

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce_pack`."""

        def work(call: OpSignature, arrays: Arrays, factor: float | None) -> Arrays:
            return self._wire.all_reduce(arrays, reduction, call, scale=factor)

        return self._run_alike(work, pack, scale)

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            return [self._wire.all_gather(arrays[0].reshape(-1), call)]

        [rows] = self._run(work, [flat], [flat.dtype])
        rows.set_shape([self.size, flat.shape[0]])
        return rows

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """See `ProcessGroup.broadcast`."""
        return self.broadcast_pack([flat], root_rank)[0]

    def broadcast_pack(self, pack: Sequence[tf.Tensor], root_rank: int) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast_pack`."""

        def work(call: OpSignature, arrays: Arrays, _: float | None) -> Arrays:
            return self._wire.broadcast(arrays, root_rank, call)

        return self._run_alike(work, pack, None)

    def reduce_scatter(self, flat: tf.Tensor, lengths: Lengths, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            flat, each = arrays
            part = self._wire.reduce_scatter(flat, each.tolist(), reduction, call)
            return [part]

        each = tf.convert_to_tensor(lengths, tf.int64)
        [part] = self._run(work, [flat, each], [flat.dtype])
        part.set_shape([None])
        return part

    def all_to_all(self, flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            flat, each = arrays
            each = each.reshape(self.size, self.size)
            parts = np.split(flat, np.cumsum(each[self.rank])[:-1])
            return [self._wire.all_to_all(parts, each, call)]

        [joined] = self._run(work, [flat, tf.cast(lengths, tf.int64)], [flat.dtype])
        joined.set_shape([None])
        return joined

    def measure(self, wanted: bool) -> bool:
        """See `ProcessGroup.measure`."""
        self._family.clock.runs = wanted
        return wanted

    def seconds(self) -> float:
        """See `ProcessGroup.seconds`."""
        return self._family.clock.seconds

    def end(self, text: str) -> None:
        """See `ProcessGroup.end`."""
        self._network.mesh.end(text)

    def counts(self) -> tuple[int, int]:
        """See `ProcessGroup.counts`."""
        return self._counts.begun, self._counts.ended

    def counts_of_all_sets(self) -> tuple[int, int]:
        """See `ProcessGroup.counts_of_all_sets`."""
        return self._family.counts.begun, self._family.counts.ended

    def waited_seconds(self) -> float:
        """See `ProcessGroup.waited_seconds`."""
        return self._network.mesh.waited_s

    def counters(self) -> dict[str, int]:
        """See `ProcessGroup.counters`."""
        counters = self._wire.counters
        return {"bytes_reduced": counters.reduced, "bytes_written": counters.written}

    def _run_alike(
        self,
        work: Callable[[OpSignature, Arrays, float | None], Arrays],
        pack: Sequence[tf.Tensor],
        scale: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        """Runs what returns arrays of the lengths that it got; small neighbours go joined.

        What arrives for these is copied. TensorFlow likes to write to the slices that it makes of
        it, and would wait for the system to copy page by page.
        """
        scales = [] if scale is None else [tf.cast(scale, tf.float64)]

        def travel(tensors: Sequence[tf.Tensor], are_joined: Sequence[bool]) -> list[tf.Tensor]:
            def run(call: OpSignature, arrays: Arrays) -> Arrays:
                given = arrays[: len(tensors)]
                factor = float(arrays[-1]) if scales else None
                arrived = work(call, [a.reshape(-1) for a in given], factor)
                return [
                    array.copy() if is_joined else array.reshape(like.shape)
                    for array, is_joined, like in zip(arrived, are_joined, given, strict=True)
                ]

            arrived = self._run(run, [*tensors, *scales], [tensor.dtype for tensor in tensors])
            for tensor, like in zip(arrived, tensors, strict=True):
                tensor.set_shape(like.shape)
            return arrived

        return with_small_joined(pack, travel, most=_SMALL_BYTES)

    def _call_of(self, shapes: Arrays) -> OpSignature:
        """The call, and the shapes that are known now."""
        if not shapes:
            return self._call
        kind, *tensors = self._call.text.split("\n")
        texts = [
            f"{tensor}: ({', '.join(map(str, shape.tolist()))})"
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]
        return OpSignature(self._call.name, "\n".join([kind, *texts]))

    def _run(
        self,
        work: Callable[[OpSignature, Arrays], Arrays],
        inputs: Sequence[tf.Tensor],
        dtypes: Sequence[tf.DType],
    ) -> list[tf.Tensor]:
        def run(*given: Any) -> Arrays:
            arrays = [np.asarray(array) for array in given]
            call = self._call_of(arrays[len(inputs) :])
            begin_s = time.perf_counter()
            self._counts.begin()
            try:
                return work(call, arrays[: len(inputs)])
            finally:
                self._counts.end()
                self._record(call, arrays[: len(inputs)], time.perf_counter() - begin_s)

        if is_in_pipeline():
            self._network.mesh.expect_concurrent_calls()
        given = [*inputs, *self._shapes]
        if tf.executing_eagerly():
            return _run_eagerly(run, given)
        return self._run_in_graph(run, given, dtypes)

    def _run_in_graph(
        self, run: Callable[..., Arrays], inputs: Sequence[tf.Tensor], dtypes: Sequence[tf.DType]
    ) -> list[tf.Tensor]:
        def run_or_refuse(ticket: Any, _: Any, *given: Any) -> Arrays:
            try:
                return [np.asarray(ticket + 1), *run(*given)]
            except DisagreementError as error:
                raise RefusedError(str(error)) from None
            except DeadlockError:
                raise
            except StalledError as error:
                raise StalledError(f"{error}{_starving()}") from None

        graph = tf.compat.v1.get_default_graph()
        with tf.device("CPU:0"):
            ticket = self._token.value.read_value()
            order = [ticket, _last_ticket(graph, ticket)]
            next_ticket, *arrived = tf.numpy_function(
                run_or_refuse, [*order, *inputs], [tf.int64, *dtypes], name="tfddl_collective"
            )
            self._token.value.assign(next_ticket, read_value=False)
        next_ticket.set_shape([])
        graph.get_collection_ref(_TICKETS)[:] = [next_ticket]
        return arrived

    def _record(self, call: OpSignature, arrays: Arrays, seconds: float) -> None:
        if self._family.clock.runs:
            with self._family.clock.lock:
                self._family.clock.seconds += seconds
        if self._tracer.is_on:
            ranks = tuple(self._network.mesh.names[rank] for rank in self._wire.ranks)
            num_bytes = sum(array.nbytes for array in arrays)
            kind = call.text.partition("\n")[0]
            end_s = time.time()
            self._tracer.add(Event(kind, ranks, num_bytes, end_s - seconds, end_s))


def _starving() -> str:
    """What else may be the reason where graphs wait for each other."""
    if tf.config.threading.get_inter_op_parallelism_threads() != 1:
        return ""
    return "; and graphs that run at once, in threads, need tfddl.init(inter_op_threads=2) or more"


def _last_ticket(graph: tf.Graph, default: tf.Tensor) -> tf.Tensor:
    """What the operation before gave out, if it is in the same graph."""
    mine = [ticket for ticket in graph.get_collection_ref(_TICKETS) if ticket.graph is graph]
    return mine[-1] if mine else default


def _run_eagerly(run: Callable[..., Arrays], inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    try:
        arrived = run(*(tensor.numpy() for tensor in inputs))
    except DisagreementError as error:
        raise RanksDisagreeError(None, None, str(error)) from None
    except PeerLostError as error:
        raise RankLostError(str(error)) from None
    except DeadlockError as error:
        raise RankDeadlockError(str(error)) from None
    except StalledError as error:
        raise RankStalledError(str(error)) from None
    with tf.device("CPU:0"):
        return [tf.convert_to_tensor(array) for array in arrived]
