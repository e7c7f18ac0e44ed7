"""Data that a model under ``strategy.scope()`` got as it would in one process.

Keras would hand it to TensorFlow's auto-sharding, or cut its batches again and lose examples. Here
it goes through the plan of `shard_dataset`, with the global batches that one process would have.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, broadcast_object
from tfddl._src.data import has_shard, shard_dataset, slice_batches
from tfddl._src.keras_hooks import replicated_data
from tfddl._src.runtime import current
from tfddl.errors import DisagreementError, UnsupportedError

_BATCH_SIZE = 32  # Keras' default.


def shard_fit_data(given: dict[str, Any]) -> None:
    """Puts the rank's share in the place of what `fit` got. All ranks must call it together.

    Args:
        given: The arguments of `fit`; changed.

    Raises:
        DisagreementError: The ranks have got different arrays.
        UnsupportedError: Data of a kind that can't be shared out.
        DataError: A dataset that can't be cut.
    """
    x = given.get("x")
    if isinstance(x, tf.data.Dataset):
        given["x"] = shard_batches(x, weigh=given.get("class_weight") is None)
        given["shuffle"] = False
    elif is_distributed_dataset(x):
        given["shuffle"] = False
    else:
        _share_out_arrays(given)
    validation = given.get("validation_data")
    if isinstance(validation, tf.data.Dataset):
        given["validation_data"] = shard_batches(validation, weigh=True)


def shard_batches(dataset: tf.data.Dataset, *, weigh: bool) -> tf.data.Dataset:
    """The rank's part of a dataset's batches; the dataset, if it is the rank's share already."""
    if has_shard(dataset):
        return dataset
    cluster = current().cluster
    return slice_batches(dataset, rank=cluster.rank, size=cluster.size, weigh=weigh)


def is_distributed_dataset(x: Any) -> bool:
    """Whether data was distributed by the strategy, as it has to be.

    Raises:
        UnsupportedError: It was distributed by auto-sharding.
    """
    if not isinstance(x, tf.distribute.DistributedDataset):
        return False
    if type(x).__name__ == "DistributedDataset":
        raise UnsupportedError(
            "The dataset was made by strategy.experimental_distribute_dataset, which cuts batches "
            "again and loses examples. Give fit what tfddl.shard_dataset returns, the plain "
            "dataset, or what strategy.distribute_datasets_from_function returns."
        )
    return True


def _share_out_arrays(given: dict[str, Any]) -> None:
    parts = [_structure(given.pop(name, None)) for name in ("x", "y", "sample_weight")]
    if not replicated_data.is_replicated(parts, name=DisplayName("data of fit")):
        raise DisagreementError(
            "Under tfddl.strategy().scope(), fit got data that isn't alike on all ranks, or that "
            "isn't arrays, so that it can't be shared out. Give fit the same whole arrays on every "
            "rank, or what tfddl.shard_dataset returns; in the scope, ranks don't slice by hand."
        )
    split = given.pop("validation_split", 0.0)
    if split and given.get("validation_data") is None:
        end = replicated_data.num_examples(parts)
        cut = int(end * (1.0 - split))  # Keras' own arithmetic.
        rest = [replicated_data.take_rows(part, cut, end) for part in parts]
        given["validation_data"] = tuple(part for part in rest if part is not None)
        parts = [replicated_data.take_rows(part, 0, cut) for part in parts]
    size = current().cluster.size
    batch_size = given.pop("batch_size", None) or _BATCH_SIZE
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
