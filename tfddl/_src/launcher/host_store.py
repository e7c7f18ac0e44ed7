"""The newest commit of the workers of one host, in memory that outlives them."""

from __future__ import annotations

import os

from tfddl._src import commits
from tfddl._src.commits import CommitStore
from tfddl.errors import LaunchError


class HostStore:
    """The store that the first worker of a host gets: all of a host have the same to keep.

    Attributes:
        fd: its descriptor, of a memfd.
    """

    def __init__(self) -> None:
        """Makes an empty one.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        try:
            self.fd = commits.create_store()
        except OSError as error:
            raise LaunchError(
                f"can't make the memory that commits are kept in: {error.strerror}. HINT: free "
                "memory on this host, or raise its limit (memory.max of a container, ulimit -n)"
            ) from error

    @property
    def newest(self) -> int:
        """The number of the newest whole commit, from 0; -1 where there is none."""
        return CommitStore(self.fd).newest

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes, fewer at its end."""
        return os.pread(self.fd, length, offset)

    def write(self, data: bytes, offset: int) -> None:
        """Takes bytes of another host's store.

        Raises:
            OSError: no memory is left.
        """
        commits.write_all(self.fd, data, offset)

    def close(self) -> None:
        """Closes it; the memory is freed when no worker has it open any more."""
        os.close(self.fd)
