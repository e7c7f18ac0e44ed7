"""A process group whose operations are counted, timed and traced."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.comm.instrumentation import Instrumentation, Launch, OperationInfo
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, Lengths, ProcessGroup
from tfddl._src.comm.stall_inspector import StallInspector


class InstrumentedGroup(ProcessGroup):
    """A process group of TensorFlow's operations, all of which are recorded."""

    def __init__(self, group: ProcessGroup, instrumentation: Instrumentation) -> None:
        """Puts a record around a group.

        Args:
            group: Moves the tensors.
            instrumentation: Records it; of this process, whatever the group.
        """
        super().__init__(group.rank, group.ranks)
        self.name, self.dtypes, self.counters = group.name, group.dtypes, group.counters
        self.rounds_once, self.compares = group.rounds_once, group.compares
        self.overlaps = group.overlaps
        self.device, self.stays_on_device = group.device, group.stays_on_device
        self.can_close = group.can_close
        self._group, self._instrumentation = group, instrumentation
        self._inspector: StallInspector | None = None

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        self._instrumentation.has_subgroups = True
        return InstrumentedGroup(self._group.subgroup(ranks), self._instrumentation)

    def abort(self, text: str) -> None:
        """See `ProcessGroup.abort`."""
        self._group.abort(text)

    def close_before(self, inspector: StallInspector) -> None:
        """Closes what looks after this group, too, when it is closed."""
        self._inspector = inspector

    @property
    def is_broken(self) -> bool:
        """See `ProcessGroup.is_broken`."""
        return self._group.is_broken

    def close(self, text: str) -> None:
        """See `ProcessGroup.close`."""
        if self._inspector is not None:
            self._inspector.close()
        self._group.close(text)

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce`."""
        return self._recorded(
            signature,
            tensors,
            lambda given: self._group.all_reduce(given, op, scale=scale, signature=signature),
            needs=[] if scale is None else [scale],
        )

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        return self._recorded_one(
            signature, flat, lambda given: self._group.all_gather(given, signature=signature)
        )

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast`."""
        return self._recorded(
            signature,
            tensors,
            lambda given: self._group.broadcast(given, root, signature=signature),
        )

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`."""
        return self._recorded_one(
            signature,
            flat,
            lambda given: self._group.reduce_scatter(given, lengths, op, signature=signature),
            needs=[lengths] if isinstance(lengths, tf.Tensor) else [],
        )

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`."""
        return self._recorded_one(
            signature,
            flat,
            lambda given: self._group.all_to_all(given, lengths, signature=signature),
            needs=[lengths],
        )

    def _recorded_one(
        self,
        signature: DynamicSignature,
        flat: tf.Tensor,
        launch: Callable[[tf.Tensor], tf.Tensor],
        *,
        needs: Sequence[tf.Tensor] = (),
    ) -> tf.Tensor:
        return self._recorded(signature, [flat], lambda given: [launch(given[0])], needs=needs)[0]

    def _recorded(
        self,
        signature: DynamicSignature,
        tensors: Sequence[tf.Tensor],
        launch: Launch,
        *,
        needs: Sequence[tf.Tensor] = (),
    ) -> list[tf.Tensor]:
        operation = OperationInfo.of(signature, self.ranks)
        return self._instrumentation.around(operation, tensors, launch, needs=needs)
