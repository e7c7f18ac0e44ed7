"""Says what is measured now, and how long it takes."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Progress:
    """Says things such as ``2 workers, U-Net, round 2 of 5 done after 3.1 s; about 5 s left``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Begins without a prefix.

        Args:
            say: Takes each text.
        """
        self._say = say
        self._parts: list[str] = []

    def say(self, text: str) -> None:
        """Says a text, after the parts that it belongs to."""
        self._say(", ".join([*self._parts, text]))

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What is said meanwhile belongs to a part."""
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.pop()

    def rounds(self, number: int) -> Iterator[int]:
        """Counts rounds from 0, and says after each how much is left."""
        began_s = time.monotonic()
        for done in range(1, number + 1):
            yield done - 1
            took_s = time.monotonic() - began_s
            left_s = took_s / done * (number - done)
            left = f"; about {left_s:.0f} s left" if done < number else ""
            self.say(f"round {done} of {number} done after {took_s:.1f} s{left}")
