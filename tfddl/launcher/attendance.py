"""What is known of a worker that runs, and what may be asked of it, by way of its board."""

from __future__ import annotations

import contextlib
import os
import signal

from tfddl.progress import STACKS_SIGNAL, Ability, Board, Reading


class Attendance:
    """Of one worker on this machine.

    Without a board it knows of no progress, and can ask for nothing.
    """

    def __init__(self, board: Board | None, session: int) -> None:
        """Begins.

        Args:
            board: where the worker writes how far it has come, or None.
            session: the worker's process, and the session of all that it has started.
        """
        self._board, self._session = board, session

    def read(self) -> Reading:
        """How far it has come."""
        return Reading() if self._board is None else self._board.read()

    @property
    def training_pid(self) -> int:
        """The process that trains: the worker itself, or one that its command has started."""
        pid = self.read().pid
        with contextlib.suppress(ProcessLookupError):
            if pid and os.getsid(pid) == self._session:
                return pid
        return self._session

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        if Ability.SHOWS_STACKS in self.read().abilities:
            self._signal(STACKS_SIGNAL)

    def ask_to_save(self) -> bool:
        """Makes it save and end, if it can.

        Only the process that trains is asked: a shell around it would end at once, and the worker
        with it.
        """
        if Ability.SAVES not in self.read().abilities:
            return False
        self._signal(signal.SIGTERM)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.training_pid, number)
