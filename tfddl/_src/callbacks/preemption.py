"""SIGTERM as a question to be answered at the next step."""

import signal
import threading
from types import FrameType

from tfddl._src.heartbeat import WorkerFlags
from tfddl._src.runtime import current


class Preemption:
    """Whether SIGTERM has asked this process to end.

    Attributes:
        asked: Since `listen`.
    """

    def __init__(self) -> None:
        self.asked = False
        self._listens = False

    def listen(self) -> None:
        """Takes SIGTERM as a question from here on.

        Signals reach the main thread only. A script that has a handler of its own keeps it.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self.asked, self._listens = False, True
            signal.signal(signal.SIGTERM, self._ask)
            current().sigterm_handler = self._ask
            current().board.set_flags(WorkerFlags.SAVES_ON_SIGTERM)

    def stop_listening(self, *, answered: bool) -> None:
        """Gives SIGTERM back its meaning.

        Args:
            answered: Whether the question has been heard; one that hasn't is asked again, now with
                its usual meaning.
        """
        if not self._listens:
            return
        self._listens = False
        current().board.clear_flags(WorkerFlags.SAVES_ON_SIGTERM)
        current().sigterm_handler = None
        # TensorFlow's own handler, which Python doesn't know of, only takes a note of the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.asked and not answered:
            signal.raise_signal(signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
