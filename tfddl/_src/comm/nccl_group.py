"""TensorFlow's collectives by NCCL, with one GPU per process; this has not been run on a GPU.

It is written after TensorFlow's sources, and tested over RING with soft placement:

* NCCL's all-to-all sends to the participants of *this process* only (`LoopKernelLaunches` in
  nccl_manager.cc loops over them), which with one GPU per process is a copy of the input. It is
  made of a gather here, and reduce-scatter of a sum.
* NCCL takes `NCCL_DTYPES` only (`kValidDataTypes`, same file). bfloat16 is added up in float32, and
  gathered as float16's bits.
* All collectives of a process go through one stream and one lock (`RunCollective`, same file). Two
  ordering tokens would let two ranks launch in different orders: there is one channel.
* Whatever crosses between GPU and CPU waits for all that the GPU's compute stream was given before:
  a copy (`CopyGPUTensorToCPU`, `CopyCPUTensorToGPU` in gpu_util.cc), and so also an edge that only
  says what comes first (graph_partition.cc sends an empty tensor for it). Nothing would overlap
  with the backward pass. So all that an operation needs of its own stays on the GPU: counters,
  the note of what this rank is in, the flag of `AbortGuard`. Tensors of int32 are in host memory on
  TensorFlow's GPUs, and are copied to and fro.
"""

import logging
from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.comm.abort_guard import assert_on_host
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import (
    UNNAMED,
    DynamicSignature,
    Lengths,
    ProcessGroup,
    Transport,
    flatten,
    unflatten,
)
from tfddl._src.comm.tensorflow_group import TOO_LONG, Shared, TensorFlowGroup

NCCL_DTYPES = frozenset({tf.float16, tf.float32, tf.float64, tf.int32, tf.int64})
"""What TensorFlow hands over to NCCL: `kValidDataTypes` in nccl_manager.cc."""

_SUMMED_AS = {tf.bfloat16: tf.float32}

_NOT_NARROW = (
    "bfloat16 is added up as float32 by NCCL in TensorFlow, so that compression='bf16' saves "
    "nothing. HINT: compression='fp16' halves what is sent."
)

_LOG = logging.getLogger("tfddl")


RING_CHANNELS = 8
"""How many chunks of what is large RING moves at once. Between two network namespaces, with a core
each, sums took a third less time than whole, and no less with up to 64."""


def make_tensorflow_group(
    rank: int, size: int, device: str, transport: Transport, *, channels: int = RING_CHANNELS
) -> TensorFlowGroup:
    """TensorFlow's collectives between all workers, after the strategy was made.

    Args:
        rank: This rank.
        size: How many there are.
        device: The strategy's device of this worker.
        transport: By which means bytes move.
        channels: How many chunks RING moves at once; the same on all ranks.

    Returns:
        By NCCL on the device; by RING on the host, also where the device is a GPU.
    """
    if transport is Transport.NCCL:
        # It takes one collective after the other: several would wait for each other for ever.
        return NcclGroup(rank, range(size), Shared(device, transport, channels=1))
    # RING reduces with TensorFlow's kernels, of which those of a GPU want int32 in host memory.
    return TensorFlowGroup(rank, range(size), Shared(host_device(device), transport, channels))


def host_device(device: str) -> str:
    """The CPU of the task that a device belongs to."""
    spec = tf.DeviceSpec.from_string(device)
    return spec.replace(device_type="CPU", device_index=0).to_string()


class NcclGroup(TensorFlowGroup):
    """NCCL on GPUs: what RING does otherwise, or in other dtypes."""

    stays_on_device = True

    def __init__(self, rank: int, ranks: Sequence[int], shared: Shared) -> None:
        """See `TensorFlowGroup`."""
        super().__init__(rank, ranks, shared)
        self.device = shared.device
        self._has_warned = False

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce`."""
        dtype = tensors[0].dtype
        with tf.device(self.device):
            if dtype in NCCL_DTYPES:
                return super().all_reduce(tensors, op, scale=scale)
            if op is ReduceOp.SUM and self.rank == 0 and not self._has_warned:
                self._has_warned = True
                _LOG.warning(_NOT_NARROW)
            wide = [tf.cast(tensor, _SUMMED_AS[dtype]) for tensor in tensors]
            totals = super().all_reduce(wide, op, scale=scale)
            return [tf.cast(total, dtype) for total in totals]

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        with tf.device(self.device):
            return super().all_gather(flat)

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast`: the sum of the root's bits and everyone else's zeros.

        In int64: numbers of int32 would leave the GPU.
        """
        with tf.device(self.device):
            flat = flatten(tensors)
            bits = _as_int64(flat)
            mine = bits if self.rank == root else tf.zeros_like(bits)
            # Bits plus zeros, in integers: exact for any dtype, NaN and -0.0 included.
            [total] = self.all_reduce([mine], ReduceOp.SUM)
            return unflatten(_from_int64(total, like=flat), tensors)

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """See `ProcessGroup.reduce_scatter`: a part of the sum."""
        with tf.device(self.device):
            known = tf.get_static_value(tf.convert_to_tensor(lengths, tf.int64))
            if known is None:
                return ProcessGroup.reduce_scatter(self, flat, lengths, op)
            [total] = self.all_reduce([flat], op)
            start, length = int(known[: self.rank].sum()), int(known[self.rank])
            return total[start : start + length]

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """See `ProcessGroup.all_to_all`: a gather of all parts, of which each rank takes its own.

        It moves as many times more than an exchange as there are ranks.
        """
        with tf.device(self.device):
            longest = tf.reduce_max(tf.reduce_sum(lengths, axis=1))
            # Not tf.pad, which knows no int64 on GPUs.
            more = tf.zeros([longest - tf.size(flat, tf.int64)], flat.dtype)
            rows = self.all_gather(tf.concat([flat, more], axis=0))
            starts = tf.cumsum(lengths, axis=1, exclusive=True)[:, self.rank]
            ends = starts + lengths[:, self.rank]
            return tf.concat([rows[r, starts[r] : ends[r]] for r in range(self.size)], axis=0)

    def _check_length(self, length: tf.Tensor, most: int) -> list[tf.Operation]:
        """All of it in host memory, on the GPU: a number of elements is there anyway."""
        return [assert_on_host(length <= most, TOO_LONG)]


def _as_int64(flat: tf.Tensor) -> tf.Tensor:
    """The bits of a tensor, filled up with zeros, as numbers of 8 bytes."""
    each = tf.int64.size // flat.dtype.size
    if each == 1:
        return tf.bitcast(flat, tf.int64)
    length = flat.shape[0]
    more = -(tf.shape(flat)[0] if length is None else length) % each
    filled = tf.concat([flat, tf.zeros([more], flat.dtype)], axis=0)
    return tf.bitcast(tf.reshape(filled, [-1, each]), tf.int64)


def _from_int64(bits: tf.Tensor, *, like: tf.Tensor) -> tf.Tensor:
    """The reverse of `_as_int64`, for a tensor of the same length and dtype as another."""
    filled = tf.reshape(tf.bitcast(bits, like.dtype), [-1])
    length = like.shape[0]
    flat = filled[: tf.shape(like)[0] if length is None else length]
    return tf.ensure_shape(flat, like.shape)
