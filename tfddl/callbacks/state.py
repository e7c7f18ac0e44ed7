"""What the ranks have alike: the state they start from, and the numbers in their logs."""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl.collectives import ReduceOp, grouped_allreduce
from tfddl.errors import UnsupportedError
from tfddl.keras_hooks import BroadcastCallback
from tfddl.runtime import current


class BroadcastGlobalVariables(BroadcastCallback):
    """Makes all ranks start from the weights and the optimizer of one of them.

    `fit` starts from rank 0's anyway. With this callback the ranks may come with different step
    counts too, such as after a checkpoint was loaded on one of them only.
    """

    def __init__(self, root_rank: int = 0, *, local_variables: Sequence[Any] = ()) -> None:
        """Takes the rank.

        Args:
            root_rank: Whose state, 0 <= root_rank < size.
            local_variables: What stays each rank's own.

        Raises:
            UnsupportedError: There is no such rank.
        """
        size = current().cluster.size
        if not 0 <= root_rank < size:
            raise UnsupportedError(f"root_rank is {root_rank}; it must be 0..{size - 1}.")
        super().__init__(root_rank, local_variables)


class MetricAverage(keras.callbacks.Callback):
    """Averages the numbers in an epoch's logs over the ranks.

    What `fit` itself logs is the job's already, and stays as it is. This is for what callbacks
    before it have added on every rank under the same names; callbacks after it then see the
    average. All ranks take part.
    """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Averages them.

        Raises:
            DisagreementError: Ranks have different names in their logs.
        """
        if not logs or current().cluster.size == 1:
            return
        names = sorted(name for name, value in logs.items() if isinstance(value, numbers.Real))
        values = [tf.constant(float(logs[name]), tf.float64) for name in names]
        kind = f"logs {', '.join(names)}"
        for name, mean in zip(
            names, grouped_allreduce(values, ReduceOp.AVERAGE, name=kind), strict=True
        ):
            logs[name] = float(mean)
