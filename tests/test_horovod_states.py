"""What elastic states find after a restart, where there are several of them."""

import pytest

from tests.group import Groups
from tfddl._src.heartbeat import SAVED_STATUS, WorkerFlags


def test_each_run_resumes_from_its_own_commit(groups: Groups) -> None:
    killed_at = [("first", 2), ("second", 2), ("first", 1), ("nowhere", 0)]
    (starts,) = groups(1).run("tests.cases.horovod_states:starts", killed_at=killed_at)
    assert starts == [
        [("first", 0)],
        [("first", 2), ("second", 0)],
        # It was over when the script was killed: done again, and killed in it. What the second has
        # committed isn't lost by that.
        [("first", 0)],
        [("first", 0), ("second", 2)],
    ]


@pytest.mark.parametrize("by", ["SIGTERM", "tfddlrun"])
def test_a_change_of_hosts_ends_a_start_at_a_commit(groups: Groups, by: str) -> None:
    (found,) = groups(1).run("tests.cases.horovod_states:change_of_hosts", by=by)
    flags = WorkerFlags.PREEMPTED | (WorkerFlags.GOT_SIGTERM if by == "SIGTERM" else 0)
    assert found == {
        "steps": [(step, True) for step in (1, 2, 3, 4)],  # Nothing is done twice.
        "raised": [False],
        "first": (SAVED_STATUS, flags),
        "reset at": [2],
        "takes requests after it": False,
    }
