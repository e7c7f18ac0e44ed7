"""The progress of a long piece of work: a bar, or about ten lines."""

import sys
import time
from typing import TextIO

_WIDTH = 30
# A bar is redrawn at most every 0.2 s; a line is written after each tenth of the work.
_REDRAW_S, _LINE_FRACTION = 0.2, 0.1


class ProgressBar:
    """Shows how many of a number of things are done.

    Usage::

        with Progress(len(images), kind="bar", unit="images") as progress:
            for done, image in enumerate(images, start=1):
                ...
                progress.show(done)
    """

    def __init__(
        self, total: int, *, kind: str, unit: str = "images", stream: TextIO | None = None
    ) -> None:
        """Starts the clock; nothing is shown yet.

        Args:
            total: How many things there are.
            kind: "bar" (one line, rewritten), "lines" (about ten in all) or "none".
            unit: What is counted, in the plural.
            stream: Where it is written; None is standard output.
        """
        self._total = total
        self._kind = kind if total else "none"
        self._unit = unit
        self._stream = sys.stdout if stream is None else stream
        self._started_s = time.monotonic()
        self._shown_s = -float("inf")
        self._shown = 0
        self._width = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the line of a bar, also of one that an error interrupted."""
        if self._kind == "bar" and self._width:
            self._write("\n")

    def show(self, done: int) -> None:
        """Shows that so many are done."""
        now_s = time.monotonic()
        is_last = done >= self._total
        if self._kind == "bar" and (is_last or now_s - self._shown_s >= _REDRAW_S):
            line = self._bar(done, now_s)
            self._write("\r" + line.ljust(self._width))
            self._shown_s, self._width = now_s, len(line)
        elif self._kind == "lines" and (
            is_last or done - self._shown >= _LINE_FRACTION * self._total
        ):
            self._write(f"{done}/{self._total} {self._unit}, {self._time_left(done, now_s)}\n")
            self._shown = done

    def _bar(self, done: int, now_s: float) -> str:
        filled = _WIDTH * done // self._total
        bar = "━" * filled + " " * (_WIDTH - filled)
        return f"{done}/{self._total} {self._unit} {bar} {self._time_left(done, now_s)}"

    def _time_left(self, done: int, now_s: float) -> str:
        took_s = now_s - self._started_s
        if done >= self._total:
            return _duration(took_s)
        return f"{_duration(took_s / max(done, 1) * (self._total - done))} left"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
