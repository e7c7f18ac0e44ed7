"""The agent as a process of its own, at the far end of a connection.

`tfddlrun` starts it on another host, over ssh, and exchanges frames with it by its standard input
and output. When the connection ends, or nothing has been heard for a while, it kills all that
it has started, and exits. SIGTERM (its host is about to go away) makes the workers save, as it does
when it reaches them, or `tfddlrun`.
"""

from __future__ import annotations

import collections
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping

from tfddl import __version__
from tfddl._src.launcher.agent import Agent
from tfddl._src.launcher.environment import inherited
from tfddl._src.launcher.frames import HELLO, Message, Unpacker, pack
from tfddl._src.launcher.guard import guarded
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.system import require_linux
from tfddl._src.launcher.worker_process import adopt_orphans, kill_orphans
from tfddl.errors import LaunchError

BEAT_S = 4.0
"""How often either side sends a heartbeat."""

SILENCE_S = 20.0
"""After so long a silence the other side is taken for lost."""

# How often it is reported how far workers have come.
_PROGRESS_S = 0.5
# Beyond so many bytes that wait to be sent, workers have to wait with their output.
_MOST_WAITING = 1 << 20


class _Outbox:
    """What waits to be written, to a descriptor that never blocks us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: collections.deque[bytes] = collections.deque([HELLO])
        self.num_bytes = len(HELLO)
        os.set_blocking(fd, False)

    def put(self, message: Message, data: bytes = b"") -> None:
        frame = pack(message, data)
        self._waiting.append(frame)
        self.num_bytes += len(frame)

    def flush(self) -> None:
        """Writes what can be written now.

        Raises:
            OSError: nobody will read it any more.
        """
        while self._waiting:
            piece = self._waiting[0]
            try:
                written = os.write(self._fd, piece)
            except BlockingIOError:
                return
            self.num_bytes -= written
            if written == len(piece):
                self._waiting.popleft()
            else:
                self._waiting[0] = piece[written:]


class AgentServer:
    """An agent that serves one connection."""

    def __init__(
        self, *, stdin_fd: int, stdout_fd: int, signals: Signals, environment: Mapping[str, str]
    ) -> None:
        """Greets.

        Args:
            stdin_fd: where orders come from.
            stdout_fd: where reports go.
            signals: wakes us when a worker has ended; SIGINT and SIGHUP end us, and so does SIGTERM
                where no worker can save.
            environment: this host's, to which each worker's is added.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._stdin, self._stdout, self._signals = stdin_fd, stdout_fd, signals
        # poll(2), which also takes what epoll(7) doesn't: a file as standard input or output.
        self._selector = selectors.PollSelector()
        self._agent = Agent(
            self._send, selector=self._selector, environment=environment, store=HostStore()
        )
        self._outbox = _Outbox(stdout_fd)
        self._unpacker = Unpacker()
        self._is_connected = True
        self._was_asked = False
        self._heard_s = self._said_s = self._reported_s = time.monotonic()
        self._selector.register(stdin_fd, selectors.EVENT_READ, self._read_orders)
        self._selector.register(signals, selectors.EVENT_READ, signals.read)
        self._outbox.put({"is": "hello", "version": __version__})
        self._outbox.flush()

    def serve(self) -> None:
        """Executes orders until the connection ends; then kills all that was started."""
        adopt_orphans()
        try:
            while self._turn():
                pass
        except OSError as error:
            sys.stderr.write(f"tfddl agent: the connection was lost: {error.strerror}\n")
        finally:
            # All at once: `kill_orphans` waits for the end of parents before it sees children.
            self._agent.kill_all()
            kill_orphans()

    def _turn(self) -> bool:
        """Waits for something, and does what follows; False once the connection has ended."""
        is_full = self._outbox.num_bytes >= _MOST_WAITING
        self._agent.hold_output(is_full)
        # Only then: a pipe with space is always writable, and poll would return at once for ever.
        if self._outbox.num_bytes:
            self._selector.register(self._stdout, selectors.EVENT_WRITE, self._outbox.flush)
        wait_s = _PROGRESS_S if self._agent.has_workers else BEAT_S / 2
        try:
            self._agent.turn(min(wait_s, self._agent.timeout_s()))
        finally:
            if self._stdout in self._selector.get_map():
                self._selector.unregister(self._stdout)
        now_s = time.monotonic()
        if not self._is_connected or not self._goes_on() or now_s - self._heard_s > SILENCE_S:
            return False
        if now_s - self._reported_s >= _PROGRESS_S and not is_full:
            self._reported_s = now_s
            self._agent.report_progress()
        if now_s - self._said_s >= BEAT_S:
            self._said_s = now_s
            self._outbox.put({"is": "beat"})
        self._outbox.flush()
        return True

    def _read_orders(self) -> None:
        data = os.read(self._stdin, 1 << 16)
        self._is_connected = bool(data)
        self._heard_s = time.monotonic()
        for message, payload in self._unpacker.feed(data):
            self._agent.receive(message, payload)

    def _send(self, message: Message, data: bytes = b"") -> None:
        if message["is"] == "output":
            # Whoever reads that a worker can save may send SIGTERM at once: tfddlrun has to know of
            # it before.
            self._agent.report_progress([message["worker"]])
        self._outbox.put(message, data)

    def _goes_on(self) -> bool:
        """Whether no signal ends us. SIGTERM makes workers save, and then they end the job."""
        for number in self._signals.take_ending():
            is_asked = number == signal.SIGTERM and self._agent.ask_to_save()
            if self._was_asked or not is_asked:
                return False
            self._was_asked = True
        return True


def run() -> None:
    """The entry point on the other host."""
    try:
        require_linux("a host of tfddlrun")
        sys.exit(guarded(_serve, program="tfddl agent"))
    except LaunchError as error:
        sys.exit(f"tfddl agent: {error}")


def _serve(signals: Signals) -> int:
    AgentServer(stdin_fd=0, stdout_fd=1, signals=signals, environment=inherited(os.environ)).serve()
    return 0
