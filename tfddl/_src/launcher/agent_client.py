"""The supervisor's end of the conversation with one host's agent."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence

from tfddl._src.launcher.agent import start_message
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.log_sink import LogSink
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.worker_handle import WorkerHandle


class AgentClient(abc.ABC):
    """Sends orders to the agent of one host, and takes its reports.

    Attributes:
        host: which host; "" for this machine.
        lost: why nothing more is heard of it; None as long as it is reached.
        heard_s: when its last message came (`time.monotonic`).
        num_oom_kills: processes that the kernel of that host has killed when memory ran out.
        limits: those of its agent's cgroups that were reached.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.lost: str | None = None
        self.heard_s = time.monotonic()
        self.num_oom_kills = 0
        self.limits: tuple[str, ...] = ()
        self._workers: dict[int, WorkerHandle] = {}
        self._answers: list[Message] = []

    @abc.abstractmethod
    def fileno(self) -> int:
        """Readable when `turn` has something to take."""

    @abc.abstractmethod
    def send(self, message: Message, data: bytes = b"", /) -> None:
        """Sends an order or a question; nothing where the host is lost."""

    @abc.abstractmethod
    def turn(self, *, is_readable: bool) -> None:
        """Receives what the agent has sent, and sends a heartbeat where that is due.

        To be called at least once within `timeout_s`.

        Raises:
            LaunchError: a worker can't be started.
        """

    @abc.abstractmethod
    def timeout_s(self) -> float:
        """For how many seconds nothing has to be done unless this is readable."""

    @abc.abstractmethod
    def close(self) -> None:
        """Has the agent kill all that it has started, and waits for it. Twice does nothing."""

    def update(self) -> None:  # noqa: B027 - not all agents can be asked without waiting
        """Brings what is known of the workers' progress up to date, where that takes no waiting."""

    def beat(self) -> None:  # noqa: B027 - not needed within a process
        """Sends a heartbeat when it is time; notices that the agent has fallen silent."""

    def ping(self) -> None:  # noqa: B027 - not needed within a process
        """Asks the agent for a heartbeat; without an answer the host is lost."""

    def start(self, plan: ProcessPlan, sinks: Sequence[LogSink]) -> WorkerHandle:
        """Starts a worker there.

        Raises:
            LaunchError: it can't be started, and that is known at once; otherwise `turn` raises it.
        """
        worker = self._workers[plan.worker] = WorkerHandle(plan, sinks, send=self.send)
        self.send(start_message(plan))
        if self.lost is not None:
            worker.lose(self.lost, last_heard_s=self.heard_s)
        return worker

    def take_answer(self) -> Message | None:
        """The oldest answer that hasn't been taken yet."""
        return self._answers.pop(0) if self._answers else None

    def _receive(self, message: Message, data: bytes = b"", /) -> None:
        # Reports name a worker; answers don't, and come in the order of the questions.
        if "worker" in message:
            self.num_oom_kills = max(self.num_oom_kills, message.get("num_oom_kills", 0))
            self.limits = tuple(message.get("limits", self.limits))
            worker = self._workers.get(message["worker"])
            if worker is not None:
                worker.receive(message, data)
        elif message["is"] != "beat":
            self._answers.append({**message, "data": data})

    def _lose_workers(self, why: str) -> None:
        for worker in self._workers.values():
            worker.lose(why, last_heard_s=self.heard_s)
