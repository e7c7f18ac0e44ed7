"""A worker's part of each batch of a `tf.data.Dataset` of global batches."""

from typing import Any

import tensorflow as tf

from tfddl._src.data import lineage, sample_weights, structure
from tfddl.errors import DataError


def slice_batches(dataset: tf.data.Dataset, *, rank: int, size: int, pad: bool) -> tf.data.Dataset:
    """The rank's part of every batch, by `shard_range`.

    Each worker makes whole batches and drops what isn't its own; `shard_dataset` reads less.

    Args:
        dataset: Of global batches: elements ``x``, ``(x, y)`` or ``(x, y, sample_weight)``, the
            same on every rank.
        rank: Whose part.
        size: Over how many ranks.
        pad: Whether a rank without an example may get a padding example, and elements sample
            weights for it. Otherwise a batch of fewer examples than workers raises a
            `tf.errors.InvalidArgumentError` where it is read, on all ranks.

    Returns:
        A dataset of as many elements. Its ``tfddl_order`` describes, as a text, what must be alike
        on all ranks.

    Raises:
        DataError: Its elements aren't batches of tensors; or its order changes from one process
            to the other.
    """
    lengths = _static_lengths(dataset.element_spec)
    _refuse_other_orders(dataset)
    always_enough = all(length is not None and length >= size for length in lengths)
    pad = pad and not always_enough and isinstance(dataset.element_spec, tuple)
    pad = pad and len(dataset.element_spec) in (2, 3)

    # Autograph would read the source again, which a notebook or an edited file may not have.
    @tf.autograph.experimental.do_not_convert
    def cut(*parts: Any) -> Any:
        n = tf.shape(tf.nest.flatten(parts)[0])[0]
        # The same batch on every rank: where it is too small, all fail.
        enough = tf.debugging.assert_greater_equal(n, 1 if pad else size, _too_few(size))
        with tf.control_dependencies([enough]):
            start, stop = _range(tf.identity(n), rank, size)
        is_mine = stop > start
        # Where the rank's part is empty, the batch's first example is its padding example.
        low, high = tf.where(is_mine, start, 0), tf.where(is_mine, stop, 1)
        mine = tf.nest.map_structure(lambda part: part[low:high], structure.element(parts))
        return sample_weights.weight_batch(mine, is_mine) if pad else mine

    # deterministic=True: parallel calls must not change the order, by which ranks agree.
    sliced = dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)
    sliced.tfddl_order = _order(dataset)
    return sliced


def _order(dataset: tf.data.Dataset) -> str:
    """What the order of a dataset depends on, as far as ranks may differ in it."""
    shuffles = [
        a for a in lineage.ancestors(dataset) if lineage.dataset_type(a) == "ShuffleDataset"
    ]
    seeds = ", ".join(str(lineage.seeds(shuffle)) for shuffle in shuffles)
    length = int(dataset.cardinality())  # Negative where it is unknown or infinite.
    return f"a tf.data.Dataset of {length if length >= 0 else 'unknown or infinite'} batches, " + (
        f"shuffled with seeds {seeds}" if shuffles else "not shuffled"
    )


def _range(n: tf.Tensor, rank: int, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """`shard_range` in a graph, of a batch size that is known only when it runs."""
    quotient, remainder = n // size, n % size
    start = rank * quotient + tf.minimum(rank, remainder)
    return start, start + quotient + tf.cast(rank < remainder, n.dtype)


def _too_few(size: int) -> str:
    return (
        f"A batch has fewer examples than there are workers ({size}), so that some would have "
        "none. HINT: leave a small last batch out, batch(n, drop_remainder=True), or use "
        "tfddl.shard_dataset."
    )


def _static_lengths(specs: Any) -> list[int | None]:
    leaves = tf.nest.flatten(specs)
    for spec in leaves:
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank == 0:
            raise DataError(
                f"The dataset has {spec} in its elements, which can't be cut into the workers' "
                "parts; expected batches of tensors. HINT: dataset.batch(global_batch_size), or "
                "give the single examples to tfddl.shard_dataset."
            )
    return [None if spec.shape.rank is None else spec.shape[0] for spec in leaves]


def _refuse_other_orders(dataset: tf.data.Dataset) -> None:
    for ancestor in lineage.ancestors(dataset):
        shuffles = lineage.dataset_type(ancestor) == "ShuffleDataset"
        unseeded = shuffles and not any(lineage.seeds(ancestor))
        if unseeded or not lineage.keeps_order(ancestor):
            raise DataError(
                f"The order of the dataset differs from worker to worker "
                f"({lineage.dataset_type(ancestor)}), so that they would read some examples twice "
                "and others not at all. HINT: give shuffle a seed, dataset.shuffle(n, seed=…); "
                "leave deterministic=False out, and give list_files shuffle=False; or use "
                "tfddl.shard_dataset."
            )
