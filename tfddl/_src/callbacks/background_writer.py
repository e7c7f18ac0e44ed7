"""Writes to the disk while training goes on."""

import threading
from collections.abc import Callable


class BackgroundWriter:
    """A thread that does one thing at a time.

    The interpreter ends only when it is done.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, action: Callable[[], object]) -> None:
        """Has something done; what was begun before must have been waited for.

        Args:
            action: Has no collective in it: the other ranks don't know of the thread.
        """
        assert self._thread is None

        def run() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - whoever waits is told of it
                self._error = error

        self._thread = threading.Thread(target=run, name="tfddl-writer")
        self._thread.start()

    def wait(self) -> OSError | None:
        """Waits for what was begun, if anything was.

        Returns:
            Why it failed, if it did.

        Raises:
            BaseException: It failed for any other reason than an `OSError`.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is None or isinstance(error, OSError):
            return error
        raise error
