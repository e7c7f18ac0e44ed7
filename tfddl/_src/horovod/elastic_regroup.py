"""A worker that keeps its process while others come and go: it leaves the job, and joins it anew.

`tfddlrun` keeps the workers that are left where all of them can do so, starts only those that are
new, and tells each its place (`membership`). What a worker that stays has in Python, such as its
datasets and its model, it keeps; what it has traced is traced again.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

from tfddl._src.cluster import detect, read_secret
from tfddl._src.heartbeat import SAVED_STATUS, WorkerFlags
from tfddl._src.horovod.elastic_store import ELASTIC
from tfddl._src.horovod.process_sets import REGISTERED
from tfddl._src.keras_hooks.traced_functions import forget_functions
from tfddl._src.runtime import current, restart
from tfddl.errors import TfddlError

_WAIT_S = 900.0
"""How long to wait for the launcher to say who takes part: longer than it waits for hosts itself
(`--elastic-timeout`), so that it gives up first, and says so."""

_LEFT = (
    "the workers have changed since this operation was traced, or its process group was made. "
    "HINT: make it again, or use a tf.function, which is traced again by itself"
)

_LOG = logging.getLogger("tfddl")


@contextlib.contextmanager
def staying(run: int) -> Iterator[None]:
    """A context in which the launcher may let this process stay while the workers change.

    Not in a second call of `elastic.run`, nor where operations were called before it: a new
    process begins the script at its top, and would be alone in those.

    Args:
        run: The number of this call of `run`, from 0.
    """
    elastic, page = ELASTIC.current(), current().progress_page
    begun, _ = current().instrumentation.counts()
    elastic.stays = elastic.members is not None and run == 0 and not begun and current().can_regroup
    if not elastic.stays:
        yield
        return
    page.set_flags(WorkerFlags.REGROUPS)
    try:
        yield
    finally:
        page.clear_flags(WorkerFlags.REGROUPS)


def got_sigterm() -> bool:
    """Whether SIGTERM has come to this worker, whose host is about to go away."""
    return WorkerFlags.GOT_SIGTERM in current().progress_page.read().flags


def has_lost_others() -> bool:
    """Whether this worker stays, and an operation of its has failed as others have ended."""
    return ELASTIC.current().stays and current().process_group.is_broken


def regroup() -> bool:
    """Leaves the others, and joins those that the launcher says take part now.

    Returns:
        Whether this process stays in the job; False where it can't, and has done nothing.

    Raises:
        SystemExit: It isn't among them, or got SIGTERM: it has saved, if it was asked to.
        StalledError: The launcher doesn't say who takes part.
    """
    elastic = ELASTIC.current()
    members, page = elastic.members, current().progress_page
    if not elastic.stays or members is None:
        return False
    while True:
        current().close(_LEFT)
        page.set_flags(WorkerFlags.WAITS_FOR_MEMBERS)
        # After it, so that the launcher knows of it when it reads this line.
        _LOG.warning("rank %d waits for tfddlrun to say who takes part", current().cluster.rank)
        variables = members.wait(timeout_s=_WAIT_S).variables
        page.clear_flags(WorkerFlags.WAITS_FOR_MEMBERS)
        if variables is None:
            raise SystemExit(SAVED_STATUS)
        # Until it has joined, the launcher doesn't wait for it to leave again.
        page.clear_flags(WorkerFlags.REGROUPS | WorkerFlags.PREEMPTED)
        try:
            _join(variables)
        except TfddlError as error:
            # Another one has ended meanwhile: the launcher knows, and says who takes part then.
            _LOG.warning("rank %d can't join: %s", current().cluster.rank, error)
            continue
        if elastic.stays:
            page.set_flags(WorkerFlags.REGROUPS)
        return True


def _join(variables: Mapping[str, str]) -> None:
    """Joins the others with what these variables say of them."""
    elastic, sets = ELASTIC.current(), REGISTERED.current()
    os.environ.update(variables)
    runtime = restart(detect(os.environ), secret=read_secret(os.environ))
    forget_functions()
    ELASTIC.hand_over(elastic, runtime)
    REGISTERED.hand_over(sets.anew(), runtime)
    elastic.stays = runtime.can_regroup
    if elastic.store is not None:  # What it has committed is an earlier start's now.
        elastic.store.has_written = False
