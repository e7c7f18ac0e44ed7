"""What `tfddl.strategy(virtual_workers=V)` returns: a scope for models, and no cluster."""

from typing import Any, NoReturn

import tensorflow as tf

from tfddl._src.step_context import current_step
from tfddl.errors import UnsupportedError


class VirtualStrategy(tf.distribute.OneDeviceStrategy):
    """A strategy whose only use is its scope: variables are plain ones, on this worker's device.

    `fit` runs the virtual workers, and adds up what they compute. TensorFlow's way to run a step on
    replicas knows nothing of them: it would train each worker alone, and is refused.
    """

    def __init__(self, virtual_workers: int, device: str) -> None:
        """Makes a strategy; nothing is started.

        Args:
            virtual_workers: For how many training is planned.
            device: Of this worker, such as "GPU:0".
        """
        super().__init__(f"/{device}")
        self.virtual_workers = virtual_workers
        # Where Keras' optimizers begin to update variables in the way of strategies
        # (keras/src/backend/tensorflow/optimizer.py), which those that `fit` adopts don't do.
        self.extended._use_merge_call = self._refuse_updates

    @property
    def num_replicas_in_sync(self) -> int:
        """The number of virtual workers, for global batch sizes."""
        # Keras' losses divide by it (scale_loss_for_distribution, keras/src/losses/loss.py), where
        # fit is called within the scope. The mean over all examples is made here.
        return 1 if current_step().capture is not None else self.virtual_workers

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedError, as do the other ways to run a step or to deal out data."""
        self._refuse("strategy.run was called")

    def reduce(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedError."""
        self._refuse("strategy.reduce was called")

    def gather(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedError."""
        self._refuse("strategy.gather was called")

    def experimental_distribute_dataset(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedError."""
        self._refuse("strategy.experimental_distribute_dataset was called")

    def distribute_datasets_from_function(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedError."""
        self._refuse("strategy.distribute_datasets_from_function was called")

    def _refuse_updates(self) -> NoReturn:
        self._refuse("an optimizer of its scope was called outside of fit")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(
            f"{what}, with tfddl.strategy(virtual_workers={self.virtual_workers}): each worker "
            "would train by itself. HINT: model.compile(…) under the scope, and model.fit("
            "tfddl.shard_dataset(…, virtual_workers=…)); loops by hand take tfddl.VirtualTrainStep "
            "and tfddl.DistributedOptimizer(…, virtual_workers=…), without a scope."
        )
