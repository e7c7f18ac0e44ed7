"""TensorFlow's own collectives, as `MultiWorkerMirroredStrategy` sets them up: RING.

`strategy.run(… all_reduce …)` can't be used inside the loops that ``steps_per_execution > 1``
makes, so this speaks to the ops below it. Six things about those ops shape this module:

* An op finds its peers by an *instance key*, and a key is bound for ever to the dtype, shape and
  kind it was first used with; a second use with others aborts every later collective of the
  process. Keys here are therefore computed from dtype, length and kind, and nothing else, so that
  no two of them can clash and the length may be known only when the graph runs.
* Ops that aren't tied to each other may run in any order, and two ranks that choose differently
  wait for each other for ever. Ops that share an *ordering token* run in program order.
* RING moves a chunk of a tensor to and fro before the next, so that one op alone leaves cores and
  cable idle. What is large goes in several chunks at once, each in a *channel*, with an ordering
  token and a group key of its own, so that the ops of a channel keep program order, and chunks of
  one length don't share an instance key.
* Several sets of ranks are several *groups*, and a group key is all that its members have to agree
  on. It is computed from ranks and channel, so that nobody has to be asked; and the sets share the
  ordering tokens, so that one process's operations on several sets keep one order.
* An empty tensor or one without dimensions crashes the process in a gather. Only flat tensors with
  at least one element are ever launched.
* TensorFlow orders the members of a group by the names of their tasks, as text: task 10 comes
  before task 2. Rows of a gather and parts of an all-to-all come in that order, and are put into
  rank order here, see `tensorflow_order`.
"""

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import tensorflow as tf

from tfddl._src.comm import tensorflow_private
from tfddl._src.comm.abort_guard import AbortGuard
from tfddl._src.comm.chunking import Chunk, chunk_bytes, cut
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import (
    OVER_ROWS,
    UNNAMED,
    DynamicSignature,
    Lengths,
    ProcessGroup,
    Transport,
    flatten,
    scaled,
    unflatten,
)
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl.errors import UnsupportedError

_LENGTH_BITS = 26
_MAX_LENGTH = 2**_LENGTH_BITS - 1

TOO_LONG = (
    f"A tensor whose length isn't known when the graph is made can have at most {_MAX_LENGTH} "
    "elements to travel. Give it a static shape; for sparse gradients, use sparse_as_dense=True."
)

_MERGE_OPS = {
    ReduceOp.SUM: "Add",
    ReduceOp.PRODUCT: "Mul",
    ReduceOp.MIN: "Min",
    ReduceOp.MAX: "Max",
}

_GATHERED_AS = {tf.bfloat16: tf.float16}
"""The gather op knows no bfloat16; its bits travel as another 16-bit type."""

_EXCHANGED_AS = {
    tf.float16: tf.float16,
    tf.bfloat16: tf.float16,
    tf.float32: tf.int32,
    tf.float64: tf.int64,
    tf.int32: tf.int32,
    tf.int64: tf.int64,
}
"""Parts that are exchanged travel as bits, which saves instance keys."""

_SUMMED_AS = {tf.float16: tf.float32, tf.bfloat16: tf.float32}
"""What is added up here, and not by TensorFlow's op, is rounded to 16 bits only once."""

_BITS_AS = {
    tf.float16: tf.int16,
    tf.bfloat16: tf.int16,
    tf.float32: tf.int32,
    tf.float64: tf.int64,
    tf.int32: tf.int32,
    tf.int64: tf.int64,
}


class Shared:
    """What the groups of a process have in common, whatever their ranks."""

    def __init__(self, device: str, transport: Transport, channels: int) -> None:
        """Makes variables, after the strategy has started the servers that the ops need.

        Args:
            device: The strategy's device of this worker, where the tensors have to be.
            transport: By which means bytes move.
            channels: How many chunks of what is large travel at once; the same on all ranks.
        """
        self.device, self.transport, self.channels = device, transport, channels
        with tf.device(device):
            self.ordering_tokens = tuple(
                tf.Variable(0.0, trainable=False, name=f"tfddl_ordering_token_{channel}")
                for channel in range(channels)
            )
        self.guard = AbortGuard(device)


