"""The wheel, installed into an empty environment, trains without a checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import keras
import numpy as np
import tfddl

tfddl.init()
x = np.linspace(0, 1, 25, dtype="float32")[:, None]
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
model.fit(tfddl.shard_dataset(x, 2 * x, batch_size=4, seed=1), epochs=1, verbose=0)
print("trained on", tfddl.size(), tfddl.__file__)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_installed_wheel_trains(tmp_path: Path) -> None:
    def run(*line: str | Path, timeout_s: float = 600.0) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [str(part) for part in line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "tfddl/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "docs", "examples"))]
    venv.create(tmp_path / "environment", with_pip=True)
    programs = tmp_path / "environment" / "bin"
    run(programs / "pip", "install", "-q", wheel)
    (tmp_path / "train.py").write_text(SCRIPT)
    output = run(programs / "tfddlrun", "-np", "2", programs / "python", "train.py")
    assert output.count("trained on 2") == 2
    assert str(tmp_path / "environment") in output
    for command in ("tfddlrun", "tfddl-train", "tfddl-bench", "tfddl-doctor"):
        assert run(programs / command, "--version").startswith(command)
