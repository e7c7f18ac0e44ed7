"""The transport of a process that was forked from a worker: it has none."""

from collections.abc import Sequence
from typing import NoReturn

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp, describe_fork
from tfddl._src.comm.process_group import ProcessGroup
from tfddl.errors import UnsupportedError


class ForkedProcessGroup(ProcessGroup):
    """Refuses everything, at once: the connections are the worker's."""

    name = "none (a forked process)"
    dtypes = frozenset()

    def among(self, ranks: tuple[int, ...]) -> ProcessGroup:
        """Refuses, see `ProcessGroup.among`; all operations begin with it."""
        self._refuse()

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        self._refuse()

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """Refuses."""
        self._refuse()

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """Refuses."""
        self._refuse()

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """Refuses."""
        self._refuse()

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Refuses."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(describe_fork(self.rank))
