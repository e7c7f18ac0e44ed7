"""A step by NCCL stays on the GPU: read from the graph, on a machine without one."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.group import ROOT


def _found(**arguments: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.cases.placement", json.dumps(arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("found ")[2])


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("batch", "compression"),
    [
        (None, "none"),
        (16, "bf16"),
        pytest.param(16, "none", marks=LONG),
        pytest.param(None, "fp16", marks=LONG),
    ],
)
def test_nothing_between_gradients_and_optimizer_leaves_the_gpu(
    batch: int | None, compression: str
) -> None:
    found = _found(collective="nccl", batch=batch, compression=compression)
    assert found["operations"] > 20
    assert found["on the CPU"] == []
    assert found["copied"] == []


def test_every_operation_of_a_collective_has_a_kernel_for_gpus() -> None:
    """In every dtype; and floats of known lengths are copied to or from no GPU."""
    found = _found(case="collectives")
    assert found["traced"] == 6 * 5 * 2
    assert found["on the CPU"] == []
    assert found["copied"] == []


@pytest.mark.long
def test_by_ring_they_do() -> None:
    """So that the test above would see it."""
    found = _found(collective="ring", batch=None)
    assert found["on the CPU"]
    assert found["copied"]
