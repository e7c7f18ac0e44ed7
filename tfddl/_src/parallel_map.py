"""A function applied by several threads, results in order."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], *, num_threads: int
) -> Generator[R]:
    """Like `map`, by threads that work ahead of the consumer, by two items each.

    An exception of the function is raised when its item's turn comes. Closing the generator stops
    the threads.

    Args:
        function: Called by several threads at once.
        items: Iterated in the consumer's thread.
        num_threads: 0 calls the function in the consumer's thread.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tfddl-load")
    pending: collections.deque[Future[R]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_threads:  # Bounds the memory of results that wait.
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
