"""`horovod.tensorflow.gradient_aggregation`: gradients added up over several steps."""

from tfddl._src.horovod.gradient_aggregation import (
    LocalGradientAggregationHelper as LocalGradientAggregationHelper,
)
