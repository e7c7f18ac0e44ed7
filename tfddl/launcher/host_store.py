"""What the workers of one host commit, as their agent keeps it; see `keeping`."""

from __future__ import annotations

import os

from tfddl.commits import NAME, CommitStore
from tfddl.errors import LaunchError
from tfddl.launcher.frames import Message


class HostStore:
    """The store that the first worker of a host gets.

    Attributes:
        fd: its descriptor.
    """

    def __init__(self) -> None:
        """Makes an empty one.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self.fd = make_store()

    def tell(self) -> Message:
        """Which commit is the newest that is whole, and how long the store is."""
        newest = CommitStore(self.fd).newest
        return {"is": "commit", "number": newest, "size": os.fstat(self.fd).st_size}

    def give(self, message: Message) -> bytes:
        """A piece of the store."""
        return os.pread(self.fd, message["length"], message["offset"])

    def take(self, message: Message) -> None:
        """Takes a piece of the store of an earlier start."""
        write_all(self.fd, message["data"], message["offset"])


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Writes all of it, at this place."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def make_store() -> int:
    """An empty one, as workers look for it.

    Raises:
        LaunchError: descriptors or memory are used up.
    """
    try:
        return os.memfd_create(f"{NAME}-host")
    except OSError as error:
        raise LaunchError(
            f"can't make the memory that commits are kept in: {error.strerror}"
        ) from error
