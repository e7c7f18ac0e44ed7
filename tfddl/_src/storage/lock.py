"""A lock on a directory in a store: one job at a time writes its checkpoints there.

Stores have no flock(2), and `tf.io.gfile` has no conditional write. The lock is a file with a token
of its holder, who writes it anew every 30 s, and reads it before each save:

* A job that finds a lock waits. Where the holder is a process of this machine, until that has
  ended, for 5 s at most; elsewhere, until the lock is seen to be renewed (then the job is refused),
  or hasn't been for 2 minutes (then its holder is lost, and the job takes the lock).
* A holder that finds another token has lost its lock (it was stopped, or cut off from the store,
  for 2 minutes), and doesn't save any more.

Two jobs that start in the same moment may both find no lock. The one that writes last has it; the
other notices at its next save. Files are written whole in any case.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from tfddl._src.directory_lock import describe_holder, in_use
from tfddl._src.launcher.interfaces import machine_id
from tfddl._src.storage.path import RemoteError, RemoteNotFoundError, RemotePath
from tfddl.errors import CheckpointError

_LOG = logging.getLogger("tfddl")
_NAME = ".lock"
_RENEW_S = 30.0
_LOST_S = 120.0
# A process that has been killed may need a moment to end.
_SAME_MACHINE_S = 5.0
_POLL_S = 1.0


@dataclasses.dataclass
class _Lease:
    """A lock that this process holds."""

    path: RemotePath
    token: str
    count: int = 1
    """How many `RemoteLock` share it."""

    renewals: int = 0
    renewer: threading.Thread | None = None
    released: threading.Event = dataclasses.field(default_factory=threading.Event)

    def write(self) -> None:
        """Writes the file, with a content that it never had."""
        self.renewals += 1
        self.path.write_bytes(json.dumps({**_this_process(), **self._mark()}).encode())

    def _mark(self) -> dict[str, object]:
        return {"token": self.token, "renewals": self.renewals}

    def find_other(self) -> dict[str, object] | None:
        """The other holder, if the lock has been taken from this one."""
        holder = _parse(_read(self.path))
        # Without a token it was removed, or is being written.
        return None if holder.get("token") in (None, self.token) else holder

    def renew(self) -> None:
        """Writes the file again and again, until the lock is released or lost."""
        warned = False
        while not self.released.wait(_RENEW_S):
            try:
                if self.find_other() is not None:
                    return
                self.write()
            except RemoteError as error:
                if not warned:
                    _LOG.warning(
                        "the lock on the checkpoints can't be renewed; in %.0f s another job may "
                        "take it: %s",
                        _LOST_S,
                        error,
                    )
                warned = True

    def end(self) -> None:
        """Removes the file, unless it is another job's by now.

        Raises:
            RemoteError: The store can't be reached.
        """
        self.released.set()
        if self.renewer is not None:
            self.renewer.join(_RENEW_S)  # It would write the file again.
            if self.renewer.is_alive():
                raise RemoteError(f"{self.path}: the store hasn't answered for {_RENEW_S:.0f} s")
        if self.find_other() is None:
            self.path.unlink(missing_ok=True)


_held: dict[str, _Lease] = {}
"""By the URL of the directory."""


class RemoteLock:
    """The lock of one directory in a store. It is reentrant within a process."""

    is_held = True

    def __init__(self, directory: RemotePath) -> None:
        """Acquires the lock.

        Raises:
            CheckpointError: Another job holds it.
            RemoteError: The store can't be read or written.
        """
        self._url: str | None = directory.url
        lease = _held.get(directory.url)
        if lease is not None:
            lease.count += 1
            return
        path = directory / _NAME
        _wait_until_free(path, directory)
        lease = _Lease(path, secrets.token_hex(8))
        lease.write()
        # No process waits for it at its end, and a killed one leaves the lock as it is.
        lease.renewer = threading.Thread(target=lease.renew, name="tfddl-lock", daemon=True)
        lease.renewer.start()
        _held[directory.url] = lease

    def release(self) -> None:
        """Releases the lock; does nothing where it isn't held."""
        url, self._url = self._url, None
        lease = None if url is None else _held.get(url)
        if url is None or lease is None:
            return
        lease.count -= 1
        if lease.count:
            return
        del _held[url]
        try:
            lease.end()
        except RemoteError as error:
            _LOG.warning("a lock stays, and may make the next job wait %.0f s: %s", _LOST_S, error)


def check_held(directory: RemotePath) -> None:
    """Refuses to write to a directory whose lock this process had, and has lost.

    Raises:
        CheckpointError: It has.
        RemoteError: The store can't be read.
    """
    lease = _held.get(directory.url)
    other = None if lease is None else lease.find_other()
    if other is not None:
        raise CheckpointError(
            f"{directory} is now in use by another job: {describe_holder(other)}. This job's lock "
            f"wasn't renewed for {_LOST_S:.0f} s, or both have started in the same moment. It "
            "saves no more. HINT: give each training its own directory, and run this one again."
        )


def _wait_until_free(path: RemotePath, directory: RemotePath) -> None:
    begin_s, machine = time.monotonic(), _machine()
    first = _read(path)
    warned = False
    while (found := _read(path)) is not None:
        holder = _parse(found)
        is_here = bool(machine) and holder.get("machine") == machine
        waited_s = time.monotonic() - begin_s
        if is_here and not _is_running(holder):
            return
        if (waited_s > _SAME_MACHINE_S) if is_here else (found != first):
            raise in_use(directory, holder)
        if waited_s > _LOST_S:
            return
        if not is_here and not warned:
            warned = True
            _LOG.warning(
                "%s is in use by %s. Waiting %.0f s, in case that job is lost",
                directory,
                describe_holder(holder),
                _LOST_S,
            )
        time.sleep(_POLL_S)


def _this_process() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _machine() -> str:
    """Where a process id means the same process; empty where there is no /proc (macOS)."""
    try:
        return f"{machine_id()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in ticks since boot; empty where there is none, or it has ended.

    A process id alone may be another process by now: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_running(holder: dict[str, object]) -> bool:
    """Whether the holder still runs, as another process of this machine."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid == os.getpid():  # What this one holds is in _held.
        return False
    return _started(pid) == holder.get("started")


def _read(path: RemotePath) -> bytes | None:
    try:
        return path.read_bytes()
    except RemoteNotFoundError:
        return None


def _parse(content: bytes | None) -> dict[str, object]:
    """Empty where there is none, or it is being written, or no tfddl has written it."""
    try:
        holder = json.loads(content or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


os.register_at_fork(after_in_child=_held.clear)  # The lock is the parent's, which renews it.
