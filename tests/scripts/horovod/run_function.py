"""Runs a function on several workers, and gets what each returned."""

import sys

import horovod
import numpy as np

SCALE = 10


def train(start, factor=1):
    import horovod.tensorflow.keras as hvd
    import tensorflow as tf

    hvd.init()
    keras = tf.keras
    model = keras.Sequential([keras.layers.Dense(1, input_shape=(1,), kernel_initializer="zeros")])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
    x = np.full((4, 1), hvd.rank() + 1.0, "float32")
    model.fit(x, 2 * x, batch_size=4, epochs=5, verbose=0)
    return hvd.rank(), SCALE * start * factor + hvd.rank(), model.get_weights()[0].item()


def fails(rank_that_fails):
    import horovod.tensorflow as hvd

    hvd.init()
    if hvd.rank() == rank_that_fails:
        raise KeyError("no such key")
    hvd.allgather_object(hvd.rank())


if __name__ == "__main__":
    np_ = int(sys.argv[1])
    results = horovod.run(train, args=(4,), kwargs={"factor": 2}, num_proc=np_)
    print([result[:2] for result in results])
    assert len({result[2] for result in results}) == 1
    offset = 5
    print(horovod.run(lambda: offset * 2, np=np_))
    try:
        horovod.run(fails, args=(np_ - 1,), np=np_, hosts="localhost:%d" % np_)
    except RuntimeError as error:
        print("failed with no such key: %s" % ("no such key" in str(error)), flush=True)
