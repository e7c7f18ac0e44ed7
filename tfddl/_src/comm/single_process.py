"""The process group of a job of one worker: nothing travels."""

from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import (
    ALL_DTYPES,
    UNNAMED,
    DynamicSignature,
    Lengths,
    ProcessGroup,
    scaled,
)


class SingleProcessGroup(ProcessGroup):
    """Hands everything back."""

    name = "none (one worker)"
    dtypes = ALL_DTYPES
    can_close = True

    def __init__(self, rank: int = 0) -> None:
        """A group of one.

        Args:
            rank: The worker's, in the job.
        """
        super().__init__(0, [rank])

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        raise AssertionError(f"one worker has no subset {ranks}")

    def abort(self, text: str) -> None:
        """Nothing: where nothing travels, nothing waits."""

    def close(self, text: str) -> None:
        """Nothing: there are no connections."""

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """The tensors themselves, or scaled."""
        return [tf.identity(tensor) for tensor in scaled(tensors, scale)]

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """The tensor as the only row."""
        return flat[tf.newaxis]

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """The tensors themselves."""
        return [tf.identity(tensor) for tensor in tensors]

    def join(self, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """The only worker's place: 0."""
        return tf.constant(0)

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)
