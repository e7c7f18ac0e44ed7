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
        [sys.executable, "-W", "ignore", "-m", "tests.cases.placing", json.dumps(arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("found ")[2])


@pytest.mark.parametrize("compression", ["none", "fp16", "bf16"])
@pytest.mark.parametrize("batch", [None, 16])
def test_nothing_between_gradients_and_optimizer_leaves_the_gpu(
    batch: int | None, compression: str
) -> None:
    found = _found(collective="nccl", batch=batch, compression=compression)
    assert found["operations"] > 20
    assert found["on the CPU"] == []
    assert found["copied"] == []


def test_by_ring_they_do() -> None:
    """So that the test above would see it."""
    found = _found(collective="ring", batch=None)
    assert found["on the CPU"]
    assert found["copied"]
