"""Who takes part now, as the launcher tells a worker that keeps its process.

When workers are lost, or hosts come and go, those that are left may stay as they are and join the
others anew. Each has a file in memory of its own (a memfd), in which the launcher writes what has
become of the job: the variables of the environment that say so, which a new process would have got.
The file is a `CommitStore`, whose reader never sees half of what is written.

Usage::

    file = MembershipFile.create()                                      # the launcher
    environment[VARIABLE] = str(file.fileno())
    ...
    file.write({"TF_CONFIG": "…"})

    file = find_membership(os.environ)                                  # the worker
    variables = file.wait(timeout_s=60.0)
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping

from tfddl._src import commits
from tfddl.errors import StalledError

VARIABLE = "TFDDL_MEMBERSHIP_FD"

_POLL_S = 0.01


@dataclasses.dataclass(frozen=True)
class Membership:
    """A worker's place in the job.

    Attributes:
        variables: of the environment, which say who takes part; None where this worker doesn't.
    """

    variables: Mapping[str, str] | None


class MembershipFile:
    """What the launcher writes for one worker, each time that the workers change."""

    def __init__(self, fd: int) -> None:
        """Uses an open file of `create`."""
        self._fd = fd
        self._store = commits.CommitStore(fd)
        self._seen = self._store.newest

    @classmethod
    def create(cls) -> MembershipFile:
        """A new file; its descriptor is close-on-exec until it is passed on.

        Raises:
            OSError: no descriptors or no memory are left.
        """
        return cls(commits.create_store())

    def fileno(self) -> int:
        """Its descriptor, to pass on to a child."""
        return self._fd

    def close(self) -> None:
        """Closes it, for the launcher."""
        os.close(self._fd)

    def write(self, variables: Mapping[str, str] | None) -> None:
        """Tells the worker who takes part now.

        Args:
            variables: see `Membership`.

        Raises:
            OSError: no memory is left; what was told before stays.
        """
        told = None if variables is None else dict(variables)
        self._store.write(json.dumps(told).encode())

    def wait(self, *, timeout_s: float) -> Membership:
        """Waits until the launcher has told more than what was returned before.

        Args:
            timeout_s: for how long.

        Raises:
            StalledError: it hasn't.
        """
        until_s = time.monotonic() + timeout_s
        while self._store.newest == self._seen:
            if time.monotonic() > until_s:
                raise StalledError(
                    f"tfddlrun hasn't said for {timeout_s:g} s which workers take part now. HINT: "
                    "its own messages tell what it waits for"
                )
            time.sleep(_POLL_S)
        self._seen = self._store.newest
        return Membership(json.loads(self._store.read()))


def find_membership(environ: Mapping[str, str]) -> MembershipFile | None:
    """The file that the launcher has passed to this process; None where there is none."""
    store_fd = commits.find_fd(environ, VARIABLE)
    return None if store_fd is None else MembershipFile(store_fd)
