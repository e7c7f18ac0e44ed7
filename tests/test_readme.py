"""What the README shows works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

DATA = """
import numpy as np
rng = np.random.default_rng(0)
images = rng.integers(0, 255, (25, 96, 96, 3), dtype="uint8")
masks = (images.mean(-1, keepdims=True) > 127).astype("uint8")
"""
END = """
keras.utils.clear_session()
means = [float(np.mean(w)) for w in model.get_weights()]
assert tfddl.allgather_object(means) == [means] * 2
print("trained", int(optimizer.iterations.numpy()), "steps")
"""


def test_the_lines_that_train_do(tmp_path: Path) -> None:
    (lines,) = re.findall(
        r"```python\n(.*?)```", README.partition("## What is different")[0], flags=re.DOTALL
    )
    script = tmp_path / "train.py"
    script.write_text(DATA + lines.replace("epochs=10", "epochs=1") + END)
    done = subprocess.run(
        [sys.executable, "-m", "tfddl.launcher", "-np", "2", sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("trained 2 steps") == 2
