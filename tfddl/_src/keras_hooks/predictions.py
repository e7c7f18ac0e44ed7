"""All ranks' predictions, gathered on every rank, in the order of the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, allgather
from tfddl._src.runtime import current
from tfddl._src.sharding import Plan
from tfddl.errors import UnsupportedError

CHUNK_BYTES = 16 << 20
"""How much each rank sends at once. All of it at once would be in memory three times: as sent, as
received from all ranks, and in order."""


def in_order(mine: Any, plan: Plan, ranks: Sequence[int], *, steps: int | None) -> Any:
    """All ranks' predictions of a plan's first steps, in the order of the data.

    All ranks must call it together.

    Args:
        mine: This rank's predictions, a structure of arrays.
        plan: By which the examples were dealt out.
        ranks: Whose batches this rank has predicted, as the plan counts.
        steps: How many steps were asked for; None is all.
    """
    batches = [
        plan.batch(epoch=0, step=step, rank=rank) for step in range(plan.steps) for rank in ranks
    ]
    counts = np.concatenate([np.full(len(b.indices), b.count > 0) for b in batches])
    indices = np.concatenate([b.indices for b in batches])
    if steps is not None:
        # Keras runs whole executions of several steps, perhaps a few more than it was asked for.
        done = len(tf.nest.flatten(mine)[0])
        counts, indices = counts[:done], indices[:done]
    order = np.argsort(gather_rows(indices[counts]), kind="stable")
    return tf.nest.map_structure(lambda rows: gather_rows(rows[counts])[order], mine)


def gather_rows(rows: Any, *, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray:
    """The rows of all ranks, in rank order. All ranks must call it together.

    Args:
        rows: Numbers, shape (n, …); n may differ between ranks, and be 0.
        chunk_bytes: What a rank sends at once, at least one row; the same on all ranks.

    Raises:
        UnsupportedError: What a model predicted isn't an array of numbers.
    """
    # "V" is what NumPy takes bfloat16 and the float8 types (ml_dtypes) for.
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biufV":
        raise UnsupportedError(
            f"predict returned {type(rows).__name__} of {getattr(rows, 'dtype', 'no dtype')}; "
            "expected an array of numbers, which can be gathered from the ranks. HINT: predict "
            "with a model that isn't compiled with the DistributedOptimizer, on the examples of "
            "tfddl.shard_range."
        )
    if current().cluster.size == 1:
        return rows
    row_bytes = max(1, rows.itemsize * int(np.prod(rows.shape[1:])))
    size = max(1, chunk_bytes // row_bytes)
    name = DisplayName("predictions")
    lengths = allgather(tf.constant([len(rows)], tf.int64), name=name).numpy()
    chunks: list[list[np.ndarray]] = [[] for _ in lengths]
    for start in range(0, int(lengths.max()), size):
        received = allgather(tf.constant(rows[start : start + size]), name=name).numpy()
        ends = np.cumsum(np.clip(lengths - start, 0, size))
        for rank, chunk in enumerate(np.split(received, ends[:-1])):
            chunks[rank].append(chunk)
    return np.concatenate([chunk for of_rank in chunks for chunk in of_rank])
