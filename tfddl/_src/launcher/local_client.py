"""The agent of this machine, in the supervisor's own process.

The supervisor is the inner of the two processes that `guard` makes, and neither can die without the
other leaving nothing behind. An agent in a process of its own would be a third one to protect, and
would have to be stopped, continued and signalled with them.
"""

from __future__ import annotations

import selectors

from tfddl._src.launcher.agent import Agent
from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.worker_process import adopt_orphans, kill_orphans


class LocalAgentClient(AgentClient):
    """Passes messages to an agent in this process, which answers at once."""

    def __init__(self, *, signals: Signals, store: HostStore, call_fd: int | None = None) -> None:
        """Begins without workers. The process must have no other children and no threads.

        Args:
            signals: readable when a worker may have ended; read by the supervisor.
            store: where workers keep commits, from one start to the next.
            call_fd: the file with the function call that they make, if they do.
        """
        super().__init__("")
        adopt_orphans()
        # epoll(7) is itself a descriptor that can be waited for: one per host for the supervisor.
        # SIGCHLD makes it readable, too; it is the supervisor that reads the signals.
        self._selector = selectors.EpollSelector()
        self._selector.register(signals, selectors.EVENT_READ, lambda: None)
        # A worker's plan holds its whole environment already.
        self._agent = Agent(
            self._receive,
            selector=self._selector,
            environment={},
            store=store,
            call_fd=call_fd,
        )

    def fileno(self) -> int:
        """Readable when a worker has written something, or may have ended."""
        return self._selector.fileno()

    def send(self, message: Message, data: bytes = b"", /) -> None:
        """Has the agent do it now."""
        self._agent.receive(message, data)

    def turn(self, *, is_readable: bool) -> None:
        """Takes what workers have written, and notices which have ended."""
        self._agent.turn()

    def timeout_s(self) -> float:
        """Until a worker that has ended has had the time to drain its output."""
        return self._agent.timeout_s()

    def update(self) -> None:
        """Reads the workers' progress pages."""
        self._agent.report_progress()

    def close(self) -> None:
        """Kills all children of this process, and all that they have started."""
        kill_orphans()
        self._agent.close()
        self._selector.close()
