"""Ranks compare what they are about to do, before TensorFlow's ops could get stuck on it.

TensorFlow aborts every later collective of a process once two ranks met with different shapes or
dtypes. So the ranks first exchange something whose shape never differs: a digest of what they are
about to do.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from tfddl.collectives.process_sets import Group
from tfddl.errors import DisagreementError, UnsupportedError

_TEXT_BYTES = 512
"""How much of a signature a graph tells; eagerly, it is all."""

_SHOWN = 3
"""Of how many tensors that differ the messages tell."""


class RanksDisagreeError(DisagreementError, tf.errors.FailedPreconditionError):
    """Ranks are about to do different things. All of them raise it, and the next operation works.

    It is the kind of error that Horovod's users catch, too.
    """

    def __init__(self, message: str) -> None:
        tf.errors.FailedPreconditionError.__init__(self, None, None, message)


class WrongArgumentError(UnsupportedError, tf.errors.InvalidArgumentError):
    """A root rank that isn't there, or splits that don't add up."""

    def __init__(self, message: str) -> None:
        tf.errors.InvalidArgumentError.__init__(self, None, None, message)


class NoDimensionError(UnsupportedError, tf.errors.FailedPreconditionError):
    """A scalar, where tensors are joined or cut on their first dimension."""

    def __init__(self, message: str) -> None:
        tf.errors.FailedPreconditionError.__init__(self, None, None, message)

    @classmethod
    def check(cls, operation: str, name: str | None, tensors: Sequence[tf.Tensor]) -> None:
        """Makes sure that all tensors have a first dimension.

        Raises:
            NoDimensionError: One hasn't.
        """
        for tensor in tensors:
            if tensor.shape.rank == 0:
                raise cls(
                    f"{_call(operation, name)} works on the first dimension of a tensor, but this "
                    f"one ({tensor.dtype.name}) has none. Give it one: tf.expand_dims(tensor, 0)."
                )


@dataclasses.dataclass(frozen=True)
class Signature:
    """What has to be alike on all ranks."""

    kind: str
    """The operation, its options, its name, its ranks: "allreduce average <loss>"."""

    tensors: tuple[str, ...]
    """Dtype and shape of each tensor: "float32 (3, 4)"."""

    running: tuple[tf.Tensor, ...] = ()
    """The shapes that are known only when the graph runs; empty where all are known before."""

    @classmethod
    def of(
        cls,
        group: Group,
        operation: str,
        name: str | None,
        tensors: Sequence[tf.Tensor],
        *,
        free_first_dimension: bool = False,
    ) -> "Signature":
        """Describes an operation of a group on tensors.

        Args:
            group: Who takes part.
            operation: The operation and its options.
            name: How the user calls it.
            tensors: What it is applied to.
            free_first_dimension: Whether the first dimensions may differ.
        """
        first = int(free_first_dimension)
        among = "" if group.is_world else f" among {rank_names(group.ranks)}"
        known = all(t.shape[first:].is_fully_defined() for t in tensors)
        return cls(
            kind=_call(operation, name) + among,
            tensors=tuple(f"{t.dtype.name} {_shape(t.shape, first)}" for t in tensors),
            running=() if known else tuple(tf.shape(t)[first:] for t in tensors),
        )

    def __str__(self) -> str:
        return f"{self.kind} of {', '.join(self.tensors)}"

    @property
    def digest(self) -> int:
        """A signed 64-bit number that stands for the signature."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def agree(group: Group, signature: Signature) -> None:
    """Makes sure that all ranks of a group are about to do the same.

    Eagerly this compares at every call. In a graph it adds ops that compare when the graph first
    meets the signature, because each comparison costs a round trip; where shapes are known only
    when the graph runs, they compare these at every run.

    Ranks that name different process sets wait for each other: they don't meet.

    Raises:
        RanksDisagreeError: Eagerly, on every rank, where the signatures differ.
    """
    if group.size == 1:
        return
    tracer = group.runtime.tracer
    tracer.doing = f"comparing before {signature.kind}"
    if tf.executing_eagerly():
        _agree_eagerly(group, signature)
    elif signature.running:
        _agree_at_every_run(group, signature)
    else:
        _agree_in_graph(group, signature)
    tracer.doing = signature.kind


def _agree_eagerly(group: Group, signature: Signature) -> None:
    digests = group.transport.all_gather(tf.constant([signature.digest], tf.int64)).numpy()
    if (digests == digests[0]).all():
        return
    text = "\n".join([signature.kind, *signature.tensors]).encode("ascii", "replace")
    lengths = group.transport.all_gather(tf.constant([len(text)])).numpy()
    codes = group.transport.all_gather(_text_codes(text.ljust(lengths.max()))).numpy()
    lines = [bytes(row.tolist()).decode().rstrip().split("\n") for row in codes]
    raise RanksDisagreeError(_describe(group, _differing(lines)))


