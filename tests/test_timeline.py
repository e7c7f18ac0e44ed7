"""The trace of all ranks' collectives, as Perfetto reads it."""

import json
from typing import Any

from tfddl.collectives.timeline import trace
from tfddl.transport import Event

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
