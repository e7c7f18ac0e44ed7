"""`horovod.tensorflow.gradient_aggregation_eager`: gradients added up over several steps."""

from tfddl._src.horovod.gradient_aggregation import (
    LocalGradientAggregationHelper as LocalGradientAggregationHelperEager,
)

__all__ = ["LocalGradientAggregationHelperEager"]
