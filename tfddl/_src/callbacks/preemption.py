"""Requests to save and to end, by SIGTERM or by `tfddlrun`: answered after the next step."""

import signal
import threading
from types import FrameType

from tfddl._src.heartbeat import WorkerFlags
from tfddl._src.runtime import current


class Preemption:
    """Whether this process was asked to save and end.

    Attributes:
        got_sigterm: Whether SIGTERM has come since `listen`.
    """

    def __init__(self) -> None:
        self.got_sigterm = False
        self._listens = False
        # Whether it has told the launcher that this process saves: another one around it may have.
        self._takes_requests = False

    @property
    def requested(self) -> bool:
        """Whether SIGTERM has come, or `tfddlrun` is about to change the number of workers."""
        return self.got_sigterm or current().progress_page.save_is_requested

    def listen(self, *, outlives_job: bool = True) -> None:
        """Handles SIGTERM from here on, unless the script has a handler of its own.

        Args:
            outlives_job: Whether what is saved is there for the next job. Otherwise SIGTERM to
                `tfddlrun` ends this process at once.
        """
        page = current().progress_page
        self._takes_requests |= WorkerFlags.SAVES_ON_REQUEST not in page.read().flags
        page.set_flags(WorkerFlags.SAVES_ON_REQUEST)
        # Python runs handlers in the main thread only, and signal.signal raises in any other.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self._is_free():
            self.got_sigterm, self._listens = False, True
            signal.signal(signal.SIGTERM, self._request)
            current().sigterm_handler = self._request
            if outlives_job:
                page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)

    def report(self) -> None:
        """Tells the launcher that this process has saved and is about to end."""
        page = current().progress_page
        page.set_flags(WorkerFlags.PREEMPTED)
        if self.got_sigterm:
            page.set_flags(WorkerFlags.GOT_SIGTERM)

    def stop_listening(self, *, handled: bool) -> None:
        """Gives SIGTERM its usual meaning back.

        Args:
            handled: Whether training has ended because of it, and so does this process: SIGTERM is
                ignored from here on. Otherwise, if it has come, it is raised again, now with its
                usual meaning.
        """
        if self._takes_requests:
            self._takes_requests = False
            current().progress_page.clear_flags(WorkerFlags.SAVES_ON_REQUEST)
        if not self._listens:
            return
        self._listens = False
        current().progress_page.clear_flags(WorkerFlags.SAVES_ON_SIGTERM)
        # A second SIGTERM must not change the status that this process ends with: srun with
        # --kill-on-bad-exit sends it to all others when the first has ended. Python keeps SIG_IGN
        # to the end; what it calls itself it takes away earlier.
        current().sigterm_handler = signal.SIG_IGN if handled else None
        # TensorFlow's coordination service, where it is used, has put a handler in place behind
        # Python's back, which only takes a note of the signal (its preemption_notifier.cc).
        signal.signal(signal.SIGTERM, signal.SIG_IGN if handled else signal.SIG_DFL)
        if self.got_sigterm and not handled:
            signal.raise_signal(signal.SIGTERM)

    def _is_free(self) -> bool:
        """Whether SIGTERM has its usual meaning, or none since a training before has ended."""
        found = signal.getsignal(signal.SIGTERM)
        return found is signal.SIG_DFL or found is current().sigterm_handler is signal.SIG_IGN

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.got_sigterm = True
