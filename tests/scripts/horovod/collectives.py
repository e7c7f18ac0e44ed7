"""Every collective of Horovod, from eager code, from graphs, and through gradients."""

import os
import sys

import horovod
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from horovod.tensorflow.util import _executing_eagerly

try:
    hvd.size()
except ValueError as error:
    print("before init: %s" % type(error).__name__)

hvd.init()
rank, size = hvd.rank(), hvd.size()
assert hvd.is_initialized() and hvd.is_homogeneous()
assert (hvd.local_rank(), hvd.local_size()) == (rank, size)
assert (hvd.cross_rank(), hvd.cross_size()) == (0, 1)
assert int(os.environ["HOROVOD_RANK"]) == rank and int(os.environ["HOROVOD_SIZE"]) == size
assert int(os.environ["HOROVOD_LOCAL_RANK"]) == hvd.local_rank()
assert int(os.environ["HOROVOD_LOCAL_SIZE"]) == hvd.local_size()
assert int(os.environ["HOROVOD_CROSS_RANK"]) == 0 and os.environ["HOROVOD_CROSS_SIZE"] == "1"
assert os.environ["HOROVOD_HOSTNAME"]
assert horovod.__version__.count(".") >= 2
assert _executing_eagerly()
built = [hvd.mpi_built(), hvd.gloo_built(), hvd.nccl_built(), hvd.ddl_built(), hvd.ccl_built()]
built += [hvd.cuda_built(), hvd.rocm_built(), hvd.mpi_enabled(), hvd.gloo_enabled()]
assert all(isinstance(flag, (bool, int)) for flag in built) and not hvd.mpi_threads_supported()

assert int(hvd.rank_op()) == rank and int(hvd.size_op()) == size
assert int(hvd.local_rank_op()) == rank and int(hvd.local_size_op()) == size
assert int(hvd.process_set_included_op()) == 1

ranks = np.arange(size)

# allreduce, with all operations
x = tf.constant([1.0, 2.0, 3.0]) * (rank + 1)
np.testing.assert_allclose(hvd.allreduce(x), np.array([1, 2, 3]) * np.mean(ranks + 1), rtol=1e-6)
np.testing.assert_allclose(hvd.allreduce(x, average=False), np.array([1, 2, 3]) * np.sum(ranks + 1))
np.testing.assert_allclose(
    hvd.allreduce(x, op=hvd.Sum, name="sum"), np.array([1, 2, 3]) * np.sum(ranks + 1)
)
np.testing.assert_allclose(hvd.allreduce(x, op=hvd.Min), [1, 2, 3])
np.testing.assert_allclose(hvd.allreduce(x, op=hvd.Max), np.array([1, 2, 3]) * size)
np.testing.assert_allclose(
    hvd.allreduce(x, op=hvd.Product), np.array([1.0, 2.0, 3.0]) ** size * np.prod(ranks + 1.0)
)
scaled = hvd.allreduce(x, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)
np.testing.assert_allclose(scaled, np.array([2, 4, 6]) * np.sum(ranks + 1))
halves = hvd.allreduce(x, op=hvd.Average, compression=hvd.Compression.fp16)
assert halves.dtype == tf.float32
np.testing.assert_allclose(halves, np.array([1, 2, 3]) * np.mean(ranks + 1), rtol=1e-2)
for dtype in (tf.uint8, tf.int8, tf.int32, tf.int64, tf.float16, tf.bfloat16, tf.float64):
    total = hvd.allreduce(tf.ones([2, 2], dtype), op=hvd.Sum)
    assert total.dtype == dtype and np.all(tf.cast(total, tf.float32).numpy() == size)
together = hvd.grouped_allreduce([x, x * 2], op=hvd.Sum)
np.testing.assert_allclose(together[1], np.array([2, 4, 6]) * np.sum(ranks + 1))

slices = tf.IndexedSlices(tf.ones([1, 2]) * (rank + 1), tf.constant([rank]), tf.constant([size, 2]))
summed = hvd.allreduce(slices, op=hvd.Sum)
assert isinstance(summed, tf.IndexedSlices)
np.testing.assert_allclose(tf.convert_to_tensor(summed)[:, 0], ranks + 1)
try:
    hvd.allreduce(slices, op=hvd.Max)