class Launch(Protocol):
    """Launches one of TensorFlow's collective operations."""

    def __call__(self, chunk: tf.Tensor, channel: int) -> tf.Tensor:
        """Returns the result for a chunk, sent through a channel."""


class TensorFlowGroup(ProcessGroup):
    """RING over gRPC on CPUs; `NcclGroup` is what differs on GPUs.

    `make_tensorflow_group` makes the first one of a process.

    References:
        "CollectiveReduceV2", TensorFlow API, tf.raw_ops,
        https://www.tensorflow.org/api_docs/python/tf/raw_ops/CollectiveReduceV2
    """

    dtypes = frozenset(_BITS_AS)

    def __init__(self, rank: int, ranks: Sequence[int], shared: Shared) -> None:
        """A group of some ranks of the job; all of them make it alike.

        Args:
            rank: This worker's place in the group.
            ranks: The members, ascending.
            shared: The same for all groups of the process.
        """
        super().__init__(rank, ranks)
        self.name = shared.transport.name
        self._shared = shared
        self._group_keys = [_group_key(self.ranks, channel) for channel in range(shared.channels)]
        self._order = tensorflow_order(self.ranks)

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        # A set within a set: keys and TensorFlow's order are those of the job's ranks.
        members = tuple(self.ranks[rank] for rank in ranks)
        if len(ranks) == 1:
            return SingleProcessGroup(members[0])
        return type(self)(ranks.index(self.rank), members, self._shared)

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce`."""
        launch = functools.partial(self._launch_reduce, op=op)
        tensors = scaled(tensors, scale)
        lengths = [tensor.shape.num_elements() for tensor in tensors]
        if None in lengths:
            return unflatten(self._cut_last_axis(flatten(tensors), launch), tensors)
        with tf.device(self._shared.device):
            # Whoever calls has the gradient.
            flats = [tf.stop_gradient(tf.reshape(tensor, [-1])) for tensor in tensors]
            chunks = self._cut(lengths, tensors[0].dtype)
            sent = [_put_together(flats, chunk) for chunk in chunks]
            totals = _take_apart(flats, chunks, self._in_channels(sent, launch))
            return [
                tf.reshape(total, tensor.shape)
                for total, tensor in zip(totals, tensors, strict=True)
            ]

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        transfer_dtype = _GATHERED_AS.get(flat.dtype, flat.dtype)

        def launch(chunk: tf.Tensor, channel: int) -> tf.Tensor:
            rows = tf.raw_ops.CollectiveGatherV2(
                input=chunk, **self._arguments(chunk, _family(_GATHER, chunk.dtype), channel)
            )
            return tf.reshape(rows, [self.size, -1])

        gathered = self._cut_last_axis(
            tf.bitcast(flat, transfer_dtype), launch, empty_rows=self.size
        )
        return tf.bitcast(self._in_rank_order(gathered), flat.dtype)

    def _in_rank_order(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows in TensorFlow's order, by rank."""
        if self._order == tuple(range(self.size)):
            return rows
        with tf.device(self._shared.device):
            return tf.gather(rows, _inverse(self._order))

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast`: the sum of the root's bits and everyone else's zeros.

        TensorFlow's broadcast op takes no ordering token, and moves no fewer bytes over the
        slowest link than RING's sum does.
        """
        bits = tf.bitcast(flatten(tensors), _BITS_AS[tensors[0].dtype])
        carried = bits if bits.dtype != tf.int16 else tf.cast(bits, tf.int32)
        mine = carried if self.rank == root else tf.zeros_like(carried)
        [total] = self.all_reduce([mine], ReduceOp.SUM)
        return unflatten(tf.bitcast(tf.cast(total, bits.dtype), tensors[0].dtype), tensors)

    def abort(self, text: str) -> None:
        """See `ProcessGroup.abort`; of all TensorFlow's collectives of this process."""
        self._shared.guard.abort(text)
        tensorflow_private.abort_collectives(text)

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`: an exchange, and arithmetic here.

        For CPUs TensorFlow registers no reduce-scatter, and launching one aborts every later
        collective. An exchange moves half of what an all-reduce does.
        """
        each = tf.convert_to_tensor(lengths, tf.int64)
        rows = self.all_to_all(flat, tf.tile(each[tf.newaxis], [self.size, 1]))
        rows = tf.reshape(rows, tf.stack([self.size, each[self.rank]]))
        wide = tf.cast(rows, _SUMMED_AS.get(flat.dtype, flat.dtype))
        return tf.cast(OVER_ROWS[op](wide, axis=0), flat.dtype)

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`: TensorFlow's op, which wants parts of one length."""
        bits = tf.bitcast(flat, _EXCHANGED_AS[flat.dtype])
        longest = tf.reduce_max(lengths)

        def launch(chunk: tf.Tensor, channel: int) -> tf.Tensor:
            arguments = self._arguments(chunk, _family(_EXCHANGE, chunk.dtype), channel)
            return tf.raw_ops.CollectiveAllToAllV2(input=chunk, **arguments)

        mine = lengths[self.rank]
        ends = tf.cumsum(mine)
        padded = [
            tf.pad(bits[ends[r] - mine[r] : ends[r]], [[0, longest - mine[r]]]) for r in self._order
        ]
        rows = self._cut_last_axis(tf.stack(padded), launch)
        arrived = [
            rows[row, : lengths[rank, self.rank]] for rank, row in enumerate(_inverse(self._order))
        ]
        return tf.bitcast(tf.concat(arrived, axis=0), flat.dtype)

    def _launch_reduce(self, chunk: tf.Tensor, channel: int, *, op: ReduceOp) -> tf.Tensor:
        return tf.raw_ops.CollectiveReduceV2(
            input=chunk,
            merge_op=_MERGE_OPS[op],
            final_op="Id",
            **self._arguments(chunk, _family(op, chunk.dtype), channel),
        )

    def _arguments(self, chunk: tf.Tensor, family: int, channel: int) -> dict[str, object]:
        length = chunk.shape[-1]
        if length is None:
            length = tf.shape(chunk)[-1]
        return {
            "group_size": self.size,
            "group_key": self._group_keys[channel],
            "instance_key": family * 2**_LENGTH_BITS + length,
            "ordering_token": [self._shared.ordering_tokens[channel].handle],
            "communication_hint": self._shared.transport.value,
            # Not TensorFlow's own: for each op it keeps a thread that sleeps all that time.
            "timeout_seconds": 0.0,
        }

    def _cut(self, lengths: Sequence[int], dtype: tf.DType) -> list[Chunk]:
        wanted = chunk_bytes(self._shared.channels)
        most = _MAX_LENGTH if wanted is None else wanted // dtype.size
        return cut(lengths, most=most, itemsize=dtype.size)

    def _cut_last_axis(
        self, tensor: tf.Tensor, launch: Launch, empty_rows: int | None = None
    ) -> tf.Tensor:
        """Launches an op for any length of the last axis, along which the results are joined."""
        with tf.device(self._shared.device):
            # Whoever calls has the gradient. Under two tapes `tf.cond` would look for another one.
            tensor = tf.stop_gradient(tensor)
            length = tensor.shape[-1]
            empty = tensor if empty_rows is None else tf.zeros([empty_rows, 0], tensor.dtype)
            if length is None:
                length = tf.shape(tensor)[-1]
                with tf.control_dependencies(self._check_length(length, _MAX_LENGTH)):
                    return tf.cond(
                        length > 0, lambda: self._in_channels([tensor], launch)[0], lambda: empty
                    )
            if length == 0:
                return empty
            spans = [span for (span,) in self._cut([length], tensor.dtype)]
            sent = [tensor[..., span.start : span.stop] for span in spans]
            return tf.concat(self._in_channels(sent, launch), axis=-1)

    def _check_length(self, length: tf.Tensor, most: int) -> list[tf.Operation]:
        """What fails where a length is known only when the graph runs, and too large."""
        short = tf.debugging.assert_less_equal(length, most, TOO_LONG)
        return [] if short is None else [short]

    def _in_channels(self, sent: Sequence[tf.Tensor], launch: Launch) -> list[tf.Tensor]:
        """Launches an op for each chunk, as many at once as there are channels."""
        channels = min(self._shared.channels, len(sent))

        def launched(channel: int) -> list[tf.Tensor]:
            with tf.device(self._shared.device):
                return [
                    self._shared.guard.checked(launch(chunk, channel), in_graphs=in_graphs)
                    for chunk in sent[channel::channels]
                ]

        in_graphs = self.stays_on_device
        if channels > 1 and tf.executing_eagerly():
            # Eagerly, TensorFlow returns when an op is over: one thread is one op at a time.
            with ThreadPoolExecutor(channels, thread_name_prefix="tfddl-channel") as pool:
                by_channel = list(pool.map(launched, range(channels)))
        else:
            by_channel = [launched(channel) for channel in range(channels)]
        return [by_channel[i % channels][i // channels] for i in range(len(sent))]


def _put_together(flats: Sequence[tf.Tensor], chunk: Chunk) -> tf.Tensor:
    parts = [flats[span.tensor][span.start : span.stop] for span in chunk]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)


def _take_apart(
    flats: Sequence[tf.Tensor], chunks: Sequence[Chunk], arrived: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Puts what has arrived where it belongs: the reverse of `_put_together` for all chunks."""
    parts: list[list[tf.Tensor]] = [[] for _ in flats]
    for chunk, total in zip(chunks, arrived, strict=True):
        lengths = [span.stop - span.start for span in chunk]
        split = tf.split(total, lengths) if len(chunk) > 1 else [total]
        for span, part in zip(chunk, split, strict=True):
            parts[span.tensor].append(part)
    return [
        tf.concat(of_one, axis=0) if len(of_one) > 1 else (of_one or [flat])[0]
        for of_one, flat in zip(parts, flats, strict=True)
    ]


_REDUCED = (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64)
_GATHERED = tuple(dtype for dtype in _REDUCED if dtype not in _GATHERED_AS)
_GATHER, _EXCHANGE = "gather", "exchange"
_FAMILIES: dict[tuple[ReduceOp | str, tf.DType], int] = {
    family: number
    for number, family in enumerate(
        [(op, dtype) for op in _MERGE_OPS for dtype in _REDUCED]
        + [(_GATHER, dtype) for dtype in _GATHERED]
        + [(_EXCHANGE, dtype) for dtype in dict.fromkeys(_EXCHANGED_AS.values())]
    )
}
"""The upper bits of an instance key: the kind of op and its dtype, at most 2**5 of them."""


def _group_key(ranks: tuple[int, ...], channel: int) -> int:
    """A key that all members compute alike.

    It is above all those that the strategy counts up for itself.
    """
    digest = hashlib.blake2b(repr((ranks, channel)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 2**30 + 2**30


def tensorflow_order(ranks: Sequence[int]) -> tuple[int, ...]:
    """In which order TensorFlow's collectives have the members of a group. Pure arithmetic.

    A rank is a task of TensorFlow's cluster, with one device. TensorFlow orders the names of the
    tasks as text (`EstablishGlobalRank` in collective_param_resolver_local.cc, which puts
    "/job:worker/replica:0/task:10" before "…/task:2"), on CPUs and GPUs alike.

    Args:
        ranks: Ranks of the job, ascending.

    Returns:
        For each place in TensorFlow's order, the place in `ranks` of who is there.
    """
    return tuple(sorted(range(len(ranks)), key=lambda place: str(ranks[place])))


def _inverse(order: Sequence[int]) -> list[int]:
    """Where each of those that are ordered is."""
    places = [0] * len(order)
    for place, member in enumerate(order):
        places[member] = place
    return places


def _family(kind: ReduceOp | str, dtype: tf.DType) -> int:
    try:
        return _FAMILIES[kind, dtype]
    except KeyError:
        raise UnsupportedError(
            f"{dtype.name} can't be sent through TensorFlow's collectives; "
            f"these can: {', '.join(d.name for d in _REDUCED)}."
        ) from None
