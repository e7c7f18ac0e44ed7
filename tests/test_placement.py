"""A step by NCCL stays on the GPU: read from the graph, on a machine without one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server


def _found(directory: Path, case: str, **arguments: Any) -> Any:
    result, log = directory / "result", directory / "log"
    process = fork_server.start("tests.cases.placement:main", result, case, arguments, log=log)
    try:
        assert process.wait(timeout=120) == 0, log.read_text()
    finally:
        process.kill()
    return json.loads(result.read_text())


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
    tmp_path: Path, batch: int | None, compression: str
) -> None:
    found = _found(tmp_path, "found", collective="nccl", batch=batch, compression=compression)
    assert found["operations"] > 20
    assert found["on the CPU"] == []
    assert found["copied"] == []


def test_every_operation_of_a_collective_has_a_kernel_for_gpus(tmp_path: Path) -> None:
    """In every dtype; and floats of known lengths are copied to or from no GPU."""
    found = _found(tmp_path, "collectives")
    assert found["traced"] == 6 * 5 * 2
    assert found["on the CPU"] == []
    assert found["copied"] == []


@pytest.mark.long
def test_by_ring_they_do(tmp_path: Path) -> None:
    """So that the test above would see it."""
    found = _found(tmp_path, "found", collective="ring", batch=None)
    assert found["on the CPU"]
    assert found["copied"]
