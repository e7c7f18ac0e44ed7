"""Data that a model under ``strategy.scope()`` gets: the same on all ranks, as in one process.

Keras hands it to `experimental_distribute_dataset`, which auto-shards it, or cuts its batches again
and loses examples. Here it goes through the plan of `shard_dataset` instead, with the global
batches that one process would have.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, broadcast_object
from tfddl._src.data import has_shard, shard_dataset, slice_batches
from tfddl._src.keras_hooks import replicated_data
from tfddl._src.runtime import current
from tfddl.errors import DisagreementError, UnsupportedError


def shard_fit_data(given: dict[str, Any]) -> None:
    """Replaces what `fit` got by the rank's shard of it. All ranks must call it together.

    Args:
        given: The arguments of `fit`; changed.

    Raises:
        DisagreementError: The ranks have got different arrays.
        UnsupportedError: Data of a kind that can't be sharded.
        DataError: A dataset that can't be cut.
    """
    x = given.get("x")
    if isinstance(x, tf.data.Dataset):
        # Keras makes sample weights of class_weight, and takes no others besides.
        given["x"] = shard_batches(x, pad=given.get("class_weight") is None)
        given["shuffle"] = False
    elif is_distributed_dataset(x):
        given["shuffle"] = False
    else:
        _shard_arrays(given)
    validation = given.get("validation_data")
    if isinstance(validation, tf.data.Dataset):
        given["validation_data"] = shard_batches(validation, pad=True)


def shard_batches(dataset: tf.data.Dataset, *, pad: bool) -> tf.data.Dataset:
    """The rank's part of a dataset's batches; the dataset, if it is the rank's shard already.

    Args:
        dataset: Of global batches, the same on every rank.
        pad: Whether ranks may get padding examples, and elements sample weights.

    Raises:
        DataError: It can't be cut.
    """
    if has_shard(dataset):
        return dataset
    cluster = current().cluster
    return slice_batches(dataset, rank=cluster.rank, size=cluster.size, pad=pad)


def is_distributed_dataset(x: Any) -> bool:
    """Whether data was distributed by the strategy, as it has to be.

    Raises:
        UnsupportedError: It was distributed by auto-sharding.
    """
    if not isinstance(x, tf.distribute.DistributedDataset):
        return False
    # Both are a tf.distribute.DistributedDataset. That of a function, which has sharded by itself,
    # is a DistributedDatasetsFromFunction (tensorflow/python/distribute/input_lib.py).
    if type(x).__name__ == "DistributedDataset":
        raise UnsupportedError(
            "The dataset was made by strategy.experimental_distribute_dataset, which cuts batches "
            "again and loses examples. HINT: give fit what tfddl.shard_dataset returns, the plain "
            "dataset, or what strategy.distribute_datasets_from_function returns."
        )
    return True


def _shard_arrays(given: dict[str, Any]) -> None:
    parts = [_structure(given.pop(name, None)) for name in ("x", "y", "sample_weight")]
    if not replicated_data.is_replicated(parts, name=DisplayName("data of fit")):
        raise DisagreementError(
            "Under tfddl.strategy().scope(), fit got data that isn't alike on all ranks, or that "
            "isn't arrays; expected data that can be sharded. HINT: give fit the same whole arrays "
            "on every rank, or what tfddl.shard_dataset returns; under the scope, ranks don't "
            "slice by hand."
        )
    split = given.pop("validation_split", 0.0)
    if split and given.get("validation_data") is None:
        end = replicated_data.num_examples(parts)
        # As train_validation_split (keras/src/trainers/data_adapters/array_slicing.py) rounds.
        cut = int(end * (1.0 - split))
        rest = [replicated_data.take_rows(part, cut, end) for part in parts]
        given["validation_data"] = tuple(part for part in rest if part is not None)
        parts = [replicated_data.take_rows(part, 0, cut) for part in parts]
    size = current().cluster.size
    batch_size = given.pop("batch_size", None) or replicated_data.DEFAULT_BATCH_SIZE
    given.setdefault("validation_batch_size", batch_size)
    seed = None
    if given.pop("shuffle", True):
        seed = broadcast_object(int(np.random.randint(2**31)))
    given["x"] = shard_dataset(*parts, batch_size=-(-batch_size // size), seed=seed)
    given["shuffle"] = False


def _structure(part: Any) -> Any:
    """A list of inputs as a tuple of them; `shard_dataset` takes lists for data."""
    if isinstance(part, list) and part and all(hasattr(leaf, "shape") for leaf in part):
        return tuple(part)
    return part
