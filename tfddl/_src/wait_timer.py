"""When to report a wait for other workers, and when to give it up."""

from __future__ import annotations

import time

REPORT_PART = 0.9
"""The part of the time until something is logged or raised after which the others are told."""


class WaitTimer:
    """The time that one wait has taken; it begins when the timer is made. Not thread-safe.

    Attributes:
        abort_s: seconds after which to give up; 0 is never.
        has_reported: whether `should_report` has been true.
    """

    def __init__(
        self, *, warn_s: float = 0.0, abort_s: float = 0.0, report_part: float = REPORT_PART
    ) -> None:
        """Starts the timer.

        Args:
            warn_s: seconds after which to log a warning, and again each time; 0 is never.
            abort_s: seconds after which to give up; 0 is never.
            report_part: the part of the shorter of these times after which to tell the others.
        """
        self.abort_s = abort_s
        self.has_reported = False
        # Not time.time, which jumps when the system's clock is set.
        self._begin_s = time.monotonic()
        self._repeat_s = warn_s
        self._warn_s = self._begin_s + (warn_s or float("inf"))
        self._end_s = self._begin_s + (abort_s or float("inf"))
        # Reports go out before warnings, so that each rank's warning has what the others wait for.
        first_s = min(self._warn_s, self._end_s) - self._begin_s
        self._report_s = self._begin_s + report_part * first_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self._begin_s

    @property
    def remaining_s(self) -> float:
        """Seconds until the wait is given up: infinite if never, negative afterwards."""
        return self._end_s - time.monotonic()

    def should_report(self) -> bool:
        """Whether to tell the others what this worker waits for; true once."""
        if self.has_reported or time.monotonic() < self._report_s:
            return False
        self.has_reported = True
        return True

    def should_warn(self) -> bool:
        """Whether to log a warning; true again after each interval."""
        now_s = time.monotonic()
        if now_s < self._warn_s:
            return False
        self._warn_s = now_s + self._repeat_s
        return True

    def is_expired(self, *, grace_s: float = 0.0) -> bool:
        """Whether to give up, so many seconds later than at `abort_s`."""
        return time.monotonic() >= self._end_s + grace_s
