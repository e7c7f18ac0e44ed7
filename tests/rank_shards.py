"""The shards of several ranks, in one process."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data.examples import Examples
from tfddl._src.data.shard import EpochState, Shard
from tfddl._src.data.sources import IndexedSource, Source
from tfddl._src.data.transforms import Transforms
from tfddl._src.sharding import Plan


def shards(
    plan: Plan, source: Source, transforms: Transforms | None = None
) -> list[tuple[EpochState, tf.data.Dataset]]:
    """The state and the dataset of each rank."""
    found = []
    for rank in range(plan.size):
        state = EpochState()
        first = plan.batch(epoch=0, step=0, rank=rank).indices[:1]
        examples = Examples(
            source, transforms or Transforms(seed=plan.seed), rank=rank, num_threads=2, first=first
        )
        shard = Shard(state, examples, plan, ranks=[rank], epoch=0)
        found.append((state, shard.dataset()))
    return found


def table(*parts: Any, loaded: bool = False) -> IndexedSource:
    return IndexedSource([part for part in parts if part is not None], loaded=loaded)


def in_epoch(state: EpochState, dataset: tf.data.Dataset, epoch: int) -> list[Any]:
    """The batches that `fit` would get in an epoch."""
    state.epoch = epoch
    return list(dataset.as_numpy_iterator())


def flat(batches: list[Any]) -> list[int]:
    """The numbers in batches of x alone."""
    return [int(i) for batch in batches for i in np.asarray(batch).reshape(-1)]
