"""What outlives this process, if the launcher has given it anything, and how often it was used."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from tfddl._src import commits
from tfddl._src.callbacks.preemption import Preemption
from tfddl._src.commits import CommitStore
from tfddl._src.horovod.exceptions import RestartRequestedError
from tfddl._src.membership import MembershipFile, find_membership
from tfddl._src.runtime import PerRuntime, current


@dataclasses.dataclass
class _Elastic:
    store: CommitStore | None = None
    runs: int = 0
    """How many times `elastic.run` has been begun in this process."""

    hosts_may_change: bool = False
    members: MembershipFile | None = None
    """Where the launcher says who takes part, if it lets workers stay when others change."""

    stays: bool = False
    """Whether this process can stay then; within `elastic.run`."""

    preemption: Preemption | None = None
    """Within `elastic.run`, where the launcher may start the job again on other hosts."""


ELASTIC = PerRuntime(lambda _: _Elastic())


def find_store(environ: Mapping[str, str]) -> None:
    """Takes up the store that the launcher has given this process, if it has."""
    elastic = ELASTIC.current()
    if elastic.store is None and not current().is_child:
        elastic.store = commits.find_store(environ)
        elastic.members = elastic.members or find_membership(environ)
        elastic.hosts_may_change = bool(environ.get(commits.ELASTIC))


def commit_store() -> CommitStore | None:
    """The store; None where there is none, and in a forked child: it is the worker's."""
    return None if current().is_child else ELASTIC.current().store


@contextlib.contextmanager
def taking_requests() -> Iterator[None]:
    """A context in which the launcher, or SIGTERM, may ask this process to save and end."""
    elastic = ELASTIC.current()
    if not elastic.hosts_may_change or current().is_child:
        yield
        return
    preemption = elastic.preemption = Preemption()
    # The launcher alone keeps commits: a job that ends has none.
    preemption.listen(outlives_job=False)
    handled = False
    try:
        yield
    except RestartRequestedError:
        preemption.report()
        handled = preemption.got_sigterm or not elastic.stays
        raise
    finally:
        elastic.preemption = None
        preemption.stop_listening(handled=handled)


def current_preemption() -> Preemption | None:
    """That of `taking_requests`; None elsewhere, on all ranks alike."""
    return None if current().is_child else ELASTIC.current().preemption


def count_run() -> int:
    """Which call of `elastic.run` begins, counted from 0."""
    elastic = ELASTIC.current()
    elastic.runs += 1
    return elastic.runs - 1
