"""The transport of a job of one worker: nothing travels."""

from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import ALL_DTYPES, Lengths, ProcessGroup, scaled


class SingleProcessGroup(ProcessGroup):
    """Hands everything back."""

    name = "none (one worker)"
    dtypes = ALL_DTYPES

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        raise AssertionError(f"one worker has no subset {ranks}")

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """The tensor as the only row."""
        return flat[tf.newaxis]

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)

    def reduce_scatter(self, flat: tf.Tensor, lengths: Lengths, reduction: ReduceOp) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)

    def all_to_all(self, flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """The tensor itself."""
        return tf.identity(flat)

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """The tensors themselves, or scaled."""
        return [tf.identity(tensor) for tensor in scaled(pack, scale)]

    def broadcast_pack(self, pack: Sequence[tf.Tensor], root_rank: int) -> list[tf.Tensor]:
        """The tensors themselves."""
        return [tf.identity(tensor) for tensor in pack]
