"""Workers that leave the others, and join them anew, in processes that stay."""

import pytest

from tests.group import Groups
from tfddl._src.cluster.ports import free_ports


@pytest.mark.parametrize(
    "init",
    [{}, pytest.param({"hosts": (2, 1), "between_hosts": "tcp"}, marks=pytest.mark.long)],
    ids=["one host", "two hosts"],
)
def test_workers_leave_and_join_anew(groups: Groups, init: dict[str, object]) -> None:
    places = ["127.0.0.1", "127.0.0.1", "127.0.0.2"] if "hosts" in init else ["127.0.0.1"] * 3
    ports = iter(free_ports(5))
    clusters = [
        (members, [f"{places[rank]}:{next(ports)}" for rank in members])
        for members in ([0, 2], [0, 1, 2])
    ]
    group = groups(3, with_strategy=False, **init)
    try:
        found = group.run("tests.cases.regroup:leave_and_join", clusters=clusters)
    finally:
        group.close()
    one = found[0][0]["loss"]
    for first, _, last in found:
        assert (first["size"], first["sum"]) == (last["size"], last["sum"]) == (3, 18.0)
        assert first["loss"] == last["loss"] == one
    assert [last["rank"] for _, _, last in found] == [0, 1, 2]
    assert [some.get("rank") for _, some, _ in found] == [0, None, 1]
    for _, some, _ in (found[0], found[2]):
        assert (some["size"], some["sum"]) == (2, 8.0)
        assert some["loss"] == pytest.approx(one, rel=1e-6)
    stale = [text for _, some, last in found for text in [*some["stale"], *last.get("stale", [])]]
    assert all("the workers have changed" in text for text in stale)
