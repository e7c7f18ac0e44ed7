"""Gradients averaged over the workers.

The weight travels with the gradient. A rank's gradient is that of a mean over its own examples;
their number is the *count*. At the beginning of a step's backward pass the ranks add up their
counts; each then multiplies its gradients with its count's part of the sum, and what all of them
add up to is the gradient of the mean over all examples, also where ranks have different numbers of
them. Averaging the ranks' means would weigh an example in a small batch more than one in a large
batch.

Gradients meet by their variables, not by their places among those that a rank has: see `matching`.

Usage::

    averaging = make_averaging("average", "none", False)
    averages = reduce_gradients(gradients, averaging, variables)
"""

from tfddl._src.gradients.loss_count import loss_count, sum_over_ranks
from tfddl._src.gradients.options import Averaging, Compression, Gradient, make_averaging
from tfddl._src.gradients.reduction import add_up_gradients, reduce_gradients, weigh_gradients
from tfddl._src.gradients.tape import DistributedGradientTape

__all__ = [
    "Averaging",
    "Compression",
    "DistributedGradientTape",
    "Gradient",
    "add_up_gradients",
    "loss_count",
    "make_averaging",
    "reduce_gradients",
    "sum_over_ranks",
    "weigh_gradients",
]
