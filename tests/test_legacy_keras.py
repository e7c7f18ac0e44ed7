"""TF_USE_LEGACY_KERAS, which Ray Train sets: a warning, and training with Keras 3 goes on."""

import os
import subprocess
import sys

import pytest

from tests.group import ROOT

TRAINING = """
import sys

import numpy as np
import tensorflow as tf
import tfddl

tfddl.init()
tfddl.shutdown()
tfddl.init()

import keras

x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
model.fit(tfddl.shard_dataset(x, y, batch_size=2), epochs=1, verbose=0)
model.evaluate(x, y, verbose=0)
with tfddl.strategy().scope():
    scoped = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    scoped.compile("sgd", loss="mse")
scoped.fit(tfddl.shard_dataset(x, y, batch_size=2), epochs=1, verbose=0)

# What tf.keras is then; Keras 2 itself need not be installed for this.
assert "tf_keras" not in sys.modules


class SGD:  # Keras 2's: not one of Keras 3's classes.
    pass


try:
    tfddl.DistributedOptimizer(SGD())
except tfddl.errors.UnsupportedError as error:
    assert "expected a Keras 3 optimizer" in str(error)
print("trained")
"""


@pytest.mark.parametrize(
    ("value", "warns"), [("1", True), pytest.param("0", False, marks=pytest.mark.long)]
)
def test_it_warns_once_and_trains(value: str, warns: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=ROOT,
        env={**os.environ, "TF_USE_LEGACY_KERAS": value, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    told = [line for line in done.stderr.splitlines() if "TF_USE_LEGACY_KERAS" in line]
    assert told == (
        [
            f"<string>:8: UserWarning: TF_USE_LEGACY_KERAS is {value!r} in the environment (Ray "
            "Train sets it): so tf.keras is Keras 2 where tf_keras is installed, and tfddl trains "
            'models of Keras 3 only. HINT: write "import keras", '
            "which is Keras 3 all the same; or unset the variable before TensorFlow is imported, "
            'os.environ.pop("TF_USE_LEGACY_KERAS", None), and after Ray Train is'
        ]
        if warns
        else []
    )
