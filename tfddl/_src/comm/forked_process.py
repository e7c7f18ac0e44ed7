"""The process group of a process that was forked from a worker: it takes part in nothing."""

from collections.abc import Sequence
from typing import NoReturn

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp, describe_fork
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, ProcessGroup
from tfddl.errors import UnsupportedError


class ForkedProcessGroup(ProcessGroup):
    """Refuses everything, at once: the connections are the worker's.

    All methods but `abort` raise `UnsupportedError`.
    """

    name = "none (a forked process)"
    dtypes = frozenset()

    def subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        """Refuses; all operations begin with it."""
        self._refuse()

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        self._refuse()

    def abort(self, text: str) -> None:
        """Nothing: no operation of this process waits."""

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """Raises UnsupportedError."""
        self._refuse()

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """Raises UnsupportedError."""
        self._refuse()

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """Raises UnsupportedError."""
        self._refuse()

    def join(self, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """Raises UnsupportedError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(describe_fork(self.rank))
