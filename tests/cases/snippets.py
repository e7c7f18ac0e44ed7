"""The Python snippets of a page of the documentation, run one after the other as a reader would."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = "# needs: "
"""Begins a snippet for a package that isn't installed here: such a one is only compiled."""


def run(page: str) -> int:
    """Runs a page's snippets in one namespace; returns how many were run."""
    text = (ROOT / page).read_text()
    count = 0
    here = Path.cwd()
    # Each rank writes files of its own: a snippet's paths are relative.
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            names = _names_taken_for_granted()
            for found in BLOCK.finditer(text):
                line = text[: found.start(1)].count("\n")
                # A reader has more time than a test.
                lines = re.sub(r"\bepochs=\d+", "epochs=2", found[1])
                code = compile("\n" * line + lines, str(ROOT / page), "exec")
                if not found[1].startswith(NEEDS):
                    exec(code, names)
                    count += 1
        finally:
            os.chdir(here)
            keras.utils.clear_session()
    return count


def _names_taken_for_granted() -> dict[str, Any]:
    """What a page doesn't say again: imports, data, a compiled model, files."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(101, 10)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    images = rng.integers(0, 255, (8, 96, 96, 3), dtype="uint8")
    masks = (images.mean(axis=-1, keepdims=True) > 127).astype("uint8")
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
    np.save("x.npy", x)
    np.save("y.npy", y)
    with tf.io.TFRecordWriter("train.tfrecord") as writer:
        for row in x:
            writer.write(row.tobytes())
    for number, image in enumerate(images):
        path = Path("images", ["cats", "dogs"][number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, image[:32, :32])

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = tf.ensure_shape(tf.io.decode_raw(record, tf.float32), (10,))
        return row, tf.reduce_sum(row, keepdims=True)

    data = tfddl.shard_dataset(x, y, batch_size=32, seed=1)
    start, stop = tfddl.shard_range(len(x), tfddl.rank(), tfddl.size())
    return {
        "__name__": "__main__",
        **{"Path": Path, "keras": keras, "np": np, "tf": tf, "tfddl": tfddl},
        **{"x": x, "y": y, "x_val": x, "y_val": y, "images": images, "masks": masks},
        **{"model": model, "data": data, "dataset": data, "parse": parse},
        **{"start": start, "stop": stop},
    }
