"""A connection to the agent of another host, through ssh or srun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time

from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.agent_server import BEAT_S, SILENCE_S
from tfddl._src.launcher.agent_starter import AgentStarter, agent_argv, bootstrap_line
from tfddl._src.launcher.frames import FrameError, Message, Unpacker, pack
from tfddl._src.launcher.system import is_readable, is_writable
from tfddl._src.launcher.worker_process import die_with_parent
from tfddl.errors import LaunchError

# For an agent to read any of what it is sent.
_SEND_S = 10.0
# For an agent to answer a ping.
_ANSWER_S = 5.0
# For an agent to kill what it has started, then for its connection to end.
_KILL_S, _END_S = 5.0, 1.0
_TAIL_BYTES = 4000


class RemoteAgentClient(AgentClient):
    """Exchanges frames with an agent process by its standard input and output.

    Attributes:
        greeting: the first message of the agent; None until then.
    """

    def __init__(self, host: str, starter: AgentStarter, *, is_here: bool) -> None:
        """Begins to connect; the agent has greeted when `greeting` is there.

        Args:
            host: the name by which ssh, or Slurm, knows it.
            starter: how hosts are reached.
            is_here: whether it is this machine, where the agent is a child of this process.

        Raises:
            LaunchError: there is no such program as ssh, or srun.
        """
        super().__init__(host)
        self.greeting: Message | None = None
        self._starter = starter
        self._unpacker = Unpacker(greeted=False)
        self._said_s = self.heard_s
        self._asked_s = 0.0
        self._hung_up_s: float | None = None
        self._stderr = tempfile.TemporaryFile()
        argv = agent_argv(starter.remote_python) if is_here else starter.argv(host)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C is for us to pass on
                # An agent here notices our end, and kills its workers; ssh or srun might
                # wait for the far side.
                preexec_fn=None if is_here else die_with_parent(),  # safe: we have one thread
            )
        except OSError as error:
            self._stderr.close()
            hint = "--remote-python names another Python" if is_here else starter.hint
            raise LaunchError(f"can't start {argv[0]!r}: {error.strerror}. HINT: {hint}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        # A full pipe must not keep us from noticing what else happens for longer than _SEND_S.
        os.set_blocking(self._stdin.fileno(), False)
        self._write(bootstrap_line())

    def fileno(self) -> int:
        """Readable when the agent has sent something, or the connection has ended."""
        return self._stdout.fileno()

    def send(self, message: Message, data: bytes = b"", /) -> None:
        """Sends a frame; an agent that takes none for 10 s is lost."""
        self._write(pack(message, data))

    def turn(self, *, is_readable: bool) -> None:
        """Receives what the agent has sent, and sends a heartbeat where that is due."""
        if is_readable and self.lost is None:
            self._read()
        self.beat()
        # Not where the loss is noticed: that may be while the console waits for its reader, in the
        # middle of a line, and losing a worker shows what it had begun to write.
        if self.lost is not None:
            self._lose_workers(self.lost)

    def timeout_s(self) -> float:
        """Until the next heartbeat is due."""
        return BEAT_S / 2

    def beat(self) -> None:
        """Sends a heartbeat when it is time; notices that the agent has fallen silent.

        To be called at least every `BEAT_S` seconds. Before the agent has greeted it does nothing.
        """
        if self.greeting is None:
            return
        now_s = time.monotonic()
        if now_s - self._said_s >= BEAT_S:
            self._said_s = now_s
            self.send({"do": "beat"})
        if self.lost is None and self._is_overdue(now_s):
            # Unless it is this process that was stopped meanwhile.
            if is_readable(self, within_s=0):
                self.heard_s = now_s
            else:
                silence_s = now_s - self.heard_s
                self._lose(f"nothing was heard from {self.host} for {silence_s:.0f} s")

    def ping(self) -> None:
        """Asks the agent for a heartbeat; without an answer within 5 s the host is lost."""
        self._asked_s = time.monotonic()
        self.send({"do": "beat"})

    def _is_overdue(self, now_s: float) -> bool:
        """Whether the agent has been silent for too long."""
        if self.heard_s < self._asked_s and now_s - self._asked_s > _ANSWER_S:
            return True
        return now_s - self.heard_s > SILENCE_S

    def why_silent(self) -> str:
        """A message that the agent hasn't greeted, with what came instead."""
        said = (self._unpacker.preamble or b"").decode(errors="replace").strip()
        if said:
            return f"{self.host} writes {said[-200:]!r} instead of an agent's greeting"
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
        """Ends the connection, and waits for its end. Twice does nothing."""
        if self._stdout.closed:
            return
        # One that has never greeted has started nothing.
        deadline = self.hang_up() + (0.0 if self.greeting is None else _KILL_S)
        while self.lost is None and time.monotonic() < deadline:
            # Its output has to be read, or it blocks and never ends.
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
                    self._lose(f"{self.host} has taken no message for 10 s")
                    return
                is_writable(self._stdin, within_s=left_s)
            except BrokenPipeError:
                return  # the other direction ends too, and is where it is noticed

    def _read(self) -> None:
        # Not the rest of a frame, which might take long to come: `Unpacker` keeps parts.
        data = os.read(self.fileno(), 1 << 18)
        try:
            frames = self._unpacker.feed(data)
        except FrameError as error:
            self._lose(f"{self.host} has sent what is no frame: {error}")
            return
        if not data:
            self._lose(None)
            return
        self.heard_s = time.monotonic()
        for message, payload in frames:
            if self.lost is not None:  # Noticed while a frame before was shown.
                return
            if message["is"] == "hello":
                self.greeting = message
            else:
                self._receive(message, payload)

    def _lose(self, why: str | None) -> None:
        if self.lost is not None:
            return
        self.lost = why or "?"  # nothing more is sent from here on
        self._end_process(wait_s=_END_S)
        if why is None and self.greeting is not None:
            said = f": {self._tail()[-1].strip()}" if self._tail() else ""
            self.lost = f"the connection to {self.host} has ended{said}"
        elif why is None:
            self.lost = self._starter.explain_end(
                self.host,
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
