"""Shards of data: each worker's own `tf.data.Dataset`.

* `shard_dataset`: the public function.
* `shard`: what one worker reads in an epoch, or in the rest of one.
* `shard_lookup`: from a dataset that the user transformed further back to its shard; `lineage`:
  what a dataset was made from.
* `sources`, `dataset_source`, `memory_map`, `parquet`, `tfrecords`: what examples are read from;
  `record_index`: where the records of a file are.
* `transforms`, `examples`: what is done to them, and how they become batches.
* `sample_weights`: how padding examples are marked.
* `structure`: nested tuples and dictionaries of arrays.
* `batch_slices`: a worker's part of each batch of a dataset that a user has batched.

Usage:
    dataset = shard_dataset(images, masks, batch_size=12, seed=1)
    shard = find_shard(dataset.map(normalize))
    shard.plan.position(epoch=3, steps=40)
"""

from tfddl._src.data.batch_slices import slice_batches
from tfddl._src.data.parquet import ParquetColumn, open_parquet
from tfddl._src.data.sample_weights import PADDING_WEIGHT
from tfddl._src.data.shard import ResumePoint, Shard, epoch_state
from tfddl._src.data.shard_dataset import shard_dataset
from tfddl._src.data.shard_lookup import (
    clear_errors,
    find_error,
    find_shard,
    has_shard,
    repeats_shard,
)
from tfddl._src.data.tfrecords import TFRecords, open_tfrecords

__all__ = [
    "PADDING_WEIGHT",
    "ParquetColumn",
    "ResumePoint",
    "Shard",
    "TFRecords",
    "clear_errors",
    "epoch_state",
    "find_error",
    "find_shard",
    "has_shard",
    "open_parquet",
    "open_tfrecords",
    "repeats_shard",
    "shard_dataset",
    "slice_batches",
]
