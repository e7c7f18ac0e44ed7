"""How far work has come, as a bar and in lines."""

import io
import time
from itertools import pairwise

import pytest

from tfddl.segmentation.progress_bar import ProgressBar


def _shown(kind: str, total: int, seconds_each: float, monkeypatch: pytest.MonkeyPatch) -> str:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    with ProgressBar(total, kind=kind, stream=stream) as shown:
        for done in range(1, total + 1):
            now += seconds_each
            shown.show(done)
    return stream.getvalue()


def test_lines_are_about_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _shown("lines", 1000, 1.0, monkeypatch).splitlines()
    assert [line.split()[0] for line in lines] == [f"{n}/1000" for n in range(100, 1001, 100)]
    assert lines[0] == "100/1000 images, 15 min 0 s left"
    assert lines[-1] == "1000/1000 images, 16 min 40 s"
    assert _shown("lines", 3, 5000.0, monkeypatch).splitlines() == [
        "1/3 images, 2 h 46 min left",
        "2/3 images, 1 h 23 min left",
        "3/3 images, 4 h 10 min",
    ]


def test_a_bar_is_rewritten_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _shown("bar", 1000, 0.01, monkeypatch)
    assert text.startswith("\r1/1000 images ")
    assert text.rstrip().endswith(" 10 s")
    assert text.endswith("\n")
    assert 40 < text.count("\r") < 60  # ten seconds, five times a second
    # What was longer before is written over.
    parts = text.strip("\r\n").split("\r")
    assert all(len(new) >= len(old.rstrip()) for old, new in pairwise(parts))


def test_an_interrupted_bar_ends_its_line() -> None:
    stream = io.StringIO()

    def break_off() -> None:
        with ProgressBar(3, kind="bar", stream=stream) as shown:
            shown.show(1)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(("kind", "total"), [("none", 3), ("bar", 0), ("lines", 0)])
def test_nothing_to_show(kind: str, total: int) -> None:
    stream = io.StringIO()
    with ProgressBar(total, kind=kind, stream=stream) as shown:
        shown.show(total)
    assert stream.getvalue() == ""
