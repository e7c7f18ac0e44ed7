"""A clock around a transport: how long this worker is in collectives."""

import copy
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import Lengths, ProcessGroup


class TimedTransport(ProcessGroup):
    """Another transport, and a clock that runs while somebody wants to know.

    The clock runs from when a tensor is ready to travel, and the collective before it is over,
    until the result is there. So it counts the waiting for ranks that come later, and each moment
    once, also where one collective waits in line behind another. Whatever is computed meanwhile
    counts as time in collectives. Where tensors stay on a GPU there is no clock: the CPU tells the
    time, and to ask it would keep the GPU waiting.

    Whether to measure is asked when a graph runs, not when it is made: so a graph that was made
    before can be measured, and one that isn't measured pays next to nothing.
    """

    def __init__(self, timed: ProcessGroup) -> None:
        super().__init__(timed.rank, timed.size)
        self.name, self.dtypes = timed.name, timed.dtypes
        self.device, self.stays_on_device = timed.device, timed.stays_on_device
        self._timed = timed
        with tf.device("CPU:0"):
            self._measuring = tf.Variable(False, trainable=False, name="tfddl_measuring")
            # Seconds in collectives so far, and the time at which the last of them ended.
            self._clock = tf.Variable(
                [0.0, 0.0], trainable=False, dtype=tf.float64, name="tfddl_clock"
            )

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        made = copy.copy(self)  # The clock is the same.
        made._timed = self._timed.among(ranks)
        ProcessGroup.__init__(made, made._timed.rank, made._timed.size)
        return made

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.all_reduce`."""
        return self._one(flat, lambda t: self._timed.all_reduce(t, reduction))

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        return self._one(flat, self._timed.all_gather)

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """See `ProcessGroup.broadcast`."""
        return self._one(flat, lambda t: self._timed.broadcast(t, root_rank))

    def reduce_scatter(self, flat: tf.Tensor, lengths: Lengths, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`."""
        return self._one(flat, lambda t: self._timed.reduce_scatter(t, lengths, reduction))

    def all_to_all(self, flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`."""
        return self._one(flat, lambda t: self._timed.all_to_all(t, lengths))

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce_pack`."""
        return self._measured(
            pack, lambda tensors: self._timed.all_reduce_pack(tensors, reduction, scale=scale)
        )

    def broadcast_pack(self, pack: Sequence[tf.Tensor], root_rank: int) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast_pack`."""
        return self._measured(pack, lambda tensors: self._timed.broadcast_pack(tensors, root_rank))

    def measure(self, wanted: bool) -> bool:
        """See `ProcessGroup.measure`."""
        running = wanted and not self.stays_on_device and _can_tell_the_time()
        self._measuring.assign(running)
        return running

    def seconds(self) -> float:
        """See `ProcessGroup.seconds`."""
        return float(self._clock.numpy()[0])

    def end(self, text: str) -> None:
        """See `ProcessGroup.end`."""
        self._timed.end(text)

    def counts(self) -> tuple[int, int]:
        """See `ProcessGroup.counts`."""
        return self._timed.counts()

    def _one(self, flat: tf.Tensor, travel: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return self._measured([flat], lambda tensors: [travel(tensors[0])])[0]

    def _measured(
        self,
        pack: Sequence[tf.Tensor],
        travel: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        if self.stays_on_device:
            return travel(pack)
        with tf.control_dependencies(list(pack)), tf.device("CPU:0"):
            ready_s = tf.cond(self._measuring, tf.timestamp, lambda: tf.zeros([], tf.float64))
        with tf.control_dependencies([ready_s]):
            arrived = travel([tf.identity(tensor) for tensor in pack])
        with tf.control_dependencies(arrived), tf.device("CPU:0"):
            # Zero: nobody wants to know.
            tf.cond(ready_s > 0, lambda: self._add(ready_s), lambda: tf.zeros([2], tf.float64))
        return arrived

    def _add(self, ready_s: tf.Tensor) -> tf.Tensor:
        now_s = tf.timestamp()
        spent_s, last_s = tf.unstack(self._clock)
        spent_s += now_s - tf.maximum(ready_s, last_s)
        return self._clock.assign([spent_s, now_s], read_value=True)


def _can_tell_the_time() -> bool:
    try:
        tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True
