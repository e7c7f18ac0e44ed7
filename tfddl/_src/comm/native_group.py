"""Through networks of our own: memory that the workers of a host share, TCP between hosts.

The arithmetic and the waiting are `comm.native`'s; here is how TensorFlow gets there. A graph calls
Python for it (`tf.numpy_function`), which costs some 0.03 ms, where the thread keeps its state (see
`thread_state`), and no copy on the way in; on the way out TensorFlow takes over the buffer itself.
Large tensors go side by side, without being joined first.

Operations of a graph run in program order. Each takes in a *ticket* and gives out the next, which
goes through a variable, for branches and loops, and straight from one operation to the next within
a graph: Grappler's dependency optimizer drops some of the edges that only say what comes first.
Graphs of TensorFlow 1's sessions are another matter (`session_graph`).
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.comm.errors import (
    DeadlockOpError,
    DisagreementOpError,
    GraphDisagreementError,
    PeerLostOpError,
    StalledOpError,
)
from tfddl._src.comm.instrumentation import Instrumentation, OperationInfo
from tfddl._src.comm.lazy_variable import counter
from tfddl._src.comm.native import Communicator, Network, OpSignature, ReduceOp
from tfddl._src.comm.native.thread_stacks import is_in_pipeline
from tfddl._src.comm.process_group import (
    ALL_DTYPES,
    UNNAMED,
    DynamicSignature,
    Lengths,
    ProcessGroup,
    with_small_concatenated,
)
from tfddl._src.comm.session_graph import call_in_own_thread, is_for_session, unique_name
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.thread_state import keep_thread_state
from tfddl.errors import (
    CommunicationError,
    DeadlockError,
    DisagreementError,
    PeerLostError,
    StalledError,
)

Arrays = list[np.ndarray]

_TICKETS = "tfddl_tickets"

_SMALL_BYTES = 2**16
"""Tensors up to this size are joined: to join them takes less time than each one more that enters
Python and leaves it."""


class _Shared:
    """What all groups over one network have in common."""

    def __init__(
        self, network: Network, instrumentation: Instrumentation, *, overlaps: bool
    ) -> None:
        self.network, self.instrumentation = network, instrumentation
        self.overlaps = overlaps
        self.ticket = counter("tfddl_ticket")
        self.groups: dict[tuple[int, ...], NativeGroup] = {}
        """By the network's numbers: two of one set would take each other's messages."""
        self.making = threading.Lock()
        self.why_closed = ""

    def group(self, members: tuple[int, ...]) -> "NativeGroup":
        """The only group of these members."""
        with self.making:
            if members not in self.groups:
                self.groups[members] = NativeGroup(self, members)
            return self.groups[members]


def connect_natively(
    network: Network, instrumentation: Instrumentation, *, overlaps: bool = True
) -> "NativeGroup":
    """The group of all workers that a network connects. Nothing travels for it.

    Args:
        network: Connects them.
        instrumentation: Records all operations, also those of its subgroups.
        overlaps: See `ProcessGroup.overlaps`.
    """
    shared = _Shared(network, instrumentation, overlaps=overlaps)
    return shared.group(tuple(range(network.mesh.size)))


class NativeGroup(ProcessGroup):
    """A `Communicator` between workers. Compares signatures by itself.

    `connect_natively` makes the first one of a network.
    """

    dtypes = ALL_DTYPES
    rounds_once = True
    compares = True
    runs_in_sessions = True
    can_close = True

    def __init__(self, shared: _Shared, members: tuple[int, ...]) -> None:
        """Connects some workers.

        Args:
            shared: What all groups over the network have in common.
            members: As the network numbers them, ascending.
        """
        network = shared.network
        self._communicator = Communicator(network, members)
        super().__init__(
            self._communicator.rank, [network.mesh.global_ranks[member] for member in members]
        )
        self.name, self.overlaps = network.name, shared.overlaps
        self.counters = self._communicator.counters
        self._shared = shared

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        if len(ranks) == 1:
            return SingleProcessGroup(self.ranks[ranks[0]])
        return self._shared.group(tuple(self._communicator.ranks[rank] for rank in ranks))

    def abort(self, text: str) -> None:
        """See `ProcessGroup.abort`; of all groups over the network."""
        self._shared.network.mesh.abort(text)

    @property
    def is_broken(self) -> bool:
        """See `ProcessGroup.is_broken`."""
        return self._shared.network.mesh.is_broken

    def close(self, text: str) -> None:
        """See `ProcessGroup.close`; all groups over the network."""
        self._shared.why_closed = text
        self.abort(text)
        self._shared.network.close()

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce`."""

        def work(call: OpSignature, arrays: Arrays, factor: float | None) -> Arrays:
            return self._communicator.all_reduce(arrays, op, call, scale=factor)

        return self._run_alike(work, tensors, scale, signature)

    def sum_weighted(
        self,
        head: tf.Tensor,
        tensors: Sequence[tf.Tensor],
        weight: tf.Tensor,
        *,
        divisor: float | None,
        signature: DynamicSignature = UNNAMED,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """See `ProcessGroup.sum_weighted`. Nothing but the sum passes through the memory twice."""

        def exchange(tensors: Sequence[tf.Tensor], _: Sequence[bool]) -> list[tf.Tensor]:
            def run(call: OpSignature, arrays: Arrays) -> Arrays:
                head, factor, *given = arrays
                arrived = self._communicator.sum_weighted(
                    head,
                    [array.reshape(-1) for array in given],
                    call,
                    weight=float(factor),
                    divisor=divisor,
                )
                # Slices of this may be written to: it is nobody else's memory.
                shapes = [head.shape, *(array.shape for array in given)]
                return [one.reshape(shape) for one, shape in zip(arrived, shapes, strict=True)]

            inputs = [head, weight, *tensors]
            arrived = self._run(run, inputs, [head.dtype] * (1 + len(tensors)), signature)
            for one, like in zip(arrived, [head, *tensors], strict=True):
                one.set_shape(like.shape)
            totals[:] = arrived[:1]
            return arrived[1:]

        totals: list[tf.Tensor] = []
        sums = with_small_concatenated(tensors, exchange, max_bytes=_SMALL_BYTES)
        return totals[0], sums

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            flat, joinable = arrays[0].reshape(-1), signature.joinable
            return [self._communicator.all_gather(flat, call, joinable=joinable)]

        [rows] = self._run(work, [flat], [flat.dtype], signature)
        rows.set_shape([self.size, flat.shape[0]])
        return rows

    def gather_rows(
        self, tensors: Sequence[tf.Tensor], *, signature: DynamicSignature = UNNAMED
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """See `ProcessGroup.gather_rows`; one call of Python, whatever the dtypes."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            return self._communicator.gather_rows(arrays, call)

        dtypes = [tf.int64, *(tensor.dtype for tensor in tensors)]
        rows, *joined = self._run(work, tensors, dtypes, signature)
        rows.set_shape([self.size, len(tensors)])
        for one, like in zip(joined, tensors, strict=True):
            one.set_shape(tf.TensorShape([None]).concatenate(like.shape[1:]))
        return rows, joined

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast`."""

        def work(call: OpSignature, arrays: Arrays, _: float | None) -> Arrays:
            return self._communicator.broadcast(arrays, root, call)

        return self._run_alike(work, tensors, None, signature)

    def join(self, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.join`."""

        def work(call: OpSignature, _: Arrays) -> Arrays:
            with self._shared.instrumentation.joining(self.ranks) as count_missed:
                joined = self._communicator.join(call)
                count_missed(joined.missed)
            return [np.asarray(joined.last, np.int32)]

        [last] = self._run(work, [], [tf.int32], signature)
        last.set_shape([])
        return last

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            flat, each = arrays
            return [self._communicator.reduce_scatter(flat, each.tolist(), op, call)]

        each = tf.convert_to_tensor(lengths, tf.int64)
        [part] = self._run(work, [flat, each], [flat.dtype], signature)
        part.set_shape([None])
        return part

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`."""

        def work(call: OpSignature, arrays: Arrays) -> Arrays:
            flat, each = arrays
            each = each.reshape(self.size, self.size)
            parts = np.split(flat, np.cumsum(each[self.rank])[:-1])
            return [self._communicator.all_to_all(parts, each, call)]

        [joined] = self._run(work, [flat, tf.cast(lengths, tf.int64)], [flat.dtype], signature)
        joined.set_shape([None])
        return joined

    def _run_alike(
        self,
        work: Callable[[OpSignature, Arrays, float | None], Arrays],
        tensors: Sequence[tf.Tensor],
        scale: tf.Tensor | None,
        signature: DynamicSignature,
    ) -> list[tf.Tensor]:
        """Runs what returns arrays of the lengths that it got; small neighbours go joined.

        What arrives for these is copied. TensorFlow likes to write to the slices that it makes of
        it, and would wait for the system to copy page by page.
        """
        scales = [] if scale is None else [tf.cast(scale, tf.float64)]

        def exchange(tensors: Sequence[tf.Tensor], are_joined: Sequence[bool]) -> list[tf.Tensor]:
            def run(call: OpSignature, arrays: Arrays) -> Arrays:
                given = arrays[: len(tensors)]
                factor = float(arrays[-1]) if scales else None
                arrived = work(call, [a.reshape(-1) for a in given], factor)
                return [
                    array.copy() if is_joined else array.reshape(like.shape)
                    for array, is_joined, like in zip(arrived, are_joined, given, strict=True)
                ]

            dtypes = [tensor.dtype for tensor in tensors]
            arrived = self._run(run, [*tensors, *scales], dtypes, signature)
            for tensor, like in zip(arrived, tensors, strict=True):
                tensor.set_shape(like.shape)
            return arrived

        return with_small_concatenated(tensors, exchange, max_bytes=_SMALL_BYTES)

    def _run(
        self,
        work: Callable[[OpSignature, Arrays], Arrays],
        inputs: Sequence[tf.Tensor],
        dtypes: Sequence[tf.DType],
        signature: DynamicSignature,
    ) -> list[tf.Tensor]:
        instrumentation = self._shared.instrumentation
        operation = OperationInfo.of(signature, self.ranks)
        in_session, static = is_for_session(), signature.static
        if in_session:
            static = dataclasses.replace(static, name=unique_name(self.ranks, static.name))

        def run(*given: Any) -> Arrays:
            arrays = [np.asarray(array) for array in given]
            call = _with_shapes(static, arrays[len(inputs) :])
            arrays = arrays[: len(inputs)]
            if self._shared.why_closed:
                raise CommunicationError(f"{call}: {self._shared.why_closed}")
            with instrumentation.record(operation, sum(array.nbytes for array in arrays)):
                return work(call, arrays)

        # Threads of tf.data aren't Python's: a wait in one of them looks as if nothing else could
        # run, and might be taken for a deadlock.
        if in_session or is_in_pipeline():
            self._shared.network.mesh.expect_concurrent_calls()
        given = [*inputs, *signature.shapes]
        if tf.executing_eagerly():
            return _run_eagerly(run, given)
        if in_session:
            return call_in_own_thread(run, given, dtypes)
        return self._run_in_graph(run, given, dtypes)

    def _run_in_graph(
        self, run: Callable[..., Arrays], inputs: Sequence[tf.Tensor], dtypes: Sequence[tf.DType]
    ) -> list[tf.Tensor]:
        # What Python raises here, TensorFlow turns into one of its own errors by type (ValueError:
        # InvalidArgumentError; most others: UnknownError) and keeps only the text.
        def run_or_refuse(ticket: Any, _: Any, *given: Any) -> Arrays:
            keep_thread_state()
            try:
                return [np.asarray(ticket + 1), *run(*given)]
            except DisagreementError as error:
                raise GraphDisagreementError(str(error)) from None
            except DeadlockError:
                raise
            except StalledError as error:
                raise StalledError(f"{error}{_starving()}") from None

        graph = tf.compat.v1.get_default_graph()
        with tf.device("CPU:0"):
            variable = self._shared.ticket.value
            ticket = variable.read_value()
            order = [ticket, _last_ticket(graph, ticket)]
            next_ticket, *arrived = tf.numpy_function(
                run_or_refuse, [*order, *inputs], [tf.int64, *dtypes], name="tfddl_collective"
            )
            variable.assign(next_ticket, read_value=False)
        # numpy_function tells no shapes, not even the rank.
        next_ticket.set_shape([])
        graph.get_collection_ref(_TICKETS)[:] = [next_ticket]
        return arrived


def _with_shapes(call: OpSignature, shapes: Arrays) -> OpSignature:
    """The call, and the shapes that are known now."""
    if not shapes:
        return call
    kind, *tensors = call.text.split("\n")
    texts = [
        f"{tensor}: ({', '.join(map(str, shape.tolist()))})"
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]
    return OpSignature(call.name, "\n".join([kind, *texts]))


def _starving() -> str:
    """What else may be the reason where graphs wait for each other."""
    if tf.config.threading.get_inter_op_parallelism_threads() != 1:
        return ""
    return "; and graphs that run at once, in threads, need tfddl.init(inter_op_threads=2) or more"


def _last_ticket(graph: tf.Graph, default: tf.Tensor) -> tf.Tensor:
    """What the operation before gave out, if it is in the same graph."""
    # An inner graph (a branch, a loop's body) begins with a copy of the outer one's collections
    # (FuncGraph.__init__, func_graph.py), whose tensors it would have to capture.
    mine = [ticket for ticket in graph.get_collection_ref(_TICKETS) if ticket.graph is graph]
    return mine[-1] if mine else default


def _run_eagerly(run: Callable[..., Arrays], inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    try:
        arrived = run(*(tensor.numpy() for tensor in inputs))
    except DisagreementError as error:
        raise DisagreementOpError(None, None, str(error)) from None
    except PeerLostError as error:
        raise PeerLostOpError(str(error)) from None
    except DeadlockError as error:
        raise DeadlockOpError(str(error)) from None
    except StalledError as error:
        raise StalledOpError(str(error)) from None
    with tf.device("CPU:0"):
        return [tf.convert_to_tensor(array) for array in arrived]
