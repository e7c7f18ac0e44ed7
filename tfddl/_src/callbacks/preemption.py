"""SIGTERM as a request to save and to end, which training answers after the next step."""

import signal
import threading
from types import FrameType

from tfddl._src.heartbeat import WorkerFlags
from tfddl._src.runtime import current


class Preemption:
    """Whether SIGTERM has asked this process to end.

    Attributes:
        requested: Whether it has come since `listen`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._listens = False

    def listen(self) -> None:
        """Handles SIGTERM from here on, unless the script has a handler of its own."""
        # Python runs handlers in the main thread only, and signal.signal raises in any other.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self.requested, self._listens = False, True
            signal.signal(signal.SIGTERM, self._request)
            current().sigterm_handler = self._request
            current().progress_page.set_flags(WorkerFlags.SAVES_ON_SIGTERM)

    def stop_listening(self, *, handled: bool) -> None:
        """Gives SIGTERM its usual meaning back.

        Args:
            handled: Whether training has ended because of it. Otherwise, if it has come, it is
                raised again, now with its usual meaning.
        """
        if not self._listens:
            return
        self._listens = False
        current().progress_page.clear_flags(WorkerFlags.SAVES_ON_SIGTERM)
        current().sigterm_handler = None
        # TensorFlow's coordination service, where it is used, has put a handler in place behind
        # Python's back, which only takes a note of the signal (its preemption_notifier.cc).
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.requested and not handled:
            signal.raise_signal(signal.SIGTERM)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
