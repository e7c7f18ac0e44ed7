"""What elastic states find after a restart, where there are several of them."""

from tests.group import Groups


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
