"""Sums over virtual workers, in an order that the number of processes has no part in.

Each process has added up its own virtual workers as far as the tree allows (see
`tfddl._src.virtual_workers`). What is left, O(log V) nodes per process, travels, and is added in
the order of the tree: small tensors are gathered by all, of large ones each rank adds up a part (an
all-to-all, then an all-gather: the bytes of a reduce-scatter and an all-gather, where each process
has one node). Additions are made eagerly: in a graph TensorFlow makes one AddN of a tree of them
(combine_add_to_addn, tensorflow/core/grappler/optimizers/arithmetic_optimizer.cc), in an order of
its own. No sum is left to a transport, whose order is its own; but two numbers have only one sum,
so that two nodes in all take the ordinary all-reduce.
"""

from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfddl._src.collectives import (
    DisplayName,
    ReduceOp,
    exchange_parts,
    grouped_allgather,
    grouped_allreduce,
    stack,
)
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.comm.process_group import flatten, positions_by_dtype
from tfddl._src.runtime import current
from tfddl._src.virtual_workers import Node, TreeSum, nodes_of, own_workers

_GATHERED_BYTES = 2**18
"""Of all nodes of a tensor: up to so many one round trip takes less time than two."""

_JOINED_BYTES = 2**24
"""Of the tensors that travel together. Their exchange copies them some times for each node of this
process; and it takes so long that another round trip counts for little."""

Tensors = list[tf.Tensor]


def add(first: Tensors, second: Tensors) -> Tensors:
    """The elementwise sums of two lists of tensors."""
    return [a + b for a, b in zip(first, second, strict=True)]


@no_autograph
def sum_nodes(nodes: Sequence[tuple[Node, Tensors]], virtual_workers: int, *, name: str) -> Tensors:
    """The sums over all virtual workers. All ranks must call it together.

    Args:
        nodes: What this process has left after adding up its own: for each node the same number of
            tensors, of shapes that are known.
        virtual_workers: Of the job.
        name: How messages call it.

    Returns:
        As many tensors, bit for bit the same on every rank, on any number of processes.
    """
    cluster = current().cluster
    workers = [own_workers(virtual_workers, rank, cluster.size) for rank in range(cluster.size)]
    everyone = [nodes_of(own) for own in workers]
    if cluster.size == 1:
        return _total(everyone[0], [tensors for _, tensors in nodes])
    label = DisplayName(name)
    if sum(map(len, everyone)) == 2:
        return list(grouped_allreduce(nodes[0][1], ReduceOp.SUM, name=label))
    totals = list(nodes[0][1])
    for positions in _positions_joined(totals):
        parts = [[tensors[i] for i in positions] for _, tensors in nodes]
        for i, total in zip(positions, _sum_joined(parts, everyone, label), strict=True):
            totals[i] = total
    return totals


@no_autograph
def concatenate(own: Sequence[Sequence[tf.IndexedSlices]]) -> list[tf.IndexedSlices]:
    """The slices of all virtual workers, in their order. All ranks must call it together.

    Slices of one row aren't added up, as one process would not (see `reduction`).

    Args:
        own: Of each gradient, the slices of each virtual worker of this process.

    Returns:
        Those of each gradient.
    """
    joined = [
        tf.concat([tf.convert_to_tensor(part) for part in parts], axis=0)
        for slices in own
        for parts in ([s.values for s in slices], [s.indices for s in slices])
    ]
    if current().cluster.size > 1:
        joined = grouped_allgather(joined, name=DisplayName("sparse gradients"))
    return [
        tf.IndexedSlices(values, indices, slices[0].dense_shape)
        for values, indices, slices in zip(joined[::2], joined[1::2], own, strict=True)
    ]


def _total(nodes: Sequence[Node], values: Sequence[Tensors]) -> Tensors:
    sums: TreeSum[Tensors] = TreeSum(add)
    for node, value in zip(nodes, values, strict=True):
        sums.push(node, value)
    return sums.total()


def _positions_joined(tensors: Tensors) -> Iterator[list[int]]:
    """Which tensors travel together, of one dtype; alike on all ranks."""
    for positions in positions_by_dtype(tensors):
        joined: list[int] = []
        num_bytes = 0
        for i in positions:
            own_bytes = int(tensors[i].shape.num_elements()) * tensors[i].dtype.size
            if joined and num_bytes + own_bytes > _JOINED_BYTES:
                yield joined
                joined, num_bytes = [], 0
            joined.append(i)
            num_bytes += own_bytes
        yield joined


def _sum_joined(own: Sequence[Tensors], everyone: Sequence[Sequence[Node]], name: str) -> Tensors:
    """The sums of tensors of one dtype: `own` are this process' values, of each of its nodes."""
    lengths = [int(tensor.shape.num_elements()) for tensor in own[0]]
    # So long that each rank has as much to add up.
    rest = -sum(lengths) % len(everyone)
    padding = [tf.zeros([rest], own[0][0].dtype)] if rest else []
    flats = [flatten([*tensors, *padding]) for tensors in own]
    parts = tf.split(_sum_tensor(flats, everyone, name), [*lengths, *([rest] if rest else ())])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, own[0], strict=False)]


def _sum_tensor(own: Tensors, everyone: Sequence[Sequence[Node]], name: str) -> tf.Tensor:
    """The sum of one flat tensor: `own` is this process' value of each of its nodes."""
    length, size = int(own[0].shape[0]), len(everyone)
    flat = own[0] if len(own) == 1 else tf.concat(own, axis=0)
    order = [node for nodes in everyone for node in nodes]
    if length * own[0].dtype.size * len(order) <= _GATHERED_BYTES:
        most = max(map(len, everyone))
        rows = stack(tf.pad(flat, [[0, (most - len(own)) * length]]), name=name)
        rows = tf.reshape(rows, [size, most, length])
        values = [[rows[r, i]] for r, nodes in enumerate(everyone) for i in range(len(nodes))]
        return _total(order, values)[0]
    chunk = length // size
    if len(own) > 1:  # By receiver: all nodes' chunks for a rank, one behind the other.
        by_node = tf.reshape(flat, [len(own), size, chunk])
        flat = tf.reshape(tf.transpose(by_node, [1, 0, 2]), [-1])
    lengths = [[len(nodes) * chunk] * size for nodes in everyone]
    arrived = tf.reshape(exchange_parts(flat, lengths, name=name), [len(order), chunk])
    [mine] = _total(order, [[part] for part in tf.unstack(arrived, num=len(order))])
    return tf.reshape(stack(mine, name=name), [-1])
