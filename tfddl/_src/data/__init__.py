"""Plans applied to data: each worker's own dataset.

* `structure`: how the arrays of an example hang together.
* `weights`: examples that don't count are told by their sample weights.
* `memory_map`: rows of mapped files, read into a buffer of one's own.
* `sources`, `stream`: what examples are read from; `lineage`: what a `tf.data.Dataset` was made of.
* `recipe`, `in_order`: how an example is made, and how several threads make them.
* `examples`: all of these together: the batches of one rank, in arrays.
* `share`: what one worker reads in an epoch, or in the rest of one.
* `finding`: from a dataset that the user transformed back to its share.
* `sharding`: `shard_dataset`; `slicing`: a worker's part of each batch of any dataset.

Usage:
    dataset = shard_dataset(images, masks, batch_size=12, seed=1)
    share = find_shard(dataset.map(normalize))
    share.plan.position(epoch=3, steps=40)
"""

from tfddl._src.data.batch_slices import slice_batches
from tfddl._src.data.sample_weights import PADDING_WEIGHT
from tfddl._src.data.shard import EPOCH_STATE, EpochState, ResumePoint, Shard
from tfddl._src.data.shard_dataset import shard_dataset
from tfddl._src.data.shard_lookup import (
    clear_errors,
    find_error,
    find_shard,
    has_shard,
    repeats_shard,
)

__all__ = [
    "PADDING_WEIGHT",
    "EPOCH_STATE",
    "EpochState",
    "ResumePoint",
    "Shard",
    "find_error",
    "find_shard",
    "clear_errors",
    "has_shard",
    "repeats_shard",
    "shard_dataset",
    "slice_batches",
]
