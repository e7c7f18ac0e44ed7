"""Children that are forked from a worker after `tfddl.init()`."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.group import Groups

CASES = "tests.cases.forking"


@pytest.mark.parametrize("settings", [{}, {"hosts": (1, 1)}, {"collective": "ring"}])
def test_children_end_when_told_to_and_leave_the_worker_alone(
    groups: Groups, settings: dict[str, Any], tmp_path: Path
) -> None:
    for rank, found in enumerate(
        groups(2, **settings).run(f"{CASES}:children", folder=str(tmp_path))
    ):
        child = found["child"]
        assert child["rank"] == rank
        assert found["sockets"]
        assert child["sockets"] == []
        for error in child["errors"]:
            assert error.startswith(
                f"UnsupportedError: this process was forked from rank {rank}, after tfddl.init()"
            )
        # The child has written neither progress nor the worker's timeline.
        assert found["beats"] == 0
        assert found["files"] == []
        assert found["is handled"]
        # The last time with a handler of the script's own, which a child keeps, as in Python.
        assert found["ends"] == [-signal.SIGTERM, -signal.SIGTERM, 7]
        assert found["sums"] == [2.0, 2.0]
