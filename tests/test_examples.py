"""The examples run as their first lines say, on two workers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_engines import needs_ray, needs_spark

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PATH = f"{ROOT}:{EXAMPLES}:{ROOT}/tests/stubs"

# Arguments that make it shorter, and what rank 0 prints last.
SCRIPTS = {
    "keras_fit.py": (("--epochs=2",), r"accuracy on 297 test images: 0\.[5-9]"),
    "custom_loop.py": (("--epochs=2",), r"accuracy on 297 test images: 0\.[5-9]"),
    "strategy_scope.py": (("--epochs=2",), r"accuracy on 297 test images: 0\.[5-9]"),
    "gan.py": (("--epochs=1",), r"epoch 1: discriminator \d\.\d+, generator \d\.\d+"),
    "image_folder.py": (("--epochs=1",), r"1500 files, 10 classes, loss [12]\.\d+"),
    "tfrecords.py": (("--epochs=1",), r"1500 records, accuracy 0\.\d+"),
    "horovod_script.py": ((), r"accuracy 0\.[5-9]"),
}


def _run(script: Path, directory: Path, arguments: tuple[str, ...]) -> str:
    flags = ["--horovod"] if script.name == "horovod_script.py" else []
    done = subprocess.run(
        [sys.executable, "-m", "tfddl.launcher", *flags, "-np", "2"]
        + [sys.executable, str(script), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_run(tmp_path: Path, name: str) -> None:
    arguments, expected = SCRIPTS[name]
    output = _run(EXAMPLES / name, tmp_path, arguments)
    assert len(re.findall(expected, output)) == 1, output  # by rank 0, and by nobody else


@pytest.mark.long
def test_optuna(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    output = _run(EXAMPLES / "tuning_optuna.py", tmp_path, ("--trials=2", "--epochs=1"))
    losses = [float(loss) for loss in re.findall(r"trial \d: validation loss ([\d.]+)", output)]
    assert len(losses) == 2
    assert f"best: {min(losses):.4f}" in output


def _run_driver(script: Path, directory: Path) -> list[str]:
    """Runs a script that starts the workers; returns the accuracies of both that it prints."""
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": PATH, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"accuracies of the 2 workers: \[(0\.\d+), \1\]", done.stdout)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("script", "times"),
    [
        pytest.param("spark_digits.py", 1, marks=needs_spark),
        pytest.param("ray_digits.py", 2, marks=needs_ray),
        pytest.param("ray_train.py", 1, marks=needs_ray),
    ],
)
def test_engines(script: str, times: int, tmp_path: Path) -> None:
    accuracies = _run_driver(EXAMPLES / script, tmp_path)
    assert len(accuracies) == times
    assert accuracies == sorted(accuracies)


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_the_estimator(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "spark_estimator.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"accuracy on test_df: 0\.[5-9]", done.stdout), done.stdout


@pytest.mark.long
def test_the_notebook(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script = tmp_path / "cells.py"
    script.write_text(code)
    assert len(_run_driver(script, tmp_path)) == 1


def test_the_page_lists_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names - {"digits.py"} == set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    others = {"digits.py", "notebook.ipynb", "tuning_optuna.py"}
    others |= {"ray_digits.py", "ray_train.py", "spark_digits.py", "spark_estimator.py"}
    assert names - others == set(SCRIPTS)
