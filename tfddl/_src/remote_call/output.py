"""The workers' output, in the process that has called them: a script, or a notebook."""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import sys
from typing import TextIO

_LOG = logging.getLogger("tfddl")


class LauncherOutput:
    """What the launcher writes, which is shown by the calling thread.

    Notebooks show below a cell what its own thread writes to `sys.stdout`; other threads' output,
    and what is written to descriptor 1, may appear elsewhere.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._selector = selectors.DefaultSelector()
        for pipe, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, _LineWriter(target))

    def copy(self) -> None:
        """Copies lines until both pipes are closed; goes on after a KeyboardInterrupt."""
        while self._selector.get_map():
            for key, _ in self._selector.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    self._selector.unregister(key.fileobj)
                key.data.take(data)
        self._selector.close()


class _LineWriter:
    """Writes whole lines; goes on where they can't be written: a full pipe would block workers."""

    def __init__(self, target: TextIO | None) -> None:
        self._target, self._rest = target, b""
        self._is_lost = target is None

    def take(self, data: bytes) -> None:
        """Writes the lines that are complete; no data is the end."""
        lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
        text = lines + newline
        if not data:
            text, self._rest = text + self._rest, b""
        if not text or self._target is None:
            return
        try:
            self._target.write(text.decode(errors="replace"))
            self._target.flush()
        except (OSError, ValueError) as error:  # A full disk; a file that was closed.
            if not self._is_lost:
                _LOG.error("output of the workers can't be written and is dropped: %s", error)
            self._is_lost = True
