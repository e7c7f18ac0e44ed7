"""Idioms of Keras 2, in a process that asks for them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT

SCRIPT = """
import warnings

import tfddl.horovod

tfddl.horovod.install(keras2=True)
tfddl.horovod.install(keras2=True)
IMPORTS

import keras
import numpy as np
import tensorflow as tf
from tensorflow.keras import backend as K

from tfddl._src.horovod.keras2.deprecations import Keras2Warning

warnings.simplefilter("always")
found = []
warnings.showwarning = lambda message, kind, file, line, *_: (
    found.append((str(message), file)) if kind is Keras2Warning else None
)

from tensorflow.keras.optimizers.legacy import Adam

assert Adam is keras.optimizers.Adam
optimizer = tf.keras.optimizers.legacy.SGD(lr=0.5, momentum=0.9)
assert float(optimizer.lr) == 0.5
optimizer.lr = 0.25
assert float(optimizer.learning_rate) == 0.25 and "lr" not in vars(optimizer)
optimizer.lr.assign(0.125)
assert K.get_value(optimizer.lr) == 0.125 and K.get_value(3) == 3
K.set_value(optimizer.learning_rate, 1.0)
keras.backend.set_value(optimizer.lr, keras.backend.get_value(optimizer.lr) / 2)
assert float(optimizer.learning_rate) == 0.5
plain = tf.Variable(1.0)
K.set_value(plain, 2.0)
assert K.get_value(plain) == 2.0
assert optimizer.get_config()["learning_rate"] == 0.5
try:
    keras.optimizers.Adam(nonsense=1)
except ValueError as error:
    assert "nonsense" in str(error)

model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
model.compile(optimizer, "mse", experimental_run_tf_function=False)
try:
    model.compile(optimizer, "mse", experimental_nonsense=1)
except TypeError as error:
    assert "experimental_nonsense" in str(error)
x = np.ones((4, 2), "float32")
model.fit(x, x[:, :1], epochs=1, verbose=0)


class Batches(keras.utils.PyDataset):
    def __init__(self):
        pass  # As a `Sequence` of Keras 2 might.

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return x, x[:, :1]


warnings.filterwarnings("ignore", message="Your `PyDataset` class should call")
batches = Batches()
model.fit_generator(batches, steps_per_epoch=2, workers=2, max_queue_size=4, verbose=0)
assert (batches.workers, batches.max_queue_size, batches.use_multiprocessing) == (2, 4, False)
model.fit((batches[i] for i in range(3)), workers=4, use_multiprocessing=True, verbose=0)
assert len(model.predict_generator(batches, workers=1, verbose=0)) == 12
loss = model.evaluate(batches, workers=2, verbose=0)
assert abs(loss - model.evaluate(x, x[:, :1], verbose=0)) < 1e-5
model.fit_generator(tf.data.Dataset.from_tensors((x, x[:, :1])), epochs=1, verbose=0)
assert optimizer.variables() == optimizer.variables and len(optimizer.variables) == 4
first, second = model.trainable_variables
assert {first.ref(), second.ref(), first.ref()} == {first.ref(), second.ref()}
assert first.ref().deref() is first and first.ref() != second.ref()
assert "CPU" in first.device
model.save(FILE)
assert type(keras.models.load_model(FILE).optimizer) is keras.optimizers.SGD
for message, file in found:
    assert file == __file__, (message, file)
    print(message)
"""

WARNINGS = {
    "keras.optimizers.legacy.Adam is of Keras 2; write keras.optimizers.Adam.",
    "keras.optimizers.legacy.SGD is of Keras 2; write keras.optimizers.SGD.",
    "optimizer(lr=…) is of Keras 2; write optimizer(learning_rate=…).",
    "optimizer.lr is of Keras 2; write optimizer.learning_rate.",
    "K.get_value(variable) is of Keras 2; write variable.numpy(), or float(variable).",
    "K.set_value(variable, value) is of Keras 2; write variable.assign(value).",
    "compile(experimental_run_tf_function=…) is of Keras 2; write compile(…) without it.",
    "model.fit_generator(generator, …) is of Keras 2; write model.fit(generator, …).",
    "model.predict_generator(generator, …) is of Keras 2; write model.predict(generator, …).",
    *(
        f"model.{name}(…, workers=…) is of Keras 2; write PyDataset(workers=…), as the data's own "
        "arguments; generators need none."
        for name in ("fit", "evaluate", "predict")
    ),
    "optimizer.variables() is of Keras 2; write optimizer.variables, without the brackets.",
    "variable.ref() is of Keras 2; write id(variable), or variable.path, for Keras' variables.",
    "variable.device is of Keras 2; write variable.value.device.",
}


@pytest.mark.parametrize(
    "imports",
    [
        "import tensorflow",
        pytest.param("import keras", marks=pytest.mark.long),
        pytest.param("import horovod.tensorflow.keras", marks=pytest.mark.long),
    ],
)
def test_each_idiom_works_with_one_warning(tmp_path: Path, imports: str) -> None:
    script = tmp_path / "script.py"
    file = str(tmp_path / "model.keras")
    script.write_text(SCRIPT.replace("IMPORTS", imports).replace("FILE", repr(file)))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == len(set(found))
    assert set(found) == WARNINGS


def test_what_keras_3_has_dropped_does_what_it_did(tmp_path: Path) -> None:
    """Sessions, the backend, files, callbacks: see the script, which asserts."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/scripts/keras2_idioms.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    *found, last = done.stdout.splitlines()
    assert last == "all idioms done"
    warned = [line.partition(" is of ") for line in found]
    old = [
        idiom for idiom, _, modern in warned if re.match(r"(Keras|TensorFlow) \d; write ", modern)
    ]
    assert len(old) == len(found) > 60
    assert len(set(old)) == len(old)
