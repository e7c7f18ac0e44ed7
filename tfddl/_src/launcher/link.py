"""The near side of a connection to the agent of one host, and of the workers there."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from tfddl._src.launcher.agent import BEAT_S, PATIENCE_S, plan_message
from tfddl._src.launcher.attendance import FarAttendance
from tfddl._src.launcher.display import Sink
from tfddl._src.launcher.frames import FrameError, Message, Unpacker, pack
from tfddl._src.launcher.handle import Handle
from tfddl._src.launcher.output import Outlet
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.ssh import SshOptions, agent_argv, boot_line, explain_end
from tfddl._src.launcher.system import is_readable, is_writable
from tfddl._src.launcher.worker import die_with_parent
from tfddl.errors import LaunchError

LOST = 255
"""The exit code of a worker whose host is lost, as ssh ends where the connection does."""

# For an agent to take anything of what it is sent.
_SEND_S = 10.0
# For an agent to say that it is still there.
_ANSWER_S = 5.0
# For an agent to kill what it has started, then for its connection to end.
_FAREWELL_S, _END_S = 5.0, 1.0
_TAIL_BYTES = 4000


class Link:
    """A connection to the agent of one host.

    Attributes:
        host: which host.
        greeting: what the agent said first; None until then.
        lost: why the connection has ended; None as long as it hasn't.
        num_oom_kills: processes that the kernel of that host has ended for want of memory.
        limits: those of its agent's cgroups that were reached.
        heard_s: when the agent said something last (`time.monotonic`).
    """

    def __init__(self, host: str, options: SshOptions, *, is_here: bool) -> None:
        """Begins to connect.

        Args:
            host: the name by which ssh finds it.
            options: how hosts are reached.
            is_here: whether it is this machine, for which no ssh is needed.

        Raises:
            LaunchError: there is no such program as ssh.
        """
        self.host = host
        self.greeting: Message | None = None
        self.lost: str | None = None
        self.num_oom_kills = 0
        self.limits: tuple[str, ...] = ()
        self._options = options
        self._unpacker = Unpacker(greeted=False)
        self._workers: dict[int, RemoteWorker] = {}
        self._answers: list[Message] = []
        self.heard_s = self._said_s = time.monotonic()
        self._asked_s = 0.0
        self._hung_up_s: float | None = None
        self._stderr = tempfile.TemporaryFile()
        argv = agent_argv(options, None if is_here else host)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C is for us to pass on
                # An agent here notices our end, and clears up; ssh might wait for the far side.
                preexec_fn=None if is_here else die_with_parent(),  # safe: we have one thread
            )
        except OSError as error:
            self._stderr.close()
            raise LaunchError(f"can't start {argv[0]!r}: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._write(boot_line())

    def fileno(self) -> int:
        """Readable when the agent has said something, or the connection has ended."""
        return self._stdout.fileno()

    def send(self, message: Message, data: bytes = b"") -> None:
        """Tells the agent something; nothing if the connection has ended."""
        self._write(pack(message, data))

    def pump(self) -> bool:
        """Takes what the agent has said; False at the end of the connection."""
        data = os.read(self.fileno(), 1 << 18)
        try:
            frames = self._unpacker.feed(data)
        except FrameError as error:
            self._lose(f"what {self.host} says isn't understood: {error}")
            return False
        if not data:
            self._lose(None)
            return False
        self.heard_s = time.monotonic()
        for message, payload in frames:
            self._receive(message, payload)
        return True

    def beat(self) -> None:
        """Says that we are here, when it is time; notices that the agent isn't any more.

        To be called at least every `BEAT_S` seconds once the agent has greeted.
        """
        now_s = time.monotonic()
        if now_s - self._said_s >= BEAT_S:
            self._said_s = now_s
            self.send({"do": "beat"})
        if self.lost is None and self._is_overdue(now_s):
            # Unless it is we who have slept.
            if is_readable(self, within_s=0):
                self.heard_s = now_s
            else:
                silence_s = now_s - self.heard_s
                self._lose(f"nothing was heard from {self.host} for {silence_s:.0f} s")

    def ask_for_sign(self) -> None:
        """Makes the agent say at once that it is still there; without an answer it is lost."""
        self._asked_s = time.monotonic()
        self.send({"do": "beat"})

    def _is_overdue(self, now_s: float) -> bool:
        """Whether the agent should have said something long ago."""
        if self.heard_s < self._asked_s and now_s - self._asked_s > _ANSWER_S:
            return True
        return now_s - self.heard_s > PATIENCE_S

    def take_answer(self) -> Message | None:
        """The oldest answer that hasn't been taken yet."""
        return self._answers.pop(0) if self._answers else None

    def start(self, plan: ProcessPlan, sinks: Sequence[Sink]) -> RemoteWorker:
        """Starts a worker there."""
        worker = self._workers[plan.rank] = RemoteWorker(plan, sinks, link=self)
        self.send(plan_message(plan))
        return worker

    def forget(self, rank: int) -> None:
        """Takes no more from a worker."""
        self._workers.pop(rank, None)

    def why_silent(self) -> str:
        """Says that the agent hasn't greeted, and what came in its place."""
        said = (self._unpacker.preamble or b"").decode(errors="replace").strip()
        if said:
            return f"{self.host} says {said[-200:]!r}, but no agent answers there"
        return f"{self.host} doesn't answer"

    def hang_up(self) -> float:
        """Ends the connection; the agent then kills what it has started, and ends.

        Returns:
            When that was first asked for (`time.monotonic`).
        """
        if self._hung_up_s is None:
            self._hung_up_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        return self._hung_up_s

    def close(self) -> None:
        """Ends the connection, and waits for its end. Again it does nothing."""
        if self._stdout.closed:
            return
        # One that has never greeted has nothing to clear away.
        deadline = self.hang_up() + (0.0 if self.greeting is None else _FAREWELL_S)
        while self.lost is None and time.monotonic() < deadline:
            # What it still says must not keep it from ending.
            if is_readable(self, within_s=0.1) and not os.read(self.fileno(), 1 << 18):
                break
        self._end_process(wait_s=0.0 if self.greeting is None else _END_S)
        self._stdout.close()
        self._stderr.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        deadline = time.monotonic() + _SEND_S
        while rest and self.lost is None and not self._stdin.closed:
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
                deadline = time.monotonic() + _SEND_S  # slow isn't lost
            except BlockingIOError:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    self._lose(f"{self.host} takes no more orders")
                    return
                is_writable(self._stdin, within_s=left_s)
            except BrokenPipeError:
                return  # the other direction ends too, and is where it is noticed

    def _receive(self, message: Message, data: bytes) -> None:
        kind = message["is"]
        if kind == "hello":
            self.greeting = message
        elif "rank" in message:
            self.num_oom_kills = max(self.num_oom_kills, message.get("num_oom_kills", 0))
            self.limits = tuple(message.get("limits", self.limits))
            worker = self._workers.get(message["rank"])
            if worker is not None:
                worker.receive(message, data)
        elif kind != "beat":
            self._answers.append({**message, "data": data})

    def _lose(self, why: str | None) -> None:
        if self.lost is None:
            self.lost = why or "?"  # nothing more is sent from here on
            self._end_process(wait_s=_END_S)
            if why is None and self.greeting is not None:
                said = f": {self._tail()[-1].strip()}" if self._tail() else ""
                self.lost = f"the connection to {self.host} has ended{said}"
            elif why is None:
                self.lost = explain_end(
                    self.host,
                    self._options,
                    returncode=self._process.returncode,
                    stderr_lines=self._tail(),
                )

    def _end_process(self, *, wait_s: float) -> None:
        self.hang_up()
        try:
            self._process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _tail(self) -> list[str]:
        size = os.fstat(self._stderr.fileno()).st_size
        data = os.pread(self._stderr.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return [line for line in data.decode(errors="replace").splitlines() if line.strip()]


class RemoteStream:
    """One of the outputs of a worker on another host."""

    def __init__(self, sink: Sink) -> None:
        self.is_open = True
        self._sink = sink

    def take(self, data: bytes) -> None:
        """Passes on what came."""
        if self.is_open:
            self._sink.take(data)

    def close(self) -> None:
        """There will be no more."""
        if self.is_open:
            self.is_open = False
            self._sink.finish()


class RemoteWorker(Handle):
    """A worker on another host, of which `Link.pump` tells what its agent says."""

    streams: Sequence[RemoteStream]
    attendance: FarAttendance
    drain_s = math.inf  # the agent closes its outputs

    def __init__(self, plan: ProcessPlan, sinks: Sequence[Sink], *, link: Link) -> None:
        super().__init__(plan.rank, sinks, attendance=FarAttendance(self._order), host=link.host)
        self.streams = tuple(RemoteStream(sink) for sink in sinks)
        self._link = link
        self._reported: int | None = None

    def receive(self, message: Message, data: bytes) -> None:
        """Takes what the agent says of it.

        Raises:
            LaunchError: it can't be started.
        """
        kind = message["is"]
        if kind == "output":
            self._stream(message).take(data)
        elif kind == "closed":
            self._stream(message).close()
        elif kind == "progress":
            self.attendance.receive(message)
        elif kind == "ended":
            self._reported = message["returncode"]
        elif kind == "refused":
            raise LaunchError(f"on {self.host}, {message['why']}")

    def look(self) -> bool:
        """Whether it has just been found to have ended, or to be lost with its host."""
        if self.ended_s is not None:
            return False
        if self._reported is None and self._link.lost is None:
            return False
        self.ended_s = time.monotonic()
        if self._reported is None:
            self.lost = self._link.lost
            self.returncode = LOST
            for stream in self.streams:
                stream.close()
        else:
            self.returncode = self._reported
        return True

    def was_lost_before(self, when_s: float) -> bool:
        """Whether it is lost with its host, from which nothing was heard after this moment."""
        return self.lost is not None and self._link.heard_s < when_s

    def reap(self) -> None:
        """Kills what is left of its group, and takes leave of it."""
        self._order("reap")
        self._link.forget(self.rank)
        for stream in self.streams:
            stream.close()

    def _send(self, number: signal.Signals) -> None:
        self._link.send({"do": "signal", "rank": self.rank, "number": int(number)})

    def _order(self, what: str) -> None:
        self._link.send({"do": what, "rank": self.rank})

    def _stream(self, message: Message) -> RemoteStream:
        return self.streams[list(Outlet).index(Outlet(message["outlet"]))]
