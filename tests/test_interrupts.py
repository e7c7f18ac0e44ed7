"""Ctrl-C in a training: the script may catch KeyboardInterrupt, and save."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.launching import launched, pids
from tests.processes import in_sessions, wait_until
from tfddl._src.keras_hooks.interrupts import keyboard_interrupts

SCRIPT = """
import os, sys
import keras, numpy as np
import tfddl

tfddl.init(collective=sys.argv[1])
x = np.ones((16, 4))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")


class Ready(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            name = f"rank {tfddl.rank()} trains"
            with open(name + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(name + ".new", name)


try:
    data = tfddl.shard_dataset(x, x[:, :1], batch_size=4)
    model.fit(data, epochs=1_000_000, verbose=0, callbacks=[Ready()])
except KeyboardInterrupt:
    if tfddl.rank() == 0:
        model.save("interrupted.keras")
        print("saved", flush=True)
"""


@pytest.mark.parametrize("collective", ["auto", pytest.param("ring", marks=pytest.mark.long)])
def test_a_training_is_interrupted_and_saved(collective: str, tmp_path: Path) -> None:
    """One may be in a step that the other one never comes to any more."""
    command = [sys.executable, "-c", SCRIPT, collective]
    with launched("-np", "2", *command, cwd=tmp_path) as process:
        names = ("rank 0 trains", "rank 1 trains")
        wait_until(
            lambda: process.poll() is not None or all((tmp_path / n).exists() for n in names),
            timeout_s=120.0,
        )
        left = pids(tmp_path, *names)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "[0] saved" in out, err
    assert (tmp_path / "interrupted.keras").exists()
    assert process.returncode == 128 + signal.SIGINT
    assert err.endswith("tfddlrun: ended by SIGINT, and all workers with it\n")
    assert not in_sessions(left)


# What TensorFlow 2.21 raised where a peer's end and Ctrl-C came at once.
REPLACED = (
    "pybind11::error_already_set: MISMATCH of original and normalized active exception types: "
    "ORIGINAL UnknownError REPLACED BY KeyboardInterrupt: <EMPTY MESSAGE>\n\nAt:\n  (265): __init__"
)


def test_an_interrupt_that_pybind11_has_replaced() -> None:
    with pytest.raises(KeyboardInterrupt), keyboard_interrupts():
        raise RuntimeError(REPLACED)
    for text in (REPLACED.replace("KeyboardInterrupt", "SystemError"), "KeyboardInterrupt"):
        with pytest.raises(RuntimeError, match=re.escape(text)), keyboard_interrupts():
            raise RuntimeError(text)
