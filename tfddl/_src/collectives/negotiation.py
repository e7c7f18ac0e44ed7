"""Ranks compare what they are about to do, before TensorFlow's ops could get stuck on it.

TensorFlow aborts every later collective of a process once two ranks launch one op with different
shapes or dtypes. So the ranks first exchange something whose shape never differs: a digest of what
they are about to do.
"""

import contextlib
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import tensorflow as tf

from tfddl._src.collectives.fusion_limit import fusion_limit
from tfddl._src.collectives.process_sets import Group
from tfddl._src.collectives.refusal import check_not_refused
from tfddl._src.comm.errors import DisagreementOpError, GraphDisagreementError
from tfddl._src.comm.lazy_variable import create_outside_graph
from tfddl._src.comm.native import OpSignature, describe_difference, format_ranks
from tfddl._src.comm.process_group import DynamicSignature
from tfddl._src.comm.session_graph import is_for_session
from tfddl._src.comm.stall_inspector import COMPARING
from tfddl._src.comm.tensorflow_private import is_for_xla, may_run_twice
from tfddl._src.runtime import PerRuntime
from tfddl.errors import TfddlError, UnsupportedError

_AGREED: PerRuntime[dict[str, tf.Variable]] = PerRuntime(lambda _: {})
"""Requests that all ranks have compared inside a graph, and whether they have yet."""

