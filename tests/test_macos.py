"""One worker trains where Linux' own functions are missing; launchers say that they need Linux."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT

TRAINING = """
import sys

import keras
import numpy as np
import tensorflow

from tests import macos

macos.hide()
import tfddl

tfddl.init()
assert (tfddl.rank(), tfddl.size(), tfddl.local_size()) == (0, 1, 1)

folder = sys.argv[1]
rng = np.random.default_rng(1)
x, y = rng.normal(size=(32, 4)).astype("float32"), rng.normal(size=(32, 1)).astype("float32")
np.save(f"{folder}/x.npy", x)
mapped = np.load(f"{folder}/x.npy", mmap_mode="r")


def model(optimizer):
    keras.utils.set_random_seed(2)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    made.compile(optimizer, loss="mse")
    return made


ours = model(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)))
dataset = tfddl.shard_dataset(mapped, y, batch_size=8)
checkpoint = tfddl.callbacks.Checkpoint(f"{folder}/checkpoints")
ours.fit(dataset, epochs=2, callbacks=[checkpoint], verbose=0)
plain = model(keras.optimizers.Adam(0.01))
plain.fit(tensorflow.data.Dataset.from_tensor_slices((x, y)).batch(8), epochs=2, verbose=0)
for mine, theirs in zip(ours.get_weights(), plain.get_weights(), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
np.testing.assert_allclose(
    ours.evaluate(x, y, batch_size=8, verbose=0), plain.evaluate(x, y, batch_size=8, verbose=0)
)
shuffled = tfddl.shard_dataset(mapped, y, batch_size=8, seed=3)
assert sum(len(batch) for batch, _ in shuffled) == 32

again = model(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)))
again.fit(dataset, epochs=2, callbacks=[tfddl.callbacks.Checkpoint(f"{folder}/checkpoints")])
for mine, theirs in zip(again.get_weights(), ours.get_weights(), strict=True):
    np.testing.assert_array_equal(mine, theirs)

with tfddl.strategy().scope():
    scoped = model(keras.optimizers.Adam(0.01))
scoped.fit(dataset, epochs=2, verbose=0)
np.testing.assert_allclose(scoped.get_weights()[0], plain.get_weights()[0], rtol=1e-6, atol=1e-7)
assert float(tfddl.allreduce(np.float32(3), op="sum")) == 3.0
tfddl.barrier()
print("trained")
"""


def test_one_worker_trains(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("trained\n")
    assert list((tmp_path / "checkpoints").iterdir())


LAUNCHING = """
import sys

from tests import macos

macos.hide()
MAIN
"""
JOB = "from tfddl._src.launcher.main import main; sys.exit(main(sys.argv[1:], environment={}))"
AGENT = "from tfddl._src.launcher.agent_server import run; run()"
BENCH = "from tfddl.bench.main import main; sys.exit(main(sys.argv[1:]))"
NEED = "needs Linux, and this is darwin. HINT: run the script itself, python train.py, for one"


@pytest.mark.parametrize(
    ("main", "arguments", "status", "message"),
    [
        (JOB, ("-np", "2", "python", "train.py"), 127, f"tfddlrun: tfddlrun {NEED} worker\n"),
        (JOB, ("-np", "1", "python", "train.py"), 127, f"tfddlrun: tfddlrun {NEED} worker\n"),
        (JOB, ("-H", "a:1,b:1", "python", "x"), 127, f"tfddlrun: tfddlrun {NEED} worker\n"),
        (JOB, ("--check",), 2, f"tfddlrun: error: tfddlrun {NEED} worker\n"),
        (AGENT, (), 1, f"tfddl agent: a host of tfddlrun {NEED} worker\n"),
        (BENCH, ("--quick",), 1, f"tfddl-bench: LaunchError: tfddl-bench {NEED} worker\n"),
    ],
)
def test_launchers_need_linux(
    main: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = _launch(main, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.endswith(message)


def test_what_starts_nothing_works_anywhere() -> None:
    assert _launch(JOB, "--version").returncode == 0
    done = _launch(JOB, "--dry-run", "-np", "2", "python", "train.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "TF_CONFIG" in done.stdout


def _launch(main: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LAUNCHING.replace("MAIN", main), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
