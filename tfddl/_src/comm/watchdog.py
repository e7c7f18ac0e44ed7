"""Ends operations for which not all ranks come.

TensorFlow's collectives have a timeout of their own, but keep a thread asleep for each operation
until it is over: a training of some steps per second soon runs out of threads. So operations are
counted when they begin and end, and one thread looks whether they get on.
"""

import atexit
import threading
import time
from collections.abc import Callable

_LOOKS = 5
"""How often to look within the time that is waited."""


class Watch:
    """Looks after the collectives of this process."""

    def __init__(
        self,
        counts: Callable[[], tuple[int, int]],
        timeout_s: float,
        end: Callable[[str], None],
    ) -> None:
        """Begins to watch.

        Args:
            counts: how many operations have begun and ended.
            timeout_s: After how many seconds without any progress what is waiting is ended; 0 is
                never.
            end: Ends them; is given what their errors say.
        """
        self._counts, self._timeout_s, self._end_all = counts, timeout_s, end
        self._stop = threading.Event()
        if timeout_s > 0:
            thread = threading.Thread(target=self._look, name="tfddl-watch", daemon=True)
            thread.start()
            atexit.register(self._end, thread)

    def _look(self) -> None:
        seen, since_s = (0, 0), time.monotonic()
        while not self._stop.wait(min(self._timeout_s / _LOOKS, 10.0)):
            now = self._counts()
            if now[0] == now[1] or now != seen:
                seen, since_s = now, time.monotonic()
            elif time.monotonic() - since_s >= self._timeout_s:
                self._end_all(
                    f"not all ranks have come to an operation within {self._timeout_s:g} s: "
                    "one of them is stuck, or does something else"
                )
                return

    def _end(self, thread: threading.Thread) -> None:
        self._stop.set()
        thread.join(timeout=5)
