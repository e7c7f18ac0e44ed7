"""TFRecord files: tfddlrun -np 2 python examples/tfrecords.py.

An index of the records is kept beside the file, so that a worker reads its own records only, in any
order; each record of an epoch is trained on exactly once. Batches are parsed in the graph.
"""

import argparse
from pathlib import Path

import digits
import keras
import tensorflow as tf

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--file", type=Path, default=Path("digits.tfrecord"))
args = parser.parse_args()


def write(path: Path) -> None:
    """Writes the digits as tf.train.Example records."""
    (images, labels), _ = digits.load()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label in zip(images, labels, strict=True):
            pixels = tf.train.FloatList(value=image.ravel())
            feature = {
                "image": tf.train.Feature(float_list=pixels),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def parse(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Records, string (n,) -> images float32 (n, 8, 8, 1), labels int64 (n,)."""
    features = {
        "image": tf.io.FixedLenFeature((8, 8, 1), tf.float32),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    examples = tf.io.parse_example(records, features)
    return examples["image"], examples["label"]


tfddl.init()
keras.utils.set_random_seed(1)
if tfddl.rank() == 0 and not args.file.exists():
    write(args.file)
tfddl.barrier()

records = tfddl.open_tfrecords(args.file)
data = tfddl.shard_dataset(records, batch_size=32, seed=1).map(parse, tf.data.AUTOTUNE)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile(
    tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-3 * tfddl.size())),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(data, epochs=args.epochs, verbose=2 if tfddl.rank() == 0 else 0)
if tfddl.rank() == 0:
    print(f"{len(records)} records, accuracy {history.history['accuracy'][-1]:.3f}")
