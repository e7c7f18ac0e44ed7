"""alltoall, and its gradient."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.fusion import all_gather, cast_for_transfer
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    NoDimensionError,
    WrongArgumentError,
    failing_together,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import Group, ProcessSet, group_of


@no_autograph
def alltoall(
    tensor: tf.Tensor,
    splits: Any = None,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> Any:
    """Gives every rank a part of every rank's tensor. All ranks must call it together.

    Args:
        tensor: At least one dimension, which is cut into parts, one per rank, in rank order. It may
            differ per rank; the others and the dtype may not. Numbers or bool.
        splits: How many rows go to each rank: shape (size,), integers that add up to the first
            dimension. Without it the parts are equal.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The parts that all ranks have sent, joined on the first dimension, in rank order. With
        ``splits``, a pair: these, and how many rows came from each rank, shape (size,), int32. Its
        gradient goes the way back: it is the derivative of the sum of all ranks' losses.

    Raises:
        DisagreementOpError: Ranks came with different dtypes or inner dimensions.
        NoDimensionError: The tensor has no dimension.
        WrongArgumentError: On every rank, eagerly, where on one of them the splits don't add up, or
            the first dimension can't be cut into equal parts. In a graph it is found when it runs,
            as a `tf.errors.InvalidArgumentError` with the same text.
        UnsupportedError: A dtype that can't be sent, or a process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)
    received, received_splits = _exchange(group, tf.convert_to_tensor(tensor), splits, name)
    return received if splits is None else (received, received_splits)


def _exchange(
    group: Group, tensor: tf.Tensor, splits: Any, name: str | None
) -> tuple[tf.Tensor, tf.Tensor]:
    @tf.custom_gradient
    @serialized(group)
    def exchanged(
        value: tf.Tensor,
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
        request = CollectiveRequest.of(group, "alltoall", name, [value], free_first_dimension=True)
        bound = negotiate(group, request)
        with failing_together(bound):
            NoDimensionError.check("alltoall", name, [value])
        rows = _rows(bound, value, splits, name)
        received_splits = tf.cast(rows[:, group.rank], tf.int32)

        def gradient(upstream: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            back, _ = _exchange(group, tf.convert_to_tensor(upstream), received_splits, name)
            return tf.ensure_shape(back, value.shape)

        return (_travel(bound, value, rows), received_splits), gradient

    received, received_splits = exchanged(tensor)
    return received, received_splits


@no_autograph
def exchange_parts(
    flat: tf.Tensor, lengths: Sequence[Sequence[int]], *, name: str | None = None
) -> tf.Tensor:
    """`alltoall` where all ranks know beforehand what each sends: it saves the round trip for it.

    All ranks must call it together. It has no gradient.

    Args:
        flat: Shape (n,): this rank's parts for all ranks, in rank order.
        lengths: Of each rank, how many elements it sends to each; the same on all ranks.
        name: How messages call it.

    Returns:
        What each rank has sent, in rank order: shape (sum of this rank's column,).

    Raises:
        DisagreementOpError: Ranks came with different dtypes or lengths.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(None)

    @serialized(group)
    def exchanged() -> tf.Tensor:
        request = CollectiveRequest.of(group, "alltoall", name, [flat], free_first_dimension=True)
        # All lengths are size**2 numbers, which would travel as text with every call.
        total, digest = sum(map(sum, lengths)), hashlib.blake2b(digest_size=8)
        digest.update(repr([list(row) for row in lengths]).encode())
        bound = negotiate(group, request.about([f"{total} elements, {digest.hexdigest()}"]))
        sent = cast_for_transfer(bound, tf.stop_gradient(flat))
        arrived = bound.process_group.all_to_all(
            sent, tf.constant(lengths, tf.int64), signature=bound.signature
        )
        return tf.cast(arrived, flat.dtype)

    return exchanged()


def _travel(group: Group, value: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    inner = tf.shape(value, tf.int64)[1:]
    flat = cast_for_transfer(group, tf.reshape(value, [-1]))
    arrived = group.process_group.all_to_all(
        flat, rows * tf.reduce_prod(inner), signature=group.signature
    )
    shape = tf.concat([[tf.reduce_sum(rows[:, group.rank])], inner], axis=0)
    static = tf.TensorShape([None]).concatenate(value.shape[1:])
    return tf.ensure_shape(tf.reshape(tf.cast(arrived, value.dtype), shape), static)


def _rows(group: Group, value: tf.Tensor, splits: Any, name: str | None) -> tf.Tensor:
    """How many rows each rank sends to each, shape (size, size), once all ranks know that it fits.

    A rank with bad splits sends them all the same, so that the others don't wait for it.
    """
    first = tf.shape(value, tf.int64)[0]
    mine, number = _splits(group, first, splits)
    # A round trip of its own: nobody knows how much it will get before all have told, and sizes of
    # messages have to be known on both sides.
    told = all_gather(group, tf.concat([[number, first], mine], axis=0))
    call = f"alltoall <{name}>" if name else "alltoall"
    rule = (
        f"{call} needs splits of {group.size} integers, 0 or more, that add up to the first "
        f"dimension; without splits, that has to be divisible by {group.size}."
    )
    return _checked(group, told, rule)


def _checked(group: Group, told: tf.Tensor, rule: str) -> tf.Tensor:
    """The splits of all ranks, each of which has told how many, its first dimension, and them."""
    numbers, firsts, rows = told[:, 0], told[:, 1], told[:, 2:]
    # In graphs of sessions != would compare the objects.
    bad = (
        tf.not_equal(numbers, group.size)
        | tf.not_equal(tf.reduce_sum(rows, axis=1), firsts)
        | tf.reduce_any(rows < 0, axis=1)
    )
    if tf.executing_eagerly():
        texts = [
            f"rank {rank} has {_shown(*line)}"
            for rank, line, wrong in zip(group.ranks, told.numpy().tolist(), bad, strict=True)
            if wrong
        ]
        if texts:
            raise WrongArgumentError(None, None, f"{rule} But {', '.join(texts)}.")
        return rows
    found = tf.strings.format(
        "But ranks {} have splits {} for first dimensions of {}.",
        [tf.boolean_mask(x, bad) for x in (tf.constant(group.ranks), rows, firsts)],
        summarize=-1,
    )
    text = tf.strings.join([rule, found], separator=" ")
    with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(bad), [text])]):
        return tf.identity(rows)


def _splits(group: Group, first: tf.Tensor, splits: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """What this rank was given, made `size` long, and how many there were; -1: nonsense."""
    size = tf.constant(group.size, tf.int64)
    if splits is None:
        return tf.fill([group.size], first // size), size
    given = tf.convert_to_tensor(splits)
    if given.shape.rank != 1 or not (given.dtype.is_integer or given.shape == [0]):
        return tf.zeros([group.size], tf.int64), tf.constant(-1, tf.int64)
    kept = tf.cast(given[: group.size], tf.int64)
    padded = tf.pad(kept, [[0, group.size - tf.size(kept)]])
    return tf.ensure_shape(padded, [group.size]), tf.size(given, tf.int64)


def _shown(number: int, first: int, *splits: int) -> str:
    if number < 0:
        return "splits that aren't a list of integers"
    if number != len(splits):
        return f"{number} splits"
    return f"splits {list(splits)} for a first dimension of {first}"
