"""A function applied by several threads, with results in order."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tfddl._src.cpu import cpu_quota, num_bound_cores, num_usable_cores

_MOST_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def cores_of_worker(local_size: int, *, own: int | None = None) -> int:
    """How many cores a worker may count on, at least 1.

    Args:
        local_size: Among how many workers of the host the cores that this process may use are
            divided.
        own: How many are this worker's alone, if whoever started it has divided them already.
    """
    return own or max(1, num_usable_cores() // local_size)


def has_own_core(local_size: int, *, own: int | None = None) -> bool:
    """Whether each worker of this host can have a core for itself; arguments as above."""
    quota = cpu_quota()
    if quota is not None and local_size > quota:
        return False
    return own is not None or local_size <= num_bound_cores()


def threads_of_worker(num_cores: int) -> int:
    """How many threads make examples in a worker that has so many cores.

    At least 2: while one waits for a file, another decodes.
    """
    return min(_MOST_THREADS, max(2, num_cores))


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], *, num_threads: int
) -> Generator[R]:
    """Like `map`, by threads that work ahead of what is wanted, by two items each.

    What the function raises is raised in its place in the order. Closing the iterator ends the
    threads.

    Args:
        function: What to apply.
        items: Iterated in the caller's thread.
        num_threads: How many; 0 for none but the caller's.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tfddl-load")
    pending: collections.deque[Future[R]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
