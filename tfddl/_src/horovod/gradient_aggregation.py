"""Horovod's own class for ``backward_passes_per_step``, which the optimizer does here by itself."""

from typing import Any

from tfddl.errors import UnsupportedError


class LocalGradientAggregationHelper:
    """Can be imported, and tested for; there are none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "LocalGradientAggregationHelper isn't supported: Keras' optimizers add gradients up by "
            "themselves. HINT: hvd.DistributedOptimizer(optimizer, backward_passes_per_step=N)."
        )
