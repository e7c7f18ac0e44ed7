"""The command that measures how far several workers are from one process."""

import re
import subprocess
import sys

import pytest

from tests.group import ROOT
from tfddl.bench.problems import PROBLEMS
from tfddl.bench.proof import Distance, ProofConfig, report
from tfddl.errors import DataError

NAMES = ["accumulation over 3 steps", "a step without an example for a worker"]


def _run(*flags: str) -> list[tuple[str, float, float]]:
    found = subprocess.run(
        [sys.executable, "-m", "tfddl.bench.exactness", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "one process: " in found.stdout
    assert "1 of " in found.stdout
    rows = re.findall(r"^\| (.+) \| (\S+e\S+) \| (\S+e\S+) \|$", found.stdout, re.MULTILINE)
    return [(name, float(counted), float(averaged)) for name, counted, averaged in rows]


@pytest.mark.long
def test_counts_make_it_exact_and_plain_averages_drift() -> None:
    rows = _run(*(f"--case={name}" for name in NAMES))
    assert [name for name, _, _ in rows] == NAMES
    for name, counted, averaged in rows:
        assert counted <= 1e-5, name
        assert averaged >= 1e-4, name


@pytest.mark.long
def test_all_problems_with_three_workers() -> None:
    rows = _run("--workers=3")
    assert [name for name, _, _ in rows] == list(PROBLEMS)
    for name, counted, averaged in rows:
        assert counted <= 1e-5, name
        if name == "everything divides":
            assert averaged <= 1e-5
        else:
            assert averaged >= 1e-4, name


def test_the_table() -> None:
    text = report({"x": Distance(counted=1.24e-7, averaged=0.0031)}, num_workers=2)
    assert text.splitlines() == [
        "| 2 workers, 20 steps | tfddl | plain average |",
        "|---|---|---|",
        "| x | 1e-07 | 3e-03 |",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_workers": 1}, "workers is 1; it must be at least 2"),
        ({"names": ("x",)}, r"there is no problem \['x'\]; there are 'SGD with"),
    ],
)
def test_what_can_not_be_compared(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ProofConfig(**{"num_workers": 2, **changed})  # type: ignore[arg-type]
