"""The first scripts that users of `strategy.scope()` try, as they would start them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT


def _run(script: str, *arguments: str, workers: int) -> list[str]:
    command = [sys.executable, "-m", "tfddl.launcher", "-np", str(workers), sys.executable]
    done = subprocess.run(
        [*command, f"tests/scripts/{script}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def _of_ranks(lines: list[str], start: str, workers: int) -> list[str]:
    """What each rank printed on the line that begins so."""
    found = [re.fullmatch(rf"\[(\d+)\] ({start}.*)", line) for line in lines]
    by_rank = {int(match[1]): match[2] for match in found if match}
    assert sorted(by_rank) == list(range(workers)), lines
    return [by_rank[rank] for rank in range(workers)]


def test_multi_worker_training_with_keras(tmp_path: Path) -> None:
    lines = _run("multi_worker_keras", str(tmp_path), workers=2)
    first, second = _of_ranks(lines, "accuracy", 2)
    assert first == second
    assert float(first.split()[1]) > 0.8


@pytest.mark.parametrize("workers", [3, pytest.param(1, marks=pytest.mark.long)])
def test_a_train_function(workers: int) -> None:
    lines = _run("train_function", "32", workers=workers)
    results = [ast.literal_eval(text) for text in _of_ranks(lines, "{", workers)]
    for result in results:
        assert result == results[0]
        assert result["accuracy"] == pytest.approx(result["right"], abs=1e-6)
        assert result["accuracy"] > 0.8
