"""The trace of all ranks' collectives, as Perfetto reads it."""

import collections
import json
from pathlib import Path
from typing import Any

from tests.group import ROOT, on_one_host, workers
from tfddl._src.collectives.timeline import trace
from tfddl._src.comm.instrumentation import Event

ALL = (0, 1, 2)


def _complete(events: dict[str, Any], rank: int, name: str) -> list[dict[str, Any]]:
    found = events["traceEvents"]
    return [e for e in found if e["ph"] == "X" and (e["pid"], e["name"]) == (rank, name)]


def test_who_was_waited_for() -> None:
    by_rank = [
        [
            Event("only here", ALL, 8, 1.0, 1.5),  # The others began to record later.
            Event("sum", ALL, 400, 2.0, 5.1),
            Event("pair", (0, 2), 16, 6.0, 6.5),
        ],
        [Event("sum", ALL, 400, 5.0, 5.1)],
        [Event("sum", ALL, 400, 4.0, 5.1), Event("pair", (0, 2), 16, 5.9, 6.5)],
    ]
    result = json.loads(json.dumps(trace(by_rank)))
    (first,) = _complete(result, 0, "sum")
    assert (first["ts"], first["cat"]) == (2e6, "collective")
    assert abs(first["dur"] - 3.1e6) < 1
    assert first["args"]["bytes"] == 400
    assert first["args"]["waited_for_rank"] == 1
    assert abs(first["args"]["waited_us"] - 3e6) < 1
    (waiting,) = _complete(result, 0, "waiting for rank 1")
    assert waiting["ts"] == first["ts"]
    assert waiting["dur"] == first["args"]["waited_us"]
    (last,) = _complete(result, 1, "sum")
    assert "waited_for_rank" not in last["args"]
    (pair,) = _complete(result, 2, "pair")
    assert pair["args"]["waited_for_rank"] == 0
    assert "waited_for_rank" not in _complete(result, 0, "only here")[0]["args"]
    names = [e["args"]["name"] for e in result["traceEvents"] if e["name"] == "process_name"]
    assert names == ["rank 0", "rank 1", "rank 2"]


def test_whoever_begins_one_is_in_it(tmp_path: Path) -> None:
    """Also where only some ranks do, and where nobody ends it."""
    script = (ROOT / "tests/scripts/timelines.py").read_text()
    logs, folder = tmp_path / "logs", tmp_path / "timelines"
    logs.mkdir()
    folder.mkdir()
    with workers(script, on_one_host(3), logs, str(folder)) as processes:
        codes = [process.wait(timeout=150) for process in processes]
    assert codes == [0, 0, 0], [path.read_text() for path in logs.iterdir()]
    found = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    own = ("unended.json", "unended.rank1.json", "unended.rank2.json")
    expected = {
        "root alone.json": {0: 2},
        "without root.rank1.json": {1: 1},
        "without root.rank2.json": {2: 1},
        **{f"two {again}.json": {0: 1, 2: 1} for again in range(3)},
        "all.json": {0: 2, 1: 2, 2: 2},
        **{name: {rank: 1} for rank, name in enumerate(own)},
    }
    assert found.keys() == expected.keys()
    for file, counts in expected.items():
        name = file.split(".")[0]
        events = [
            event
            for event in found[file]["traceEvents"]
            if event["ph"] == "X" and f"allreduce average <{name}" in event["name"]
        ]
        assert collections.Counter(event["pid"] for event in events) == counts, file
        assert {event["args"]["bytes"] for event in events} == {12}, file
