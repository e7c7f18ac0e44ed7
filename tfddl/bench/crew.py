"""A job of workers that stay, and do what they are told when it is their turn."""

import contextlib
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

from tfddl.bench.channel import Channel, MessageError
from tfddl.bench.entrance import Entrance
from tfddl.bench.ground import Ground, Team
from tfddl.bench.orders import End, Hello, Order
from tfddl.errors import LaunchError

_ANSWER_S = 900.0
_END_S = 20.0
_LOOK_S = 0.2
_TAIL_LINES = 40


class Crew:
    """Some workers of one way, each a process, on whatever hosts.

    Usage::

        team = ground.team(2)
        with Crew("ring", team=team, ground=ground, environment=os.environ, directory=d) as crew:
            called = crew.ask(Call(…))      # what each rank answers, in rank order

    Several crews take turns: whoever isn't asked sleeps.
    """

    def __init__(
        self,
        way: str,
        *,
        team: Team,
        ground: Ground,
        environment: Mapping[str, str],
        directory: Path,
    ) -> None:
        """Prepares to start.

        Args:
            way: See `tfddl.bench.orders`.
            team: How many workers, and where.
            ground: What they start on.
            environment: What they inherit.
            directory: For the socket and the output, readable for nobody else. Crews may share it.
        """
        self.way, self.team = way, team
        self.hellos: tuple[Hello, ...] = ()
        self.launched_s = 0.0
        """When it was started, by `time.monotonic`."""
        self._ground, self._directory = ground, directory
        self._environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}
        self._log = directory / f"{secrets.token_hex(4)}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: list[Channel] = []

    @property
    def label(self) -> str:
        """How tables call it: the name of what moves its tensors."""
        return self.hellos[0].label

    @property
    def launcher_pid(self) -> int:
        """The process of this machine that looks after them."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        """Starts the workers, and waits until all are there.

        Raises:
            LaunchError: They don't come.
        """
        try:
            with self._ground.open_entrance(self._directory, self.team) as entrance:
                self._start(entrance)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Ends the workers: orders them to, or kills them where something went wrong."""
        try:
            if kind is None:
                self.ask(End(), timeout_s=_END_S)
                self._wait_for_end()
        finally:
            self._kill()

    def ask(self, order: Order, *, timeout_s: float = _ANSWER_S) -> list[Any]:
        """Gives all workers an order.

        Returns:
            Their answers, in rank order.

        Raises:
            LaunchError: One of them died, or there was no answer in time.
        """
        with contextlib.suppress(OSError):  # Of who has died; the answers are missing then, too.
            for channel in self._channels:
                channel.send(order)
        answers: dict[int, Any] = {}
        deadline_s = time.monotonic() + timeout_s
        while missing := [rank for rank in range(self.team.size) if rank not in answers]:
            ready = wait([self._channels[rank].fileno() for rank in missing], timeout=_LOOK_S)
            if not ready:
                self._check_answers(missing, order, is_late=time.monotonic() > deadline_s)
            for rank in missing:
                if self._channels[rank].fileno() in ready:
                    answers[rank] = self._take(self._channels[rank], self.team.name(rank))
        return [answers[rank] for rank in range(self.team.size)]

    def _check_answers(self, missing: list[int], order: Order, *, is_late: bool) -> None:
        names = ", ".join(map(self.team.name, missing))
        if self._has_ended():  # A host that is cut off never closes its connections.
            raise self._error(f"the job has ended, and {names} with it")
        if is_late:
            raise self._error(f"{names} didn't answer {order} in time")

    def _start(self, entrance: Entrance) -> None:
        worker = ["-m", "tfddl.bench.worker", f"--connect={entrance.name}", f"--way={self.way}"]
        self.launched_s = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.team.command, *worker],
                env={**self._environment, **entrance.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # A Ctrl-C is ours, and we end it.
            )
        while len(self._channels) < self.team.size:
            channel = entrance.accept(wait_s=_LOOK_S)
            if channel is None:
                self._check_start()
            else:
                self._channels.append(channel)
        hellos = [self._hear(channel) for channel in self._channels]
        ranks = sorted(hello.rank for hello in hellos)
        if ranks != list(range(self.team.size)):
            raise self._error(f"workers came as ranks {ranks}; expected each of them once")
        by_rank = sorted(zip(hellos, self._channels, strict=True), key=lambda p: p[0].rank)
        self.hellos = tuple(hello for hello, _ in by_rank)
        self._channels = [channel for _, channel in by_rank]

    def _hear(self, channel: Channel) -> Hello:
        while not channel.poll(_LOOK_S):
            self._check_start()
        hello = self._take(channel, "a worker that was to start")
        if not isinstance(hello, Hello):
            raise self._error(f"a worker began with {hello}, not with a greeting")
        return hello

    def _take(self, channel: Channel, who: str) -> Any:
        """What a worker says."""
        try:
            return channel.recv()
        except MessageError as error:
            raise self._error(f"{who} says what isn't understood: {error}") from None
        except (EOFError, OSError):
            raise self._error(f"{who} has gone") from None

    def _check_start(self) -> None:
        if self._has_ended():
            raise self._error("the job ended before it had started")
        if time.monotonic() > self.launched_s + self._ground.start_s:
            raise self._error(f"not all were there after {self._ground.start_s:.0f} s")

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _error(self, why: str) -> LaunchError:
        """Waits for the job's own report of what went wrong, and passes it on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(_END_S)
        lines = self._log.read_text(errors="replace").splitlines()
        said = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    nothing"
        # It needn't be the one that we miss first.
        hint = ", and at the end who failed first" if self.team.is_launched else ""
        return LaunchError(
            f"{self.team.size} workers ({self.way}): {why}. They said{hint}:\n{said}"
        )

    def _wait_for_end(self) -> None:
        assert self._process is not None
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return  # TensorFlow's threads now and then don't end; nothing is lost by killing them.
        if status:
            raise self._error(f"the job ended with status {status}")

    def _kill(self) -> None:
        """Ends what still lives: `tfddlrun`, asked to end, kills its workers."""
        for channel in self._channels:
            channel.close()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM if self.team.is_launched else signal.SIGKILL)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.unlink(missing_ok=True)
        self._channels, self.hellos = [], ()
