"""TFRecord files through tf.data: tfddlrun -np 2 python examples/tfrecords.py.

A record file can only be read from its beginning, so every worker reads it, parses only what is
its own batch, and each record of an epoch is trained on exactly once.
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


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One record -> image float32 (8, 8, 1), label int64 ()."""
    features = {
        "image": tf.io.FixedLenFeature((8, 8, 1), tf.float32),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    return example["image"], example["label"]


tfddl.init()
keras.utils.set_random_seed(1)
if tfddl.rank() == 0 and not args.file.exists():
    write(args.file)
tfddl.barrier()

records = tf.data.TFRecordDataset(str(args.file))
num_records = int(records.reduce(0, lambda count, _: count + 1))
# The length has to be known, and the order the same on every rank: a seed, and no reshuffling.
records = records.shuffle(num_records, seed=1, reshuffle_each_iteration=False)
records = records.apply(tf.data.experimental.assert_cardinality(num_records))
data = tfddl.shard_dataset(records.map(parse), batch_size=32)

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
    print(f"{num_records} records, accuracy {history.history['accuracy'][-1]:.3f}")
