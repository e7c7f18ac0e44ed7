"""Ranks compare what they are about to do, before TensorFlow's ops could get stuck on it.

TensorFlow aborts every later collective of a process once two ranks met with different shapes or
dtypes. So the ranks first exchange something whose shape never differs: a digest of what they are
about to do.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfddl.errors import DisagreementError
from tfddl.runtime import Runtime

_TEXT_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Signature:
    """What has to be alike on all ranks."""

    kind: str
    """The operation and its options: "allreduce average"."""

    tensors: tuple[str, ...]
    """Dtype and shape of each tensor: "float32 (3, 4)"."""

    @classmethod
    def of(
        cls, kind: str, tensors: Sequence[tf.Tensor], *, free_first_dimension: bool = False
    ) -> "Signature":
        """Describes an operation on tensors."""
        first = int(free_first_dimension)
        return cls(
            kind=kind,
            tensors=tuple(
                f"{t.dtype.name} ({', '.join(['*'] * first + [str(d) for d in t.shape[first:]])})"
                for t in tensors
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} of {', '.join(self.tensors)}"

    @property
    def digest(self) -> int:
        """A signed 64-bit number that stands for the signature."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def agree(runtime: Runtime, signature: Signature) -> None:
    """Makes sure that all ranks are about to do the same.

    Eagerly this compares at every call. In a graph it adds ops that compare when the graph first
    meets the signature, because each comparison costs a round trip.

    Raises:
        DisagreementError: Eagerly, on every rank, where the signatures differ.
    """
    if runtime.cluster.size == 1:
        return
    if tf.executing_eagerly():
        _agree_eagerly(runtime, signature)
    else:
        _agree_in_graph(runtime, signature)


def _agree_eagerly(runtime: Runtime, signature: Signature) -> None:
    digests = runtime.transport.all_gather(tf.constant([signature.digest], tf.int64)).numpy()
    if (digests == digests[0]).all():
        return
    codes = runtime.transport.all_gather(_text_codes(signature)).numpy()
    raise DisagreementError(_describe([_text(row) for row in codes]))


def _agree_in_graph(runtime: Runtime, signature: Signature) -> None:
    key = str(signature)
    if key not in runtime.agreed:
        with tf.init_scope(), tf.device("CPU:0"):
            runtime.agreed[key] = tf.Variable(False, trainable=False, name="tfddl_agreed")
    agreed = runtime.agreed[key]

    def compare() -> tf.Tensor:
        digests = runtime.transport.all_gather(tf.constant([signature.digest], tf.int64))
        alike = tf.reduce_all(digests == digests[0])
        checked = tf.cond(alike, lambda: tf.constant(True), fail)
        return agreed.assign(checked, read_value=True)

    def fail() -> tf.Tensor:
        codes = runtime.transport.all_gather(_text_codes(signature))
        texts = tf.strings.strip(tf.strings.unicode_encode(codes, "UTF-8"))
        lines = tf.strings.join([[f"rank {r}: " for r in range(runtime.cluster.size)], texts])
        # On one line: the op's message would show the end of a line as two characters.
        message = tf.strings.join([_HEADLINE, " ", tf.strings.reduce_join(lines, separator="; ")])
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    tf.cond(agreed, lambda: tf.constant(True), compare)


_HEADLINE = "The ranks are about to do different things:"


def _describe(texts: Sequence[str]) -> str:
    by_text: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
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


def _text_codes(signature: Signature) -> tf.Tensor:
    text = str(signature).encode("ascii", "replace")
    if len(text) > _TEXT_BYTES:
        text = (
            text[: _TEXT_BYTES - 30] + f"... (digest {signature.digest & 0xFFFFFFFF:08x})".encode()
        )
    return tf.constant(np.frombuffer(text.ljust(_TEXT_BYTES), np.uint8), tf.int32)


def _text(codes: np.ndarray) -> str:
    return bytes(codes.tolist()).decode().rstrip()
