"""How far several workers are from one process, with counts and without."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exactness import PROBLEMS, Distance, compare, report
from tests.group import ROOT, Groups

NAMES = ["accumulation over 3 steps", "a step without an example for a worker"]


def _check(found: dict[str, Distance]) -> None:
    for name, distance in found.items():
        assert distance.counted <= 1e-5, name
        if name == "everything divides":
            assert distance.averaged <= 1e-5
        else:
            assert distance.averaged >= 1e-4, name


def test_counts_make_it_exact_and_plain_averages_drift(groups: Groups, tmp_path: Path) -> None:
    found = compare(groups(2), NAMES, tmp_path)
    assert list(found) == NAMES
    _check(found)


@pytest.mark.long
def test_all_problems_with_three_workers(groups: Groups, tmp_path: Path) -> None:
    found = compare(groups(3), list(PROBLEMS), tmp_path)
    assert list(found) == list(PROBLEMS)
    _check(found)


@pytest.mark.long
def test_the_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.exactness", "--case=everything divides"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 of 1: everything divides\n" in found.stderr
    assert re.search(r"^\| everything divides \| \de-\d\d \| \de-\d\d \|$", found.stdout, re.M)


def test_the_table() -> None:
    text = report({"x": Distance(counted=1.24e-7, averaged=0.0031)}, num_workers=2)
    assert text.splitlines() == [
        "| 2 workers, 20 steps | tfddl | plain average |",
        "|---|---|---|",
        "| x | 1e-07 | 3e-03 |",
    ]
