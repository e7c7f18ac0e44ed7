"""The training wrappers with all of their options."""

import horovod.keras
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf
from tensorflow.keras import backend as K

hvd.init()
rank, size = hvd.rank(), hvd.size()
mean_rank = (size - 1) / 2


def gradient_of(**options):
    """The gradient of a loss whose own gradient is the rank."""
    w = tf.Variable([1.0, 1.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w) * rank
    tape = hvd.DistributedGradientTape(tape, **options)
    return tape.gradient(loss, [w])[0].numpy()


np.testing.assert_allclose(gradient_of(), [mean_rank] * 2)
np.testing.assert_allclose(gradient_of(op=hvd.Sum), [mean_rank * size] * 2)
np.testing.assert_allclose(gradient_of(gradient_predivide_factor=2.0), [mean_rank] * 2, rtol=1e-6)
np.testing.assert_allclose(
    gradient_of(compression=hvd.Compression.fp16), [mean_rank] * 2, rtol=1e-3
)
np.testing.assert_allclose(gradient_of(num_groups=1), [mean_rank] * 2)

# Sparse gradients of an embedding
table = tf.Variable(tf.ones([size, 2]))
for sparse_as_dense in (False, True):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [rank]))
    tape = hvd.DistributedGradientTape(tape, sparse_as_dense=sparse_as_dense)
    (sparse,) = tape.gradient(loss, [table])
    np.testing.assert_allclose(
        tf.convert_to_tensor(sparse), np.full((size, 2), 1 / size), rtol=1e-6
    )

# Local sources are not averaged, but divided by the number of workers
local, shared = tf.Variable(1.0), tf.Variable(1.0)
with tf.GradientTape() as tape:
    loss = local * rank + shared * rank
tape = hvd.DistributedGradientTape(tape, groups=[[shared]])
tape.register_local_source(local)
gradients = tape.gradient(loss, [local, shared])
np.testing.assert_allclose(gradients, [rank / size, mean_rank], rtol=1e-6)
with tf.GradientTape() as tape:
    loss = local * rank + shared * rank
tape = hvd.DistributedGradientTape(tape, scale_local_gradients=False)
tape.register_local_source(local)
np.testing.assert_allclose(tape.gradient(loss, [local, shared]), [rank, mean_rank], rtol=1e-6)

model = tf.keras.Sequential(
    [
        tf.keras.layers.Dense(2, use_bias=False, input_shape=(2,), name="mine"),
        tf.keras.layers.Dense(1, use_bias=False, name="ours"),
    ]
)
hvd.broadcast_variables(model.variables, root_rank=0)
start = [w.copy() for w in model.get_weights()]
x = np.ones((4, 2), "float32") * (rank + 1)
with tf.GradientTape() as tape:
    loss = tf.reduce_mean(model(x))
tape = hvd.PartialDistributedGradientTape(tape, local_layers=[model.layers[0]])
own, averaged = tape.gradient(loss, model.trainable_variables)
np.testing.assert_allclose(own, np.ones((2, 1)) @ start[1].T * (rank + 1) / size, rtol=1e-5)
np.testing.assert_allclose(averaged[:, 0], start[0].sum(0) * (mean_rank + 1), rtol=1e-5)


# DistributedOptimizer in a loop of one's own
def step(optimizer, steps=1):
    v = tf.keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    v.build((None, 1))
    for number in range(steps):
        gradient = tf.fill([1, 1], float(rank + number))
        optimizer.apply_gradients([(gradient, v.trainable_variables[0])])
    return v.get_weights()[0].item()


def sgd():
    return tf.keras.optimizers.SGD(learning_rate=1.0)


np.testing.assert_allclose(step(hvd.DistributedOptimizer(sgd())), -mean_rank, rtol=1e-6)
np.testing.assert_allclose(step(hvd.DistributedOptimizer(sgd(), op=hvd.Sum)), -mean_rank * size)
predivided = hvd.DistributedOptimizer(sgd(), gradient_predivide_factor=4.0, num_groups=1)
np.testing.assert_allclose(step(predivided), -mean_rank, rtol=1e-6)
halves = hvd.DistributedOptimizer(sgd(), compression=hvd.Compression.fp16, sparse_as_dense=True)
np.testing.assert_allclose(step(halves), -mean_rank, rtol=1e-3)
# Gradients of two passes are added up, or averaged
summed = hvd.DistributedOptimizer(sgd(), backward_passes_per_step=2)
np.testing.assert_allclose(step(summed, steps=3), -(2 * mean_rank + 1), rtol=1e-6)
averaged = hvd.DistributedOptimizer(
    sgd(), backward_passes_per_step=2, average_aggregated_gradients=True
)
np.testing.assert_allclose(step(averaged, steps=2), -(mean_rank + 0.5), rtol=1e-6)
try:
    hvd.DistributedOptimizer(sgd(), op=hvd.Sum, gradient_predivide_factor=2.0)
except ValueError as error:
    print("refused: %s" % error)
try:
    hvd.DistributedOptimizer(sgd(), groups=-3)
except ValueError as error:
    print("refused: %s" % error)

# NumPy in, NumPy out
assert horovod.keras.size() == hvd_keras.size() == size
np.testing.assert_allclose(hvd_keras.allreduce(np.array([float(rank)])), [mean_rank])
np.testing.assert_allclose(horovod.keras.allreduce(float(rank), op=hvd.Sum), mean_rank * size)
np.testing.assert_array_equal(hvd_keras.allgather(np.array([rank])), np.arange(size))
np.testing.assert_array_equal(hvd_keras.broadcast(np.array([rank]), root_rank=size - 1), [size - 1])
np.testing.assert_allclose(hvd_keras.reducescatter(np.arange(1.0 * size)), [rank])
hvd_keras.barrier()

# A model with a layer of each worker's own, and a normalization over all workers
model = tf.keras.Sequential(
    [
        tf.keras.layers.Dense(3, input_shape=(2,), name="own"),
        hvd.SyncBatchNormalization(name="norm"),
        tf.keras.layers.Dense(1, name="common"),
    ]
)
opt = hvd_keras.PartialDistributedOptimizer(
    tf.keras.optimizers.SGD(lr=0.05), local_layers=[model.get_layer("own")]
)
model.compile(opt, loss="mse", experimental_run_tf_function=False)
rng = np.random.RandomState(rank)
x = rng.normal(size=(16, 2)).astype("float32")
model.fit(
    x,
    x.sum(1),
    batch_size=4,
    epochs=2,
    verbose=0,
    callbacks=[
        hvd_keras.callbacks.BroadcastGlobalVariablesCallback(
            0, local_variables=model.get_layer("own").trainable_variables
        ),
    ],
)
for name, alike in (("own", False), ("norm", True), ("common", True)):
    weights = hvd.allgather_object(model.get_layer(name).get_weights())
    same = all(np.array_equal(a, b) for w in weights for a, b in zip(w, weights[0]))
    assert same == alike, name

# What one found in scripts of that age
optimizer = tf.keras.optimizers.legacy.Adam(lr=0.01)
optimizer.lr = 0.02
assert abs(K.get_value(optimizer.lr) - 0.02) < 1e-6
K.set_value(optimizer.lr, 0.03)
assert abs(K.get_value(optimizer.learning_rate) - 0.03) < 1e-6
optimizer.learning_rate = optimizer.learning_rate * 2
assert abs(float(K.get_value(optimizer.lr)) - 0.06) < 1e-6
assert {v.ref() for v in model.trainable_variables} and isinstance(optimizer.variables(), list)
print("all wrappers done", flush=True)
