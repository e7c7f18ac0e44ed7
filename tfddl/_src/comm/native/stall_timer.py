"""When to speak of a wait, and when to end it."""

from __future__ import annotations

from tfddl._src.comm.native.messages import Timeouts


class StallTimer:
    """When to speak of a wait, and when to end it."""

    def __init__(self, patience: Timeouts, begin_s: float) -> None:
        """Begins.

        Args:
            patience: how long to wait.
            begin_s: since when, by `time.monotonic`; so are all times here.
        """
        self.begin_s = begin_s
        self._patience = patience
        self.has_told = False
        # Told first, so that all know of each other when they warn.
        self._tell_s = begin_s + 0.9 * min(
            (s for s in (patience.warn_s, patience.abort_s) if s > 0), default=float("inf")
        )
        self._warn_s = begin_s + (patience.warn_s or float("inf"))
        self._end_s = begin_s + (patience.abort_s or float("inf"))

    def is_time_to_tell(self, now_s: float) -> bool:
        """Whether to tell the others; once."""
        if self.has_told or now_s < self._tell_s:
            return False
        self.has_told = True
        return True

    def is_time_to_warn(self, now_s: float) -> bool:
        """Whether to warn; again after a while."""
        if now_s < self._warn_s:
            return False
        self._warn_s = now_s + self._patience.warn_s
        return True

    def is_over(self, now_s: float) -> bool:
        """Whether to give up."""
        return now_s >= self._end_s
