"""A record of what travels through a transport that has none of its own."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.comm.native import OpSignature, ReduceOp
from tfddl._src.comm.process_group import Lengths, ProcessGroup
from tfddl._src.comm.stall_inspector import StallInspector
from tfddl._src.comm.tracer import Event, Tracer


class TracedTransport(ProcessGroup):
    """Another transport, and a tracer that is told of all that travels while it collects.

    Whether it does is asked when a graph runs, not when it is made. A roll is told always.

    Where tensors stay on a GPU, a graph records only if the tracer was on when the graph was made:
    the record is the CPU's, and to ask whether it is wanted would keep the GPU waiting.
    """

    def __init__(self, traced: ProcessGroup, tracer: Tracer, roll: StallInspector) -> None:
        self._take_after(traced)
        self._tracer = tracer
        self._ranks = tuple(range(traced.size))
        self._operation = self._waits_in = "an operation"
        self._roll = roll
        if traced.stays_on_device:
            roll.note_on(traced.device)

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        made = copy.copy(self)
        made._take_after(self._traced.among(ranks))
        made._ranks = tuple(self._ranks[rank] for rank in ranks)
        return made

    def _take_after(self, traced: ProcessGroup) -> None:
        """Becomes what the other one is."""
        ProcessGroup.__init__(self, traced.rank, traced.size)
        self._traced = traced
        self.name, self.dtypes = traced.name, traced.dtypes
        self.rounds_once, self.compares = traced.rounds_once, traced.compares
        self.overlaps = traced.overlaps
        self.device, self.stays_on_device = traced.device, traced.stays_on_device

    def bind(self, call: OpSignature, shapes: Sequence[tf.Tensor] = ()) -> ProcessGroup:
        """See `ProcessGroup.bind`."""
        bound = copy.copy(self)
        bound._traced = self._traced.bind(call, shapes)
        bound._operation, bound._waits_in = call.text.partition("\n")[0], str(call)
        return bound

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.all_reduce`."""
        return self._one(flat, lambda t: self._traced.all_reduce(t, reduction))

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        return self._one(flat, self._traced.all_gather)

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """See `ProcessGroup.broadcast`."""
        return self._one(flat, lambda t: self._traced.broadcast(t, root_rank))

    def reduce_scatter(self, flat: tf.Tensor, lengths: Lengths, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`."""
        return self._one(flat, lambda t: self._traced.reduce_scatter(t, lengths, reduction))

    def all_to_all(self, flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`."""
        return self._one(flat, lambda t: self._traced.all_to_all(t, lengths))

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce_pack`."""
        return self._recorded(
            pack, lambda tensors: self._traced.all_reduce_pack(tensors, reduction, scale=scale)
        )

    def broadcast_pack(self, pack: Sequence[tf.Tensor], root_rank: int) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast_pack`."""
        return self._recorded(pack, lambda tensors: self._traced.broadcast_pack(tensors, root_rank))

    def waited_seconds(self) -> float:
        """See `ProcessGroup.waited_seconds`."""
        return self._traced.waited_seconds()

    def counters(self) -> dict[str, int]:
        """See `ProcessGroup.counters`."""
        return self._traced.counters()

    def end(self, text: str) -> None:
        """See `ProcessGroup.end`."""
        self._traced.end(text)

    def counts(self) -> tuple[int, int]:
        """See `ProcessGroup.counts`."""
        return self._traced.counts()

    def measure(self, wanted: bool) -> bool:
        """See `ProcessGroup.measure`."""
        return self._traced.measure(wanted)

    def seconds(self) -> float:
        """See `ProcessGroup.seconds`."""
        return self._traced.seconds()

    def _one(self, flat: tf.Tensor, travel: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return self._recorded([flat], lambda tensors: [travel(tensors[0])])[0]

    def _recorded(
        self,
        pack: Sequence[tf.Tensor],
        travel: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        if self.stays_on_device and not self._tracer.is_on:
            with (
                tf.control_dependencies(list(pack)),
                self._roll.within(self._waits_in, self._ranks) as entered,
                tf.control_dependencies(entered),
            ):
                return travel([tf.identity(tensor) for tensor in pack])
        name = self._operation

        def record(begin_s: Any, num_bytes: Any) -> Any:
            self._tracer.add(
                Event(name, self._ranks, int(num_bytes), float(begin_s), end_s=time.time())
            )
            return np.float64(0.0)

        with tf.control_dependencies(list(pack)), tf.device("CPU:0"):
            begin_s = tf.cond(self._tracer.running, _now, _zero)
        with (
            tf.control_dependencies([begin_s]),
            self._roll.within(self._waits_in, self._ranks) as entered,
            tf.control_dependencies(entered),
        ):
            arrived = travel([tf.identity(tensor) for tensor in pack])
        with tf.control_dependencies(arrived), tf.device("CPU:0"):
            num_bytes = tf.add_n([tf.size(t, tf.int64) * t.dtype.size for t in pack])
            tf.cond(
                begin_s > 0,
                lambda: _ensure_scalar(tf.numpy_function(record, [begin_s, num_bytes], tf.float64)),
                _zero,
            )
        return arrived


def _now() -> tf.Tensor:
    return _ensure_scalar(tf.numpy_function(lambda: np.float64(time.time()), [], tf.float64))


def _zero() -> tf.Tensor:
    return tf.zeros([], tf.float64)


def _ensure_scalar(value: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(value, [])
