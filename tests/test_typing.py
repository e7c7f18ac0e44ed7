"""What a user's type checker sees: the installed package is typed, without stubs of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USER = """\
import numpy as np

import tfddl
from tfddl.errors import TfddlError

tfddl.init(timeout_s=60)
span: tuple[int, int] = tfddl.shard_range(100, tfddl.rank(), tfddl.size())
callback: tfddl.callbacks.Checkpoint = tfddl.callbacks.Checkpoint("checkpoints", keep=2)
try:
    data = tfddl.shard_dataset(np.zeros((10, 2)), np.zeros(10), batch_size=2, seed=1)
except TfddlError as error:
    text: str = str(error)
"""


# A line that the user writes at the end of that file, and what is said of it.
LINES = {
    "right": ("", None),
    "argument": ('tfddl.shard_range("100", 0, 2)\n', '"shard_range" has incompatible type "str"'),
    "name": ("tfddl.rnak()\n", 'has no attribute "rnak"'),
    "result": ("x: str = tfddl.size()\n", "Incompatible types in assignment"),
    "keyword": ('tfddl.callbacks.Checkpoint("c", kep=2)\n', 'Unexpected keyword argument "kep"'),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of all of them."""
    folder = tmp_path_factory.mktemp("user")
    for name, (line, _) in LINES.items():
        (folder / f"user_{name}.py").write_text(USER + line)
    cache = ROOT / ".mypy_cache" / "user"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "in 4 files (checked 5 source files)" in done.stdout, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", LINES)
def test_a_users_file_under_strict(told: list[str], name: str) -> None:
    errors = [line for line in told if line.startswith(f"user_{name}.py:") and "error:" in line]
    _, complaint = LINES[name]
    assert len(errors) == (complaint is not None), told
    assert complaint is None or complaint in errors[0]
