"""A thread that writes to the disk while training goes on."""

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs one action at a time in a thread.

    The thread is no daemon: the interpreter ends only when the action is done, so that a script
    that ends doesn't cut a checkpoint short.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, action: Callable[[], object]) -> None:
        """Begins an action; the one before must have been waited for.

        Args:
            action: Without a collective in it: the other ranks don't know of the thread.
        """
        assert self._thread is None

        def run() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - `wait` returns or raises it
                self._error = error

        # Writing and fsync release the GIL: training goes on beside it.
        self._thread = threading.Thread(target=run, name="tfddl-writer")
        self._thread.start()

    def wait(self) -> OSError | None:
        """Waits for the action that was begun, if one was.

        Returns:
            The `OSError` that it raised, if it did.

        Raises:
            BaseException: Any other that it raised.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is None or isinstance(error, OSError):
            return error
        raise error
