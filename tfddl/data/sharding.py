"""`shard_dataset`: each worker's own dataset."""

from typing import Any

import tensorflow as tf

from tfddl.data.share import Share
from tfddl.data.sources import Arrays
from tfddl.errors import DataError
from tfddl.plan import BlockPlan, GlobalPlan, Order, Plan
from tfddl.runtime import current


def shard_dataset(  # noqa: PLR0913 - the public signature: (x, y, sample_weight) as in Keras' fit
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int,
    seed: int | None = None,
    order: str = Order.GLOBAL,
    epoch: int = 0,
) -> tf.data.Dataset:
    """This worker's share of a data set, in batches.

    Every rank gives the whole data, as every worker can reach it, and gets the batches that are
    its own: each example of an epoch goes to exactly one rank, all ranks run the same number of
    steps, and no batch is empty, whatever the number of examples and workers. Auto-sharding is
    off.

    Within `fit` every epoch has an order of its own. In a loop written by hand, make the dataset
    anew in every epoch, with ``epoch=…``: a dataset that is iterated again repeats itself.

    With a batch size of 1 and a number of examples that the workers don't divide, some steps have
    fewer examples than workers. The ranks left over then run a real example with sample weight
    -0.0, which `fit` ignores altogether (a stand-in); such a dataset always has sample weights, so
    that `fit` takes no ``class_weight`` with it.

    Args:
        x: An array, a memory-mapped ``.npy`` (``np.load(path, mmap_mode="r")``), a tensor, or a
            tuple or dictionary of these; all have the same first dimension n.
        y: The same, or None.
        sample_weight: The same, or None.
        batch_size: Examples per rank and step, as in Horovod, at least 1. One worker with a batch
            size of ``size * batch_size`` has the same global batches.
        seed: Shuffles; the same on every rank. None keeps the order of the data.
        order: "global" (an epoch is one permutation of all examples) or "block" (each rank stays
            within its contiguous shard, and reads nothing else).
        epoch: Which epoch's order, outside of `fit`.

    Returns:
        A dataset of known length with elements ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` as
        given, batched: first dimensions at least 1 and at most ``batch_size``.

    Raises:
        DataError: Nothing given, lengths that differ, something without a length.
        PlanError: Fewer examples than workers, or a number out of range.
        UnsupportedError: Stand-ins are needed, but there is no ``y`` to weigh.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    source = Arrays(_given(x), y, _with_y(sample_weight, y))
    kind = {Order.GLOBAL: GlobalPlan, Order.BLOCK: BlockPlan}[_order(order)]
    plan: Plan = kind(
        num_examples=source.num_examples,
        size=runtime.cluster.size,
        batch_size=batch_size,
        seed=seed,
    )
    return Share(runtime, source, plan, epoch=epoch).dataset()


def _given(x: Any) -> Any:
    if x is None:
        raise DataError("x is None; shard_dataset needs at least the inputs x.")
    return x


def _with_y(sample_weight: Any, y: Any) -> Any:
    if y is None and sample_weight is not None:
        raise DataError("sample_weight is given without y; there is no loss to weigh.")
    return sample_weight


def _order(order: str) -> Order:
    try:
        return Order(order)
    except ValueError:
        raise DataError(f"order is {order!r}; it must be {' or '.join(Order)}.") from None
