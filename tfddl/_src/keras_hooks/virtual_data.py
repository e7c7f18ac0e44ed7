"""Data for virtual workers: a step's batches of this process, as one element of a dataset."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data import Shard, find_shard, shard_dataset
from tfddl._src.data.sample_weights import weight_batch
from tfddl._src.keras_hooks import replicated_data
from tfddl._src.keras_hooks.patching import private, private_module
from tfddl.errors import UnsupportedError


def group_batches(dataset: tf.data.Dataset, virtual_workers: int, *, name: str) -> tf.data.Dataset:
    """Makes one element of a step's batches.

    Args:
        dataset: What `shard_dataset` returned, or a dataset in which `find_shard` finds its shard.
        virtual_workers: Those of the optimizer.
        name: How messages call the dataset.

    Returns:
        A dataset of one element per step: a tuple of batches, in the order of the virtual workers;
        the batch itself where there is only one. `batch_spec` tells what a batch is.

    Raises:
        UnsupportedError: It isn't planned for so many virtual workers.
    """
    shard = _shard_for(dataset, virtual_workers, name=name)
    number = len(shard.ranks)
    spec = tf.nest.map_structure(_with_open_length, dataset.element_spec)
    grouped = dataset if number == 1 else _in_windows(dataset, number)
    grouped.tfddl_shard, grouped.tfddl_batch_spec = shard, spec
    return grouped


def group_fit_data(given: dict[str, Any], virtual_workers: int) -> None:
    """Replaces the data that `fit` got by that of a step's virtual workers.

    Args:
        given: The arguments of `fit`; changed.
        virtual_workers: Those of the optimizer.

    Raises:
        UnsupportedError: The data isn't planned for so many virtual workers.
    """
    if given.get("steps_per_epoch") is not None or given.get("validation_steps") is not None:
        raise UnsupportedError(
            "fit got steps_per_epoch or validation_steps with virtual_workers; expected whole "
            "epochs, whose examples are dealt out by plan. HINT: leave them out; give "
            "tfddl.shard_dataset fewer examples."
        )
    _shard_for(given.get("x"), virtual_workers, name="fit")
    weights = given.pop("class_weight", None)
    if weights is not None:
        # Of the adapter that Keras would hand the dataset to, which doesn't know our windows.
        adapter = private_module("keras.src.trainers.data_adapters.tf_dataset_adapter")
        given["x"] = given["x"].map(private(adapter, "make_class_weight_map_fn")(weights))
    given["x"] = group_batches(given["x"], virtual_workers, name="fit")
    data = given.get("validation_data")
    if isinstance(data, tuple | list):
        batch_size = given.pop("validation_batch_size", None) or given.get("batch_size")
        data = shard_arrays(data, virtual_workers, batch_size=batch_size)
    if data is not None:
        data = group_batches(data, virtual_workers, name="validation_data")
        given["validation_data"] = data
    if given.get("validation_split"):
        raise UnsupportedError(
            "fit got validation_split with virtual_workers; expected validation_data. HINT: pass "
            "validation_data=(x, y), the same arrays on every rank."
        )


def shard_arrays(parts: Any, virtual_workers: int, *, batch_size: int | None) -> tf.data.Dataset:
    """The batches of this process' virtual workers, of arrays that are alike on all ranks.

    Args:
        parts: ``x``, ``y``, ``sample_weight``, of which those that are None, or not there, are left
            out.
        virtual_workers: Of the job.
        batch_size: None is Keras' default.

    Raises:
        UnsupportedError: There are fewer examples than virtual workers, and no ``y``.
    """
    arrays = [part for part in parts if part is not None]
    num_examples = replicated_data.num_examples(arrays)
    missing = virtual_workers - num_examples
    if missing > 0:
        if len(arrays) == 1:
            raise UnsupportedError(
                f"There are {num_examples} examples for virtual_workers={virtual_workers}; those "
                "that have none need padding examples, whose loss is weighted by 0, but there is "
                f"no y. HINT: evaluate {virtual_workers} examples or more."
            )
        arrays = tf.nest.map_structure(lambda a: np.concatenate([a, *[a[:1]] * missing]), arrays)
    dataset = shard_dataset(
        *arrays,
        batch_size=batch_size or replicated_data.DEFAULT_BATCH_SIZE,
        virtual_workers=virtual_workers,
    )
    return _with_padding(dataset, num_examples) if missing > 0 else dataset


def _with_padding(dataset: tf.data.Dataset, num_examples: int) -> tf.data.Dataset:
    """Of a dataset with an example for each virtual worker, those after the first are padding."""
    shard = find_shard(dataset)
    assert shard is not None
    counts = tf.data.Dataset.from_tensor_slices([worker < num_examples for worker in shard.ranks])
    # shard_dataset makes a 0.0 of the weights that mark padding examples: they may be a user's.
    marked = tf.data.Dataset.zip((dataset, counts)).map(
        tf.autograph.experimental.do_not_convert(weight_batch)
    )
    marked.tfddl_shard = shard
    return marked


def batch_spec(dataset: Any) -> Any:
    """The spec of a virtual worker's batch, of what `group_batches` returned; None of others."""
    return getattr(dataset, "tfddl_batch_spec", None)


def refuse_virtual_data(dataset: Any) -> None:
    """Raises where data is planned for virtual workers, and the optimizer isn't.

    Raises:
        UnsupportedError: It is.
    """
    shard = find_shard(dataset)
    if shard is not None and shard.virtual_workers is not None:
        raise UnsupportedError(
            f"fit got data of tfddl.shard_dataset(…, virtual_workers={shard.virtual_workers}), but "
            "the model isn't compiled for virtual workers: it would train on each of their batches "
            "as if it were a step. HINT: compile it with tfddl.DistributedOptimizer(optimizer, "
            f"virtual_workers={shard.virtual_workers})."
        )


def _shard_for(dataset: Any, virtual_workers: int, *, name: str) -> Shard:
    shard = find_shard(dataset)
    found = "other data" if shard is None else f"virtual_workers={shard.virtual_workers}"
    if shard is None or shard.virtual_workers != virtual_workers:
        raise UnsupportedError(
            f"{name} got {found}, but the optimizer has virtual_workers={virtual_workers}; "
            "expected data that is dealt out to just these. HINT: give it what "
            f"tfddl.shard_dataset(…, virtual_workers={virtual_workers}) returns (map and prefetch "
            "may follow)."
        )
    return shard


def _with_open_length(spec: Any) -> Any:
    # With lengths left open, a function is traced once, and is one graph for batches that differ by
    # an example.
    return tf.TensorSpec((None, *spec.shape[1:]), spec.dtype)


def _in_windows(dataset: tf.data.Dataset, number: int) -> tf.data.Dataset:
    # Autograph would read the source again, which a notebook may not have.
    @tf.autograph.experimental.do_not_convert
    def to_tuple(*parts: Any) -> Any:
        # Of a window, each part is a dataset of its own.
        window = tf.data.Dataset.zip(parts if len(parts) > 1 else parts[0])
        return tuple(window.skip(i).take(1).get_single_element() for i in range(number))

    return dataset.window(number, drop_remainder=True).map(to_tuple).prefetch(1)
