"""Which hosts a job may use while it runs: asked again and again, without waiting for answers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from tfddl._src.launcher.hosts import HostSlots, parse_discovered, render_hosts
from tfddl._src.launcher.report import describe_exit
from tfddl._src.launcher.worker_process import die_with_parent
from tfddl.errors import LaunchError

# As often as Horovod's driver (horovod/runner/elastic/driver.py, DISCOVER_HOSTS_FREQUENCY_SECS).
_PERIOD_S = 1.0
_TIMEOUT_S = 60.0
_TAIL_CHARACTERS = 500


class HostDiscovery(Protocol):
    """Says which hosts a job may use: a script, or the API of an engine (Ray, Kubernetes)."""

    def find_hosts(self) -> Mapping[str, int] | None:
        """The hosts, by the names that ssh and the other hosts know, and their numbers of workers.

        It is called several times a second, by the process that supervises workers: it has to
        return at once, with what is known.

        Returns:
            None where nothing is known yet.

        Raises:
            LaunchError: the hosts can't be told now; those that were named before count.
        """

    def pause(self) -> None:
        """Ends what it has started: nobody asks for now, and child processes would be killed."""


class ScriptDiscovery:
    """Runs a command once a second, whose lines are "host:slots" or "host"."""

    def __init__(
        self,
        command: str,
        *,
        default_slots: int = 1,
        period_s: float = _PERIOD_S,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """Begins without having asked.

        Args:
            command: a line for the shell.
            default_slots: of a host without a number.
            period_s: seconds from one start of the command to the next, if it has ended then.
            timeout_s: after so many seconds it is killed, and has failed.
        """
        self._command, self._default_slots = command, default_slots
        self._period_s, self._timeout_s = period_s, timeout_s
        self._run: _Run | None = None
        self._started_s = -math.inf
        self._found: Mapping[str, int] | None = None

    def find_hosts(self) -> Mapping[str, int] | None:
        """What the command has printed last; None until it succeeds. Starts it when it is time.

        Raises:
            LaunchError: it has failed, hasn't ended in time, or has printed what isn't understood.
        """
        now_s = time.monotonic()
        run = self._run
        if run is None:
            if now_s - self._started_s >= self._period_s:
                self._started_s = now_s
                self._run = self._start()
        elif run.has_ended:
            run.end()
            self._found = None
            try:
                self._found = self._parse(run)
            finally:
                self.pause()
        elif now_s - self._started_s > self._timeout_s:
            self.pause()
            self._found = None
            raise LaunchError(
                f"the host discovery script {self._command!r} hasn't ended after "
                f"{self._timeout_s:g} s, and was killed"
            )
        return self._found

    def pause(self) -> None:
        """Kills the command, and what it has started."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def _start(self) -> _Run:
        try:
            return _Run(self._command)
        except OSError as error:
            self._found = None
            raise LaunchError(
                f"can't start the host discovery script {self._command!r}: {error.strerror}"
            ) from error

    def _parse(self, run: _Run) -> Mapping[str, int]:
        where = f"the host discovery script {self._command!r}"
        if how := run.failure():
            raise LaunchError(f"{where} has failed ({how})")
        try:
            return parse_discovered(run.output(), default_slots=self._default_slots)
        except LaunchError as error:
            raise LaunchError(f"{where} has printed what isn't understood: {error}") from None


class _Run:
    """A shell command that runs in the background."""

    def __init__(self, command: str) -> None:
        # Files instead of pipes: nobody has to read them while the command runs.
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
            preexec_fn=die_with_parent(),  # safe: this process has one thread
        )

    @property
    def has_ended(self) -> bool:
        # Not reaped yet: `close` may kill its group, which can't be another's before.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def end(self) -> None:
        """Kills what is left of it, and waits for its end. Twice does nothing."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def output(self) -> str:
        return _read(self._stdout.fileno())

    def failure(self) -> str:
        """How it has failed, with the end of what it wrote to stderr; "" where it hasn't."""
        if not self._process.returncode:
            return ""
        said = _read(self._stderr.fileno()).strip()[-_TAIL_CHARACTERS:]
        return describe_exit(self._process.returncode) + (f": {said}" if said else "")

    def close(self) -> None:
        self.end()
        self._stdout.close()
        self._stderr.close()


class HostWatch:
    """Keeps the newest list of hosts, and logs what changes.

    Attributes:
        hosts: by host, the number of workers; None where nothing is known yet.
        changed_s: when that was found (`time.monotonic`).
    """

    def __init__(self, discovery: HostDiscovery, *, say: Callable[[str], None]) -> None:
        """Begins without a list.

        Args:
            discovery: what is asked.
            say: logs a line.
        """
        self.hosts: Mapping[str, int] | None = None
        self.changed_s = 0.0
        self._discovery, self._say = discovery, say
        self._problem = ""

    def turn(self, now_s: float) -> None:
        """Asks; where that fails the list stays as it is, and the reason is logged once."""
        try:
            found = self._discovery.find_hosts()
            if found is not None:
                self._problem = ""  # The same one would be another one, and is logged again.
            if found is None or found == self.hosts:
                return
            if self.hosts is not None:
                self._say(f"the hosts are now {describe_hosts(found)}")
            self.hosts, self.changed_s = dict(found), now_s
        except LaunchError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                known = "none yet" if self.hosts is None else describe_hosts(self.hosts)
                self._say(f"{error}. The hosts that are known ({known}) count until it succeeds")

    def pause(self) -> None:
        """Ends what the discovery has started."""
        self._discovery.pause()


def describe_hosts(hosts: Mapping[str, int]) -> str:
    """Writes "hostA:2,hostB:4", or "none"."""
    return render_hosts([HostSlots(name, slots) for name, slots in hosts.items()]) or "none"


def _read(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
