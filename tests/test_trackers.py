"""Real experiment trackers, offline: one run for a job, with the job's numbers.

Everyday tests have callbacks named like theirs (`tests/test_rank_zero.py`): installing these takes
a minute or two, and 300 MB.
"""

import json
import os
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from tests.group import ROOT


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_tracker_gets_one_run(tmp_path: Path) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))},
        **{"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "DO_NOT_TRACK": "1"},
        **{"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
    }

    def run(*line: str | Path, timeout_s: float = 600.0) -> None:
        done = subprocess.run(
            [str(part) for part in line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    # TensorFlow and the rest are those of this environment.
    (folder,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (folder / "tests.pth").write_text(sysconfig.get_path("purelib"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run(python, "-m", "pip", "install", "-q", *extras["optional-dependencies"]["trackers"])
    script = ROOT / "tests" / "scripts" / "trackers.py"
    run(python, "-m", "tfddl.launcher", "-np", "2", python, script, tmp_path, timeout_s=240)

    def losses(name: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = json.loads((tmp_path / f"{name}.json").read_text())
        return found

    contents = [file.read_bytes() for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert len(contents) == 2
    for name in ("by-a-function", "on-all-ranks"):
        (content,) = (content for content in contents if name.encode() in content)
        for values in losses(name).values():
            assert all(repr(value).encode() in content for value in values)
    reported = json.loads((tmp_path / "mlflow.json").read_text())
    assert reported["runs"] == 2
    for name in ("class", "autolog"):
        for metric, values in losses(name).items():
            assert reported[name][metric] == pytest.approx(values[-1])
