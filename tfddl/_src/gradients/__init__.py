"""Gradients averaged over the workers.

The weight travels with the gradient. A rank's gradient is that of a mean over its own examples;
their number is the *count*. Each rank multiplies its gradients with its count, and the sum over the
ranks, divided by the sum of the counts, is the gradient of the mean over all examples, also where
ranks have different numbers of them. Averaging the ranks' means would weight an example in a small
batch more than one in a large batch.

Small gradients travel with the counts, in one exchange. Where they are large, counts are exchanged
first, while gradients are still being computed, and these are divided before they are added up.

Gradients are matched by their variables, not by their places among those that a rank has: see
`matching`.

Usage::

    options = make_options("average", "none", False)
    averages = reduce_gradients(gradients, options, variables, step)
"""

from tfddl._src.gradients.loss_count import loss_count, sum_over_ranks
from tfddl._src.gradients.options import (
    Compression,
    Compressor,
    Gradient,
    ReductionOptions,
    make_options,
)
from tfddl._src.gradients.reduction import (
    reduce_gradients,
    sum_gradients,
    unexchanged,
    weight_gradients,
)
from tfddl._src.gradients.tape import DistributedGradientTape

__all__ = [
    "ReductionOptions",
    "Compression",
    "Compressor",
    "DistributedGradientTape",
    "Gradient",
    "sum_gradients",
    "unexchanged",
    "loss_count",
    "make_options",
    "reduce_gradients",
    "sum_over_ranks",
    "weight_gradients",
]
