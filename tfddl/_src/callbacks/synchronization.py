"""Callbacks that make ranks alike: their initial state, and the numbers in their logs."""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import ReduceOp, grouped_allreduce
from tfddl._src.keras_hooks import BroadcastCallback, broadcast_model, trains_together
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError


class BroadcastGlobalVariables(BroadcastCallback):
    """Makes all ranks start from the weights and the optimizer of one of them.

    With a `tfddl.DistributedOptimizer`, `fit` starts from rank 0's anyway. With this callback the
    ranks may have different step counts too, such as after a checkpoint was loaded on one of them
    only.

    With any other optimizer, such as that of a model whose ``train_step`` averages the gradients by
    itself, it acts after the first batch, when all variables have been made: all ranks then go on
    from what the root's first step made. Optimizers that are attributes of the model are included.
    """

    def __init__(self, root_rank: int = 0, *, local_variables: Sequence[Any] = ()) -> None:
        """Checks the rank.

        Args:
            root_rank: Whose state, 0 <= root_rank < size; the same on every rank.
            local_variables: Variables that stay each rank's own.

        Raises:
            UnsupportedError: There is no such rank.
        """
        size = current().cluster.size
        if not 0 <= root_rank < size:
            raise UnsupportedError(f"root_rank is {root_rank}; expected 0..{size - 1}.")
        super().__init__(root_rank, local_variables)
        self._is_due = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Plans a broadcast after the first batch, where `fit` does none."""
        self._is_due = not trains_together(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcasts after the first batch, if planned.

        Raises:
            DisagreementOpError: Ranks have different variables.
        """
        if self._is_due:
            self._is_due = False
            # Models with several optimizers, such as GANs, keep them as attributes.
            held = [self.model.optimizer, *vars(self.model).values()]
            optimizers = {id(o): o for o in held if isinstance(o, keras.optimizers.Optimizer)}
            broadcast_model(
                self.model, optimizers.values(), self.root_rank, own=self.local_variables
            )


class MetricAverage(keras.callbacks.Callback):
    """Averages the numbers in an epoch's logs over the ranks.

    What `fit` itself logs is the job's already, and stays as it is. This is for what callbacks
    before it have added on every rank under the same names; callbacks after it then get the
    average. All ranks must have it.
    """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replaces the numbers by their averages.

        Raises:
            DisagreementError: Ranks have different names in their logs.
        """
        if not logs or current().cluster.size == 1:
            return
        # Sorted: dictionaries keep the order of insertion, which may differ between ranks.
        names = sorted(name for name, value in logs.items() if isinstance(value, numbers.Real))
        values = [tf.constant(float(logs[name]), tf.float64) for name in names]
        kind = f"logs {', '.join(names)}"
        for name, mean in zip(
            names, grouped_allreduce(values, ReduceOp.AVERAGE, name=kind), strict=True
        ):
            logs[name] = float(mean)
