"""What the workers of one host commit, as their agent keeps it; see `keeping`."""

from __future__ import annotations

import os

from tfddl._src.commits import CommitStore, write_all
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.memory import make_store


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
