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


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "Success"),
        ('tfddl.shard_range("100", 0, 2)\n', '"shard_range" has incompatible type "str"'),
        ("tfddl.rnak()\n", 'has no attribute "rnak"'),
        ("x: str = tfddl.size()\n", "Incompatible types in assignment"),
        ('tfddl.callbacks.Checkpoint("c", kep=2)\n', 'Unexpected keyword argument "kep"'),
    ],
)
def test_a_users_file_under_strict(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "user.py").write_text(USER + line)
    cache = ROOT / ".mypy_cache" / "user"  # Shared by these runs: the first one takes seconds.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", "user.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert complaint in done.stdout, done.stdout + done.stderr
    assert (done.returncode == 0) == (line == "")