_EAGER_TURN = PerRuntime(lambda _: threading.RLock())
"""Held by the thread whose eager operation is under way, where they can't be told apart."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class DisplayName(str):
    """A name for messages only: the call is matched with those of the other ranks in program order.

    Calls that users have named are matched by their names, in whatever order.
    """

    __slots__ = ()


# These are made as TensorFlow's errors are (node, op, message): it makes them anew, with the same
# arguments, where they leave a `tf.function`. So its classes come first.


class WrongArgumentError(tf.errors.InvalidArgumentError, UnsupportedError):
    """A root rank that isn't there, or splits that don't add up."""


class CompiledError(tf.errors.InvalidArgumentError, UnsupportedError):
    """A collective in what XLA is to compile."""

    @classmethod
    def check(cls, request: "CollectiveRequest") -> None:
        """Makes sure that XLA stays out.

        Raises:
            CompiledError: It is to compile the graph that is being made.
        """
        if not tf.executing_eagerly() and is_for_xla():
            raise cls(
                None,
                None,
                f"{request.kind} is called within a tf.function(jit_compile=True): XLA can't "
                "compile communication between workers. HINT: leave jit_compile out there; let "
                "XLA compile a function of its own that only computes, such as the loss, and call "
                "it from this one",
            )


class NoDimensionError(tf.errors.FailedPreconditionError, UnsupportedError):
    """A scalar, where tensors are joined or cut on their first dimension."""

    @classmethod
    def check(cls, operation: str, name: str | None, tensors: Sequence[tf.Tensor]) -> None:
        """Makes sure that all tensors have a first dimension.

        Raises:
            NoDimensionError: One hasn't.
        """
        for tensor in tensors:
            if tensor.shape.rank == 0:
                raise cls(
                    None,
                    None,
                    f"{_call(operation, name)} works on the first dimension of a tensor, but this "
                    f"one ({tensor.dtype.name}) has none. Give it one: tf.expand_dims(tensor, 0).",
                )


@dataclasses.dataclass(frozen=True)
class CollectiveRequest:
    """What a rank asks for by calling a collective, all of which has to be alike on all ranks."""

    kind: str
    """The operation, its options, its name, its ranks: "allreduce average <loss>"."""

    tensors: tuple[str, ...]
    """Dtype and shape of each tensor: "float32 (3, 4)"; then what else has to be alike."""

    key: str = ""
    """Calls of one key are matched in their order, whatever happens under other keys."""

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
    ) -> "CollectiveRequest":
        """Describes an operation of a group on tensors.

        Args:
            group: Who takes part.
            operation: The operation and its options.
            name: How the user calls it.
            tensors: What it is applied to.
            free_first_dimension: Whether the first dimensions may differ.
        """
        first = int(free_first_dimension)
        among = "" if group.is_world else f" among {format_ranks(group.ranks)}"
        known = all(t.shape[first:].is_fully_defined() for t in tensors)
        return cls(
            kind=_call(operation, name) + among,
            key="" if name is None or isinstance(name, DisplayName) else name,
            tensors=tuple(describe_tensor(t.dtype, t.shape, free=first) for t in tensors),
            running=() if known else tuple(tf.shape(t)[first:] for t in tensors),
        )

    def fused(self, group: Group) -> "CollectiveRequest":
        """The same, of tensors that travel together: up to which size has to be alike, too."""
        limit = fusion_limit(group.runtime)
        if limit is None:
            return self
        return dataclasses.replace(self, kind=f"{self.kind} fused up to {limit} bytes")

    def about(self, lines: Sequence[str]) -> "CollectiveRequest":
        """The same, with more that has to be alike, a line each; all shapes are known."""
        return dataclasses.replace(self, tensors=(*self.tensors, *lines))

    @property
    def lines(self) -> str:
        """A line for the operation, then one for each tensor."""
        return "\n".join([self.kind, *self.tensors])

    def __str__(self) -> str:
        return f"{self.kind} of {', '.join(self.tensors)}" if self.tensors else self.kind

    @property
    def digest(self) -> int:
        """A signed 64-bit number that stands for the request."""
        # Not hash(), which Python salts in each process. Two texts share 64 bits with a chance of
        # 2**-64.
        digest = hashlib.blake2b(str(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def negotiate(group: Group, request: CollectiveRequest, *, compare: bool = True) -> Group:
    """Makes sure that all ranks of a group are about to do the same.

    A process group that compares by itself does so with every operation. Otherwise, eagerly, this
    compares at every call. In a graph it adds ops that compare when the graph first has the
    request, because each comparison costs a round trip; where shapes are known only when the
    graph runs, they compare these at every run.

    Ranks that name different process sets wait for each other: they don't match.

    Args:
        group: Who takes part.
        request: What this rank is about to do.
        compare: Whether ranks have to do it together.

    Returns:
        The group, whose operations belong to this call.

    Raises:
        CompiledError: XLA is to compile the graph.
        UnsupportedError: The graph is one for TensorFlow 1's sessions, and the process group
            doesn't support them, or this is a loop or a function in it; or it is called where
            operations are refused.
        DisagreementOpError: Eagerly, on every rank, where the requests differ.
    """
    check_not_refused(request)
    if group.size == 1:
        return group
    CompiledError.check(request)
    _check_session(group, request)
    if compare and not group.process_group.compares:
        comparing = OpSignature("", f"{COMPARING} {request.lines}")
        asking = dataclasses.replace(group, signature=DynamicSignature(comparing))
        if tf.executing_eagerly():
            _agree_eagerly(asking, request)
        elif request.running:
            _agree_at_every_run(asking, request)
        else:
            _agree_in_graph(asking, request)
    call = OpSignature(request.key, request.lines)
    # What isn't known yet is compared when it is.
    return dataclasses.replace(group, signature=DynamicSignature(call, request.running))


def _check_session(group: Group, request: CollectiveRequest) -> None:
    """Raises in a graph that a session runs, where operations would be mixed up.

    A session runs only what is asked for, in any order, on few threads: ranks could wait for each
    other in different operations. Where ranks match them by name, several runs of one operation
    within a run of the session can't be told apart.
    """
    if not is_for_session():
        return
    if may_run_twice() and group.process_group.runs_in_sessions:
        raise UnsupportedError(
            f"{request.kind} is called in a loop or a tf.function of a tf.Graph for a "
            "tf.compat.v1.Session, which may run it several times, in another order on each rank. "
            "HINT: call it in the graph itself, once for each tensor, or run the loop in Python."
        )
    if not group.process_group.runs_in_sessions:
        raise UnsupportedError(
            f"{request.kind} is called in a tf.Graph for a tf.compat.v1.Session, which runs "
            "operations in another order on each rank: between CPUs it works, on one host or with "
            "one worker per host. HINT: call it eagerly, or in a tf.function."
        )


def serialized(group: Group) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Makes a function that agrees, and then moves tensors, one step for the threads of a process.

    A process group that compares tells the calls of several threads apart. Any other would mix up
    what two of them move: there, eager calls come one after the other, and ranks whose threads come
    in another order differ.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        if group.process_group.compares or not tf.executing_eagerly():
            return function

        @functools.wraps(function)
        def in_order(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with _EAGER_TURN.of(group.runtime):
                return function(*args, **kwargs)

        return in_order

    return decorate


@contextlib.contextmanager
def failing_together(bound: Group) -> Iterator[None]:
    """Around checks of what the request tells, which come before anything is moved.

    What fails a check on all ranks raises on all of them. Where others don't fail, they have other
    requests: then all raise that they differ, instead of waiting for this rank.
    """
    try:
        yield
    except TfddlError:
        if bound.process_group.compares and tf.executing_eagerly():
            _all_gather(bound, tf.zeros([0], tf.int32))
        raise


def _agree_eagerly(group: Group, request: CollectiveRequest) -> None:
    digests = _all_gather(group, tf.constant([request.digest], tf.int64)).numpy()
    if (digests == digests[0]).all():
        return
    lengths, rows = _texts_of_all(group, tf.constant(request.lines))
    raise DisagreementOpError(None, None, _difference(group, lengths.numpy(), rows.numpy()))


def _new_flag() -> tf.Variable:
    with tf.device("CPU:0"):
        return tf.Variable(False, trainable=False, name="tfddl_agreed")


def _agree_in_graph(group: Group, request: CollectiveRequest) -> None:
    agreed = _AGREED.of(group.runtime)
    key = str(request)
    if key not in agreed:
        agreed[key] = create_outside_graph(_new_flag)

    def compare() -> tf.Tensor:
        digest = tf.constant([request.digest], tf.int64)
        checked = _checked(group, digest, lambda: tf.constant(request.lines))
        return _set(agreed[key], checked)

    if not group.process_group.stays_on_device:
        tf.cond(agreed[key], lambda: tf.constant(True), compare)
        return
    # The flag is in host memory, where a branch wants it. The branch itself has its place among the
    # collectives, which an edge to the CPU and back would hold up.
    with tf.device("CPU:0"):
        known = agreed[key].read_value()
    with tf.device(group.process_group.device):
        tf.cond(known, lambda: tf.constant(True), compare)


def _set(flag: tf.Variable, value: tf.Tensor) -> tf.Tensor:
    with tf.device("CPU:0"):
        return flag.assign(value, read_value=True)


def _agree_at_every_run(group: Group, request: CollectiveRequest) -> None:
    lines = [tf.constant(request.kind)]
    for tensor, shape in zip(request.tensors, request.running, strict=True):
        numbers = tf.strings.reduce_join(tf.strings.as_string(shape), separator=", ")
        lines.append(tf.strings.join([tensor, ": (", numbers, ")"]))
    text = tf.strings.join(lines, separator="\n")
    # FarmHash's fingerprint, which TensorFlow promises never to change: the same in all processes
    # and on all machines. 2**62: buckets are of int64.
    digest = tf.strings.to_hash_bucket_fast(text, 2**62)
    _checked(group, digest[tf.newaxis], lambda: text)


def _checked(group: Group, digest: tf.Tensor, text: Callable[[], tf.Tensor]) -> tf.Tensor:
    """True, once all ranks have the same digest; fails with everybody's text where they don't."""

    def refuse(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        raise GraphDisagreementError(_difference(group, lengths, rows))

    def fail() -> tf.Tensor:
        return tf.ensure_shape(
            tf.numpy_function(refuse, _texts_of_all(group, text()), tf.bool, stateful=True), []
        )

    digests = _all_gather(group, digest)
    return tf.cond(tf.reduce_all(digests == digests[0]), lambda: tf.constant(True), fail)


def _texts_of_all(group: Group, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """How long the text of each rank is, and these texts as rows of codes, filled up to one length.

    Args:
        group: Whose; all its members call it together.
        text: Of this rank, a string.
    """
    codes = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)
    lengths = _all_gather(group, tf.size(codes)[tf.newaxis])[:, 0]
    more = tf.reduce_max(lengths) - tf.size(codes)
    return lengths, _all_gather(group, tf.pad(codes, [[0, more]]))


def _all_gather(group: Group, flat: tf.Tensor) -> tf.Tensor:
    return group.process_group.all_gather(flat, signature=group.signature)


def _difference(group: Group, lengths: np.ndarray, rows: np.ndarray) -> str:
    texts = [
        bytes(row[:length].tolist()).decode(errors="replace")
        for length, row in zip(lengths, rows, strict=True)
    ]
    return describe_difference(dict(zip(group.ranks, texts, strict=True)))


def _call(operation: str, name: str | None) -> str:
    return operation if name is None else f"{operation} <{name}>"


def describe_tensor(dtype: tf.DType, shape: tf.TensorShape, *, free: int = 0) -> str:
    """Dtype and shape as messages tell them, the first dimensions left open: "float32 (*, 4)"."""
    if shape.rank is None:
        return f"{dtype.name} of any shape"
    dimensions = ["*"] * min(free, shape.rank) + [str(d) for d in shape[free:]]
    return f"{dtype.name} ({', '.join(dimensions)})"
