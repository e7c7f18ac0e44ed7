"""Functions in threads, as horovod/runner/util/threads.py has them. No TensorFlow."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tfddl.errors import UnsupportedError

_LOG = logging.getLogger("tfddl")


def in_thread(
    target: Callable[..., Any],
    args: tuple[Any, ...] = (),
    name: str | None = None,
    daemon: bool = True,
    silent: bool = False,
) -> threading.Thread:
    """Starts a function in a thread.

    Args:
        target: The function.
        args: Its arguments, a tuple.
        name: The thread's name.
        daemon: Whether the process may end before the thread does.
        silent: Whether an exception is only logged at debug level.

    Returns:
        The thread, which is running.

    Raises:
        UnsupportedError: ``args`` isn't a tuple; it is a `ValueError`.
    """
    _check(args)
    call = _logging(target) if silent else target
    thread = threading.Thread(target=call, args=args, name=name, daemon=daemon)
    thread.start()
    return thread


def on_event(  # noqa: PLR0913 - Horovod's signature
    event: threading.Event,
    func: Callable[..., Any],
    args: tuple[Any, ...] = (),
    stop: threading.Event | None = None,
    check_stop_interval_s: float = 1.0,
    daemon: bool = True,
    silent: bool = False,
) -> threading.Thread:
    """Starts a thread that calls a function when an event is set.

    Args:
        event: The event.
        func: The function.
        args: Its arguments, a tuple.
        stop: Ends the thread without the call, if it is set first.
        check_stop_interval_s: How often ``stop`` is looked at, in seconds.
        daemon: As for `in_thread`; must be True where there is no ``stop``.
        silent: As for `in_thread`.

    Returns:
        The thread, which is running.

    Raises:
        UnsupportedError: There is no event, ``args`` isn't a tuple, or nothing could end the
            thread; it is a `ValueError`.
    """
    _check(args)
    if event is None or (stop is None and not daemon):
        raise UnsupportedError(
            f"on_event got event={event}, stop={stop}, daemon={daemon}; there must be an event, "
            "and a stop event for a thread that isn't a daemon."
        )

    def wait() -> None:
        while not event.wait(check_stop_interval_s):
            if stop is not None and stop.is_set():
                return
        if stop is None or not stop.is_set():
            func(*args)

    return in_thread(wait, daemon=daemon, silent=silent)


def execute_function_multithreaded(
    fn: Callable[..., Any],
    args_list: Sequence[Sequence[Any]],
    block_until_all_done: bool = True,
    max_concurrent_executions: int = 1000,
) -> dict[int, Any] | None:
    """Calls a function with several sets of arguments at the same time.

    Args:
        fn: The function.
        args_list: Its arguments, for each call.
        block_until_all_done: Whether to wait for the results.
        max_concurrent_executions: How many calls run at a time.

    Returns:
        The results by the calls' positions; None without ``block_until_all_done``. What a call
        raises is raised here.
    """
    if not args_list:
        return {} if block_until_all_done else None
    pool = ThreadPoolExecutor(min(max_concurrent_executions, len(args_list)))
    futures = [pool.submit(fn, *args) for args in args_list]
    pool.shutdown(wait=block_until_all_done)
    if not block_until_all_done:
        return None
    return {position: future.result() for position, future in enumerate(futures)}


def _check(args: Any) -> None:
    if not isinstance(args, tuple):
        raise UnsupportedError(f"args is a {type(args).__name__}; it must be a tuple, as (x,) is.")


def _logging(target: Callable[..., Any]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        try:
            target(*args)
        except Exception:  # noqa: BLE001 - what the caller asks for
            _LOG.debug("%s failed", target, exc_info=True)

    return call
