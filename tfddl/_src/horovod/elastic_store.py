"""What outlives this process, if the launcher has given it anything, and how often it was used."""

import dataclasses
from collections.abc import Mapping

from tfddl._src import commits
from tfddl._src.commits import CommitStore
from tfddl._src.runtime import PerRuntime, current


@dataclasses.dataclass
class _Elastic:
    store: CommitStore | None = None
    runs: int = 0
    """How many times `elastic.run` has been begun in this process."""

    hosts_may_change: bool = False


ELASTIC = PerRuntime(lambda _: _Elastic())


def find_store(environ: Mapping[str, str]) -> None:
    """Takes up the store that the launcher has given this process, if it has."""
    elastic = ELASTIC.current()
    if elastic.store is None and not current().is_child:
        elastic.store = commits.find_store(environ)
        elastic.hosts_may_change = bool(environ.get(commits.ELASTIC))


def commit_store() -> CommitStore | None:
    """The store; None where there is none, and in a forked child: it is the worker's."""
    return None if current().is_child else ELASTIC.current().store


def hosts_may_change() -> bool:
    """Whether the launcher may start this job again on other hosts; the same on all ranks."""
    return not current().is_child and ELASTIC.current().hosts_may_change


def count_run() -> int:
    """Which call of `elastic.run` begins, counted from 0."""
    elastic = ELASTIC.current()
    elastic.runs += 1
    return elastic.runs - 1
