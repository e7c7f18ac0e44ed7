"""On one host: the pickled call that its workers make, and their results, in unnamed files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import IO

from tfddl._src import commits

CALL, RESULT = "TFDDL_CALL_FD", "TFDDL_RESULT_FD"
"""In a worker's environment: the descriptors of the call, and of the file for its result."""


class CallFiles:
    """Temporary files that no other user can open, freed with the last process that has them.

    Not memory: a result may be larger than what the host has left beside the workers.
    """

    def __init__(self, call_fd: int | None = None) -> None:
        """Begins without results.

        Args:
            call_fd: the file with the call, where it is on this host; None where it arrives by
                `write_call`.
        """
        self._call_fd = call_fd
        self._files: list[IO[bytes]] = []
        self._results: dict[int, int] = {}

    def write_call(self, data: bytes, offset: int) -> None:
        """Takes a piece of the call.

        Raises:
            OSError: no space is left, or no descriptors.
        """
        if self._call_fd is None:
            self._call_fd = self._open()
        commits.write_all(self._call_fd, data, offset)

    def open_for(self, rank: int) -> dict[str, int]:
        """The descriptors that a worker inherits, by the names of their variables.

        Raises:
            OSError: there is no folder for temporary files, or no descriptors.
        """
        if self._call_fd is None:  # An empty call, which the worker reports.
            self._call_fd = self._open()
        self._results[rank] = self._open()
        return {CALL: self._call_fd, RESULT: self._results[rank]}

    def sizes(self) -> list[tuple[int, int]]:
        """Of each rank that was started here, the bytes of its result."""
        return [(rank, os.fstat(fd).st_size) for rank, fd in self._results.items()]

    def read_result(self, rank: int, *, offset: int, length: int) -> bytes:
        """Some bytes of a rank's result, fewer at its end."""
        return os.pread(self._results[rank], length, offset)

    def close(self) -> None:
        """Frees all that was opened here."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> int:
        file = tempfile.TemporaryFile()
        self._files.append(file)
        return file.fileno()