except NotImplementedError:
    print("no maximum of slices")

# allgather: the first dimension may differ
rows = hvd.allgather(tf.fill([rank + 1, 2], rank), name="rows")
np.testing.assert_array_equal(rows[:, 0], np.repeat(ranks, ranks + 1))
several = hvd.grouped_allgather([tf.fill([1], rank), tf.fill([rank + 1], True)])
np.testing.assert_array_equal(several[0], ranks)
assert several[1].dtype == tf.bool and len(several[1]) == np.sum(ranks + 1)

# broadcast
np.testing.assert_array_equal(hvd.broadcast(tf.fill([3], rank), size - 1), [size - 1] * 3)
variable = tf.Variable(tf.fill([2], float(rank)))
hvd.broadcast_([variable], root_rank=size - 1)
np.testing.assert_array_equal(variable, [size - 1.0] * 2)
hvd.broadcast_variables([variable], root_rank=0, inplace=True)
assert hvd.broadcast_object({"rank": rank}, root_rank=size - 1) == {"rank": size - 1}
assert hvd.allgather_object("x" * rank) == ["x" * r for r in range(size)]

# alltoall
even = hvd.alltoall(tf.range(size) + 10 * rank)
np.testing.assert_array_equal(even, rank + 10 * ranks)
uneven, received = hvd.alltoall(
    tf.fill([size * (size + 1) // 2], rank), splits=tf.range(1, size + 1)
)
np.testing.assert_array_equal(received, [rank + 1] * size)
np.testing.assert_array_equal(uneven, np.repeat(ranks, rank + 1))

# reducescatter
matrix = tf.reshape(tf.range(2.0 * size), [size, 2])
np.testing.assert_allclose(hvd.reducescatter(matrix, op=hvd.Sum), matrix[rank : rank + 1] * size)
np.testing.assert_allclose(hvd.reducescatter(matrix), matrix[rank : rank + 1])
parts = hvd.grouped_reducescatter([matrix, matrix + 1.0])
np.testing.assert_allclose(parts[1], matrix[rank : rank + 1] + 1.0)


# in a graph, and through gradients
@tf.function
def in_graph(value):
    return hvd.allreduce(value, op=hvd.Sum) + hvd.broadcast(value, 0)


np.testing.assert_allclose(in_graph(x), np.array([1, 2, 3]) * (np.sum(ranks + 1) + 1))
with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    total = hvd.allreduce(x, op=hvd.Sum)
    gathered = hvd.allgather(x)
    copied = hvd.broadcast(x, 0)
np.testing.assert_allclose(tape.gradient(total, x), [size] * 3)
np.testing.assert_allclose(tape.gradient(gathered, x, tf.ones_like(gathered)), [1.0] * 3)
np.testing.assert_allclose(tape.gradient(copied, x), [1.0 if rank == 0 else 0.0] * 3)

# what ranks do differently is an error on all of them, and the next collective works
for _ in range(2):
    try:
        hvd.allreduce(tf.ones([3 + rank % 2]), name="odd one")
    except tf.errors.FailedPreconditionError:
        print("ranks disagree")
try:
    hvd.broadcast(tf.ones([1]), root_rank=size + 3)
except tf.errors.InvalidArgumentError:
    print("no such rank")
np.testing.assert_allclose(hvd.allreduce(x, op=hvd.Min), [1, 2, 3])

# the timeline of some collectives
trace = os.path.join(sys.argv[1], "timeline.json")
hvd.start_timeline(trace, mark_cycles=True)
hvd.allreduce(x, name="traced")
in_graph(x)
hvd.stop_timeline()

for unsupported in (lambda: hvd.broadcast_global_variables(0),):
    try:
        unsupported()
    except Exception as error:
        print("not there: %s" % error)

hvd.shutdown()
assert not hvd.is_initialized()
print("all collectives done", flush=True)
