"""Images in a folder per class: tfddlrun -np 2 python examples/image_folder.py.

Each worker holds the list of files, and reads only those it trains on. With `--directory DIR` of
your own, DIR/<class>/<image> are read; without it, digits are written into a folder first.
"""

import argparse
from pathlib import Path

import digits
import keras
import numpy as np
from PIL import Image

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--size", type=int, default=8, help="pixels; images are resized")
parser.add_argument("--directory", type=Path, default=Path("digits_as_png"))
args = parser.parse_args()

tfddl.init()
keras.utils.set_random_seed(1)

if tfddl.rank() == 0 and not args.directory.exists():
    (images, labels), _ = digits.load()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = args.directory / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[..., 0] * 255).astype("uint8")).save(path)
tfddl.barrier()  # all see the folder (on several hosts it has to be a shared one)

# Sorted: the order of a directory's entries differs between hosts.
classes = sorted(path.name for path in args.directory.iterdir())
files = sorted(args.directory.glob("*/*"))
labels = np.array([classes.index(path.parent.name) for path in files], "int32")


def load(path: Path, label: np.int32) -> tuple[np.ndarray, np.int32]:
    """Reads one example; called by several threads, and only for this worker's own."""
    image = Image.open(path).convert("L").resize((args.size, args.size))
    return np.asarray(image, "float32")[..., np.newaxis] / 255, label


def augment(
    rng: np.random.Generator, image: np.ndarray, label: np.int32
) -> tuple[np.ndarray, np.int32]:
    """Shifts by a pixel at most; `rng` depends on seed, epoch and example, not on the workers."""
    return np.roll(image, rng.integers(-1, 2, size=2), axis=(0, 1)), label


data = tfddl.shard_dataset(files, labels, batch_size=32, seed=1, load=load, augment=augment)
model = keras.Sequential(
    [
        keras.Input((args.size, args.size, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(len(classes)),
    ]
)
model.compile(
    tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-2)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(data, epochs=args.epochs, verbose=2 if tfddl.rank() == 0 else 0)
if tfddl.rank() == 0:
    print(f"{len(files)} files, {len(classes)} classes, loss {history.history['loss'][-1]:.3f}")
