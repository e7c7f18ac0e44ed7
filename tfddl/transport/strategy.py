"""TensorFlow's own collectives, as `MultiWorkerMirroredStrategy` sets them up: RING and NCCL.

`strategy.run(… all_reduce …)` can't be used inside the loops that ``steps_per_execution > 1``
makes, so this speaks to the ops below it. Three things about those ops shape this room:

* An op finds its peers by an *instance key*, and a key is bound for ever to the dtype, shape and
  kind it was first used with; a second use with others aborts every later collective of the
  process. Keys here are therefore computed from dtype, length and kind, and nothing else, so that
  no two of them can clash and the length may be known only when the graph runs.
* Ops that aren't tied to each other may run in any order, and two ranks that choose differently
  wait for each other for ever. All ops share one *ordering token*, which makes TensorFlow run them
  in program order.
* An empty tensor or one without dimensions crashes the process in a gather. Only flat tensors with
  at least one element are ever launched.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfddl.errors import UnsupportedError
from tfddl.transport.base import Collective, Reduction, Transport
from tfddl.transport.watch import Watch

_GROUP_KEY = 7_366_684  # "tfddl"; the strategy itself counts its own groups up from 1.

_LENGTH_BITS = 26
_MAX_LENGTH = 2**_LENGTH_BITS - 1

_TOO_LONG = (
    f"A tensor whose length isn't known when the graph is made can have at most {_MAX_LENGTH} "
    "elements to travel. Give it a static shape; for sparse gradients, use sparse_as_dense=True."
)

_GATHERED_AS = {tf.bfloat16: tf.float16}
"""The gather op knows no bfloat16; its bits travel as another 16-bit type."""

_BITS_AS = {
    tf.float16: tf.int16,
    tf.bfloat16: tf.int16,
    tf.float32: tf.int32,
    tf.float64: tf.int64,
    tf.int32: tf.int32,
    tf.int64: tf.int64,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """How to launch TensorFlow's collective ops."""

    device: str
    """The strategy's device of this worker, where the tensors have to be."""

    collective: Collective
    timeout_s: float
    """After how many seconds without all ranks an op fails; 0 waits for ever."""


class StrategyTransport(Transport):
    """RING over gRPC on CPUs, NCCL on GPUs.

    `tfddl.init()` makes it, after the strategy: the strategy has started the servers that the
    ops need.

    References:
        "CollectiveReduceV2", TensorFlow API, tf.raw_ops,
        https://www.tensorflow.org/api_docs/python/tf/raw_ops/CollectiveReduceV2
    """

    dtypes = frozenset(_BITS_AS)

    def __init__(self, rank: int, size: int, options: StrategyOptions) -> None:
        super().__init__(rank, size)
        self.name = options.collective.name
        self._options = options
        with tf.device(options.device):
            self._ordering_token = tf.Variable(0.0, trainable=False, name="tfddl_ordering_token")
        self._watch = Watch(options.timeout_s)

    def all_reduce(self, flat: tf.Tensor, reduction: Reduction) -> tf.Tensor:
        """See `Transport.all_reduce`."""

        def launch(piece: tf.Tensor) -> tf.Tensor:
            return tf.raw_ops.CollectiveReduceV2(
                input=piece,
                merge_op=reduction.value,
                final_op="Id",
                **self._arguments(piece, _family(reduction, piece.dtype)),
            )

        return self._in_pieces(flat, launch)

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """See `Transport.all_gather`."""
        carrier = _GATHERED_AS.get(flat.dtype, flat.dtype)

        def launch(piece: tf.Tensor) -> tf.Tensor:
            rows = tf.raw_ops.CollectiveGatherV2(
                input=piece, **self._arguments(piece, _family(None, piece.dtype))
            )
            return tf.reshape(rows, [self.size, -1])

        gathered = self._in_pieces(tf.bitcast(flat, carrier), launch, empty_rows=self.size)
        return tf.bitcast(gathered, flat.dtype)

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """See `Transport.broadcast`: the sum of the root's bits and everyone else's zeros.

        TensorFlow's broadcast op takes no ordering token, and moves no fewer bytes over the
        slowest link than RING's sum does.
        """
        bits = tf.bitcast(flat, _BITS_AS[flat.dtype])
        carried = bits if bits.dtype != tf.int16 else tf.cast(bits, tf.int32)
        mine = carried if self.rank == root_rank else tf.zeros_like(carried)
        total = self.all_reduce(mine, Reduction.SUM)
        return tf.bitcast(tf.cast(total, bits.dtype), flat.dtype)

    def counts(self) -> tuple[int, int]:
        """See `Transport.counts`."""
        return self._watch.counts()

    def _arguments(self, piece: tf.Tensor, family: int) -> dict[str, object]:
        length = piece.shape[0]
        if length is None:
            length = tf.size(piece)
        return {
            "group_size": self.size,
            "group_key": _GROUP_KEY,
            "instance_key": family * 2**_LENGTH_BITS + length,
            "ordering_token": [self._ordering_token.handle],
            "communication_hint": self._options.collective.value,
            # Not TensorFlow's own: for each op it keeps a thread that sleeps all that time.
            "timeout_seconds": 0.0,
        }

    def _in_pieces(
        self,
        flat: tf.Tensor,
        launch: Callable[[tf.Tensor], tf.Tensor],
        empty_rows: int | None = None,
    ) -> tf.Tensor:
        """Launches an op for a tensor of any length, the results joined along the last axis."""
        with tf.device(self._options.device):
            flat = tf.identity(flat)
            length = flat.shape[0]
            empty = flat if empty_rows is None else tf.zeros([empty_rows, 0], flat.dtype)
            if length is None:
                short = tf.debugging.assert_less_equal(tf.size(flat), _MAX_LENGTH, _TOO_LONG)
                with tf.control_dependencies([] if short is None else [short]):
                    return tf.cond(
                        tf.size(flat) > 0, lambda: self._watch.over(launch, flat), lambda: empty
                    )
            if length == 0:
                return empty
            pieces = [flat[i : i + _MAX_LENGTH] for i in range(0, length, _MAX_LENGTH)]
            return tf.concat([self._watch.over(launch, piece) for piece in pieces], axis=-1)


_REDUCED = (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64)
_GATHERED = tuple(dtype for dtype in _REDUCED if dtype not in _GATHERED_AS)
_FAMILIES: dict[tuple[Reduction | None, tf.DType], int] = {
    family: number
    for number, family in enumerate(
        [(reduction, dtype) for reduction in Reduction for dtype in _REDUCED]
        + [(None, dtype) for dtype in _GATHERED]
    )
}
"""The upper bits of an instance key: the kind of op and its dtype, at most 2**5 of them."""


def _family(reduction: Reduction | None, dtype: tf.DType) -> int:
    try:
        return _FAMILIES[reduction, dtype]
    except KeyError:
        raise UnsupportedError(
            f"{dtype.name} can't travel through TensorFlow's collectives; "
            f"these can: {', '.join(d.name for d in _REDUCED)}."
        ) from None
