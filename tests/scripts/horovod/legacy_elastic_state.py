"""Elastic states of all kinds, without any failure."""

import horovod.keras as hk
import horovod.keras.callbacks
import horovod.keras.elastic
import horovod.tensorflow as hvd
import horovod.tensorflow.elastic
import horovod.tensorflow.keras.elastic
import numpy as np
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt

hvd.init()
assert issubclass(HorovodInternalError, RuntimeError)

weight = tf.Variable([float(hvd.rank())])
state = hvd.elastic.TensorFlowState(variables=[weight], epoch=hvd.rank() + 3)
state.sync()
assert weight.numpy().tolist() == [0.0] and state.epoch == 3
state.epoch = 9
weight.assign([5.0])
state.restore()
assert weight.numpy().tolist() == [0.0] and state.epoch == 3
state.epoch = 4
weight.assign([6.0])
state.commit()
state.epoch = 11
weight.assign([7.0])
state.restore()
assert weight.numpy().tolist() == [6.0] and state.epoch == 4
state.check_host_updates()

try:
    hvd.elastic.TensorFlowKerasState(tf.keras.Sequential([tf.keras.layers.Dense(1)]))
except ValueError as error:
    print("not built: %s" % error)

calls = []
model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(2,))])
model.compile(hk.DistributedOptimizer(tf.keras.optimizers.Adam(0.01)), loss="mse")
kept = horovod.keras.elastic.KerasState(model, batch=0, epoch=0)
kept.register_reset_callbacks([lambda: calls.append("reset")])


@horovod.tensorflow.elastic.run
def train(state, epochs):
    if not calls:
        model.fit(np.ones((4, 2)), np.ones(4), batch_size=2, verbose=0)
        state.epoch = 1
        # What Horovod raises by itself when hosts come or go
        raise HostsUpdatedInterrupt(False)
    model.fit(
        np.ones((4, 2)),
        np.ones(4),
        batch_size=2,
        epochs=epochs - state.epoch,
        verbose=0,
        callbacks=[
            horovod.tensorflow.keras.elastic.UpdateBatchStateCallback(state),
            horovod.tensorflow.keras.elastic.UpdateEpochStateCallback(state),
            horovod.tensorflow.keras.elastic.CommitStateCallback(state),
        ],
    )
    return state.epoch, state.batch


print("trained to epoch and batch", train(kept, 3), calls)
print("elastic states done", flush=True)
