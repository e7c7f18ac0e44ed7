"""Tells what is measured now, and how long it takes."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO


class Progress:
    """Writes lines such as ``tfddl-bench: [ 12 s] U-Net, round 2 of 5: 3.1 s``."""

    def __init__(
        self, out: TextIO = sys.stderr, *, name: str = "tfddl-bench", quiet: bool = False
    ) -> None:
        """Begins to count the time.

        Args:
            out: Where to write.
            name: Of the command.
            quiet: Whether to write nothing.
        """
        self._out = out
        self._name, self._quiet = name, quiet
        self._began_s = time.monotonic()
        self._parts: list[str] = []

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began_s

    def say(self, text: str) -> None:
        """Writes a line."""
        if self._quiet:
            return
        prefix = "".join(f"{part}, " for part in self._parts)
        self._out.write(f"{self._name}: [{self.seconds:3.0f} s] {prefix}{text}\n")
        self._out.flush()

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What is said meanwhile belongs to a part."""
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.pop()

    def rounds(self, number: int) -> Iterator[int]:
        """Counts rounds, and tells after each how much is left."""
        began_s = time.monotonic()
        for done in range(1, number + 1):
            yield done - 1
            took_s = time.monotonic() - began_s
            left_s = took_s / done * (number - done)
            left = f"; about {left_s:.0f} s left" if done < number else ""
            self.say(f"round {done} of {number} done after {took_s:.1f} s{left}")