@tf.autograph.experimental.do_not_convert
def _new_flag() -> tf.Variable:
    """A variable for a graph that is being made.

    It is made in another thread, since a `tf.function` that is traced a second time, for other
    arguments, allows no new variables, not even in an init_scope.
    """

    def make() -> tf.Variable:
        with tf.device("CPU:0"):
            return tf.Variable(False, trainable=False, name="tfddl_agreed")

    with ThreadPoolExecutor(1) as outside:
        return outside.submit(make).result()


def _agree_in_graph(group: Group, signature: Signature) -> None:
    agreed = group.runtime.agreed
    key = str(signature)
    if key not in agreed:
        agreed[key] = _new_flag()

    def compare() -> tf.Tensor:
        digest = tf.constant([signature.digest], tf.int64)
        checked = _checked(group, digest, lambda: _text_codes(_shortened(signature)))
        return agreed[key].assign(checked, read_value=True)

    tf.cond(agreed[key], lambda: tf.constant(True), compare)


def _agree_at_every_run(group: Group, signature: Signature) -> None:
    shapes = [
        tf.strings.reduce_join(tf.strings.as_string(s), separator=", ") for s in signature.running
    ]
    found = tf.strings.reduce_join(tf.strings.join(["(", tf.stack(shapes), ")"]), separator=", ")
    text = tf.strings.join([str(signature), ": ", found])
    digest = tf.strings.to_hash_bucket_fast(text, 2**62)

    def codes() -> tf.Tensor:
        padded = tf.io.decode_raw(text, tf.uint8, fixed_length=_TEXT_BYTES)
        return tf.cast(tf.where(padded == 0, tf.constant(ord(" "), tf.uint8), padded), tf.int32)

    _checked(group, digest[tf.newaxis], codes)


def _checked(group: Group, digest: tf.Tensor, codes: Callable[[], tf.Tensor]) -> tf.Tensor:
    """True, once all ranks have the same digest; fails with everybody's text where they don't."""

    def fail() -> tf.Tensor:
        arrived = group.transport.all_gather(codes())
        texts = tf.strings.strip(tf.strings.unicode_encode(arrived, "UTF-8"))
        lines = tf.strings.join([[f"rank {r}: " for r in group.ranks], texts])
        # On one line: the op's message would show the end of a line as two characters.
        message = tf.strings.join([_HEADLINE, " ", tf.strings.reduce_join(lines, separator="; ")])
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    digests = group.transport.all_gather(digest)
    return tf.cond(tf.reduce_all(digests == digests[0]), lambda: tf.constant(True), fail)


_HEADLINE = "The ranks are about to do different things:"


def _differing(lines: Sequence[Sequence[str]]) -> list[str]:
    """What each rank has (the operation, then its tensors), without what all have alike."""
    if max(len(line) for line in lines) <= 2 * _SHOWN:
        return [f"{kind} of {', '.join(tensors)}" for kind, *tensors in lines]
    columns = list(itertools.zip_longest(*lines, fillvalue="nothing"))[1:]
    differing = [i for i, column in enumerate(columns) if len(set(column)) > 1][:_SHOWN]
    return [
        ", ".join(
            [
                f"{line[0]} of {len(line) - 1} tensors",
                *(f"the {i + 1}. is {columns[i][rank]}" for i in differing),
            ]
        )
        for rank, line in enumerate(lines)
    ]


def _describe(group: Group, texts: Sequence[str]) -> str:
    by_text: dict[str, list[int]] = {}
    for rank, text in zip(group.ranks, texts, strict=True):
        by_text.setdefault(text, []).append(rank)
    lines = [f"  {rank_names(ranks)}: {text}" for text, ranks in by_text.items()]
    return "\n".join(
        [
            _HEADLINE,
            *lines,
            "All ranks must call the same operations in the same order, with the same dtypes and "
            "shapes. The next operation can go on.",
        ]
    )


def rank_names(ranks: Sequence[int]) -> str:
    """Ranks as people write them: "rank 3", "ranks 0..2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs]
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(texts)}"


def _call(operation: str, name: str | None) -> str:
    return operation if name is None else f"{operation} <{name}>"


def _shape(shape: tf.TensorShape, free: int) -> str:
    if shape.rank is None:
        return "of any shape"
    dimensions = ["*"] * min(free, shape.rank) + [str(d) for d in shape[free:]]
    return f"({', '.join(dimensions)})"


def _shortened(signature: Signature) -> bytes:
    text = str(signature).encode("ascii", "replace")
    if len(text) > _TEXT_BYTES:
        text = (
            text[: _TEXT_BYTES - 30] + f"... (digest {signature.digest & 0xFFFFFFFF:08x})".encode()
        )
    return text.ljust(_TEXT_BYTES)


def _text_codes(text: bytes) -> tf.Tensor:
    return tf.constant(np.frombuffer(text, np.uint8), tf.int32)
