"""How many images per second, with Keras' fit on made-up data."""

import argparse
from timeit import default_timer as timer

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from tensorflow.keras import applications

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--fp16-allreduce", action="store_true", default=False)
parser.add_argument("--model", type=str, default="MobileNet")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--num-warmup-batches", type=int, default=1)
parser.add_argument("--num-batches-per-iter", type=int, default=2)
parser.add_argument("--num-iters", type=int, default=3)
args = parser.parse_args()

hvd.init()
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

model = getattr(applications, args.model)(
    input_shape=(32, 32, 3), alpha=0.25, classes=10, weights=None
)
opt = tf.optimizers.SGD(0.01)

data = tf.random.uniform([args.batch_size, 32, 32, 3])
target = tf.random.uniform([args.batch_size, 1], minval=0, maxval=9, dtype=tf.int64)
dataset = tf.data.Dataset.from_tensor_slices((data, target)).cache().repeat().batch(args.batch_size)

compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
opt = hvd.DistributedOptimizer(opt, compression=compression)

model.compile(
    loss=tf.losses.SparseCategoricalCrossentropy(),
    optimizer=opt,
    experimental_run_tf_function=False,
)


def log(s):
    if hvd.rank() == 0:
        print(s, flush=True)


class TimingCallback(tf.keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.img_secs = []

    def on_train_end(self, logs=None):
        mean, conf = np.mean(self.img_secs), 1.96 * np.std(self.img_secs)
        log("Img/sec per CPU: %.1f +-%.1f" % (mean, conf))
        log("Total img/sec on %d CPU(s): %.1f +-%.1f" % (hvd.size(), hvd.size() * mean, conf))

    def on_epoch_begin(self, epoch, logs=None):
        self.starttime = timer()

    def on_epoch_end(self, epoch, logs=None):
        time = timer() - self.starttime
        img_sec = args.batch_size * args.num_batches_per_iter / time
        log("Iter #%d: %.1f img/sec per CPU" % (epoch, img_sec))
        # skip the warm up epoch
        if epoch > 0:
            self.img_secs.append(img_sec)


class BarrierCallback(tf.keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        hvd.barrier()


timing = TimingCallback()
callbacks = [timing, BarrierCallback(), hvd.callbacks.BroadcastGlobalVariablesCallback(0)]

log("Model: %s" % args.model)
log("Number of CPUs: %d" % hvd.size())
model.fit(
    dataset,
    batch_size=args.batch_size,
    steps_per_epoch=args.num_batches_per_iter,
    callbacks=callbacks,
    epochs=args.num_iters,
    verbose=0,
)
trained = sum(float(np.abs(w).sum()) for w in model.get_weights())
print("weights %.4f" % trained, flush=True)
