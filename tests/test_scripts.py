"""The first scripts that users of `strategy.scope()` try, as they would start them."""

import ast
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tests.launching import launch, of_ranks


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 3])
def test_a_tutorial_s_script_and_a_train_function(tmp_path: Path, workers: int) -> None:
    scripts = ["multi_worker_keras.py", str(tmp_path), "train_function.py", "32"]
    command = [sys.executable, "tests/scripts/several.py", *scripts]
    done = launch("-np", str(workers), *command, cwd=ROOT, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    first, *others = of_ranks(lines, "accuracy", workers)
    assert others == [first] * (workers - 1)
    assert float(first.split()[1]) > 0.8
    results = [ast.literal_eval(text) for text in of_ranks(lines, "{", workers)]
    for result in results:
        assert result == results[0]
        assert result["accuracy"] == pytest.approx(result["right"], abs=1e-6)
        assert result["accuracy"] > 0.8


@pytest.mark.long
def test_a_train_function_of_one_worker() -> None:
    command = [sys.executable, "tests/scripts/train_function.py", "32"]
    done = launch("-np", "1", *command, cwd=ROOT, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    [text] = of_ranks(done.stdout.splitlines(), "{", 1)
    assert ast.literal_eval(text)["accuracy"] > 0.8
