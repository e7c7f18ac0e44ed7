"""Collectives among some of the ranks only, several sets side by side."""

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

even_set = hvd.ProcessSet([0, 2])
odd_set = hvd.ProcessSet([1])
hvd.init(process_sets=[even_set, odd_set])
rank = hvd.rank()
mine = even_set if rank % 2 == 0 else odd_set
members = [0, 2] if rank % 2 == 0 else [1]

assert mine.included() and mine.size() == len(members) and mine.rank() == members.index(rank)
assert hvd.global_process_set.size() == hvd.size()
assert int(hvd.size_op(process_set_id=mine.process_set_id)) == len(members)
other = odd_set if rank % 2 == 0 else even_set
assert int(hvd.process_set_included_op(process_set_id=other.process_set_id)) == 0

total = hvd.allreduce(tf.fill([2], float(rank)), op=hvd.Sum, process_set=mine)
np.testing.assert_allclose(total, [sum(members)] * 2)
rows = hvd.allgather(tf.fill([1], rank), process_set=mine)
np.testing.assert_array_equal(rows, members)
root = members[-1]
np.testing.assert_array_equal(hvd.broadcast(tf.fill([1], rank), root, process_set=mine), [root])
assert hvd.broadcast_object("rank %d" % rank, root, process_set=mine) == "rank %d" % root
assert hvd.allgather_object(rank, process_set=mine) == members

# Each set trains a model of its own.
weight = tf.Variable([[1.0]])
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(weight * float(rank + 1))
tape = hvd.DistributedGradientTape(tape, process_set=mine)
(gradient,) = tape.gradient(loss, [weight])
np.testing.assert_allclose(gradient, [[np.mean(np.array(members) + 1.0)]])

optimizer = hvd.DistributedOptimizer(tf.keras.optimizers.SGD(1.0), process_set=mine)
layer = tf.keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
layer.build((None, 1))
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(layer(tf.fill([1, 1], float(rank + 1))))
optimizer.apply_gradients(
    zip(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables)
)
np.testing.assert_allclose(layer.get_weights()[0], [[-np.mean(np.array(members) + 1.0)]])

x = np.ones((8, 1), "float32") * (rank + 1)
model = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_initializer="ones")])
model.compile(hvd.DistributedOptimizer(tf.keras.optimizers.SGD(0.01), process_set=mine), loss="mse")
# Each set takes as many steps as it likes.
model.fit(x, x * 3, batch_size=4, epochs=1 + rank % 2, verbose=0)
kernels = hvd.allgather(tf.constant(model.get_weights()[0]), process_set=mine)
np.testing.assert_allclose(kernels, np.repeat(kernels[:1], len(members), axis=0), rtol=1e-6)

hvd.broadcast_variables(model.variables, root_rank=root, process_set=mine)
assert hvd.allreduce(tf.constant(1), op=hvd.Sum) == hvd.size()
print("all sets done", flush=True)
