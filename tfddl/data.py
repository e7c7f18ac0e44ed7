"""Plans applied to data: each worker's own dataset."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl.errors import DataError, UnsupportedError
from tfddl.plan import BlockPlan, GlobalPlan, Order, Plan
from tfddl.runtime import Runtime, current

STAND_IN_WEIGHT = np.float32(-0.0)
"""The sample weight of an example that doesn't count.

Negative zero is zero to every loss and weighted metric, and yet can be told from a weight of zero
that the user gave."""


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
    source = _Source.of(x, y, sample_weight)
    kind = {Order.GLOBAL: GlobalPlan, Order.BLOCK: BlockPlan}[_order(order)]
    plan: Plan = kind(
        num_examples=source.num_examples,
        size=runtime.cluster.size,
        batch_size=batch_size,
        seed=seed,
    )
    if plan.has_stand_ins:
        source = source.with_weights()
    return _dataset(runtime, source, plan, epoch)


@dataclasses.dataclass(frozen=True)
class _Source:
    """The whole data: arrays that can be indexed by example, and how they hang together."""

    structure: Any
    arrays: tuple[np.ndarray, ...]
    weight_arrays: int = 0
    """How many of the arrays, at the end, are sample weights."""

    @property
    def num_examples(self) -> int:
        return len(self.arrays[0])

    @classmethod
    def of(cls, x: Any, y: Any, sample_weight: Any) -> "_Source":
        if x is None:
            raise DataError("x is None; shard_dataset needs at least the inputs x.")
        if y is None and sample_weight is not None:
            raise DataError("sample_weight is given without y; there is no loss to weigh.")
        parts = [part for part in (x, y, sample_weight) if part is not None]
        structure = _plain(parts[0] if len(parts) == 1 else tuple(parts))
        names = [_name(path) for path in _paths(structure, single=len(parts) == 1)]
        arrays = tuple(
            _array(leaf, name) for leaf, name in zip(tf.nest.flatten(structure), names, strict=True)
        )
        if not arrays:
            raise DataError(f"x has no arrays in it: {x!r}.")
        _check_lengths(names, arrays)
        weights = 0 if sample_weight is None else len(tf.nest.flatten(_plain(sample_weight)))
        return cls(structure, arrays, weights)

    def with_weights(self) -> "_Source":
        """The same with sample weights that can be -0.0; ones where there were none."""
        if self.weight_arrays:
            cut = len(self.arrays) - self.weight_arrays
            weights = tuple(a if a.dtype.kind == "f" else a.astype("f4") for a in self.arrays[cut:])
            return dataclasses.replace(self, arrays=(*self.arrays[:cut], *weights))
        if not isinstance(self.structure, tuple) or len(self.structure) != 2:
            raise UnsupportedError(
                f"{self.num_examples} examples don't divide over the workers with batch_size=1, "
                "so that a worker without an example has to run one that doesn't count; this "
                "needs y, whose loss can be weighed. Use a batch_size of at least 2."
            )
        ones = np.ones(self.num_examples, np.float32)
        return _Source((*self.structure, ones), (*self.arrays, ones), 1)

    def rows(self, indices: np.ndarray, count: int) -> list[np.ndarray]:
        """The examples of a batch, one array per leaf."""
        rows = [np.asarray(array[indices]) for array in self.arrays]
        for i in range(len(rows) - self.weight_arrays, len(rows)):
            # Adding zero turns a user's -0.0 into 0.0.
            rows[i] = rows[i] + 0 if count else np.full_like(rows[i], STAND_IN_WEIGHT)
        return rows


def _dataset(runtime: Runtime, source: _Source, plan: Plan, epoch: int) -> tf.data.Dataset:
    rank = runtime.cluster.rank

    def batches() -> Iterator[Any]:
        # Asked when iteration starts: `fit` makes an iterator for each of its epochs.
        now = epoch if runtime.epoch is None else runtime.epoch
        for step in range(plan.steps):
            batch = plan.batch(epoch=now, step=step, rank=rank)
            rows = source.rows(batch.indices, batch.count)
            yield tf.nest.pack_sequence_as(source.structure, rows)

    specs = [tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in source.arrays]
    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=tf.nest.pack_sequence_as(source.structure, specs)
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(plan.steps))
    return dataset.with_options(options).prefetch(2)


def _order(order: str) -> Order:
    try:
        return Order(order)
    except ValueError:
        raise DataError(f"order is {order!r}; it must be {' or '.join(Order)}.") from None


def _plain(structure: Any) -> Any:
    """Lists of numbers are data, but tf.nest would take them for structure."""
    if isinstance(structure, collections.abc.Mapping):
        return {key: _plain(value) for key, value in structure.items()}
    if isinstance(structure, tuple) and not hasattr(structure, "_fields"):
        return tuple(_plain(value) for value in structure)
    return np.asarray(structure) if isinstance(structure, list) else structure


def _paths(structure: Any, *, single: bool) -> list[tuple[Any, ...]]:
    parts = ("x",) if single else ("x", "y", "sample_weight")
    wrapped = (structure,) if single else structure
    return [
        (part, *path)
        for part, value in zip(parts, wrapped, strict=False)
        for path in _leaf_paths(value)
    ]


def _leaf_paths(value: Any) -> list[tuple[Any, ...]]:
    if isinstance(value, collections.abc.Mapping):
        return [(key, *path) for key in sorted(value) for path in _leaf_paths(value[key])]
    if isinstance(value, tuple):
        return [(i, *path) for i, item in enumerate(value) for path in _leaf_paths(item)]
    return [()]


def _name(path: tuple[Any, ...]) -> str:
    return path[0] + "".join(f"[{key!r}]" for key in path[1:])


def _array(leaf: Any, name: str) -> np.ndarray:
    if isinstance(leaf, tf.data.Dataset) or not hasattr(leaf, "shape"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; shard_dataset takes arrays, memory-mapped arrays "
            "and tensors (or tuples and dictionaries of them)."
        )
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 0:
        raise DataError(f"{name} is a scalar; its first dimension must count the examples.")
    return array


def _check_lengths(names: list[str], arrays: tuple[np.ndarray, ...]) -> None:
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"All parts need the same number of examples, but {said}.")
