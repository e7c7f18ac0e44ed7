"""The first scripts that users of `strategy.scope()` try, as they would start them."""

import ast
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tests.launching import launch, of_ranks


def _run(script: str, *arguments: str, workers: int) -> list[str]:
    command = [sys.executable, f"tests/scripts/{script}.py", *arguments]
    done = launch("-np", str(workers), *command, cwd=ROOT, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_multi_worker_training_with_keras(tmp_path: Path) -> None:
    lines = _run("multi_worker_keras", str(tmp_path), workers=2)
    first, second = of_ranks(lines, "accuracy", 2)
    assert first == second
    assert float(first.split()[1]) > 0.8


@pytest.mark.parametrize("workers", [3, pytest.param(1, marks=pytest.mark.long)])
def test_a_train_function(workers: int) -> None:
    lines = _run("train_function", "32", workers=workers)
    results = [ast.literal_eval(text) for text in of_ranks(lines, "{", workers)]
    for result in results:
        assert result == results[0]
        assert result["accuracy"] == pytest.approx(result["right"], abs=1e-6)
        assert result["accuracy"] > 0.8
