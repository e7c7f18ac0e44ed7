"""A worker as the supervisor sees it: what its agent has reported, and the orders to it."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence

from tfddl._src.heartbeat import SAVED_STATUS, Stage, WorkerFlags, WorkerProgress
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.log_sink import LogSink
from tfddl._src.launcher.output import Stream
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.report import WorkerExit
from tfddl._src.launcher.stall_detector import Stall
from tfddl.errors import LaunchError

LOST = 255
"""The exit code of a worker whose host is lost, as ssh exits where the connection ends."""


class WorkerHandle:
    """A worker on any host, controlled by orders to the agent there.

    Attributes:
        rank: its rank.
        number: its own, whatever its rank becomes.
        host: where it runs; "" for this machine.
        local_rank: its number among the workers of that host, which stays.
        sinks: take its stdout and its stderr.
        reading: how far it had come by the last report.
        is_stopped: whether the process that trains was stopped then, by a signal or a debugger.
        ended_s: when its end was reported (`time.monotonic`), or None.
        returncode: then its exit code, or the negative number of the signal that killed it.
        lost: why nothing more is known of it, since its host can't be reached; or None.
        stall: what was found when it made no progress, or None.
    """

    def __init__(
        self, plan: ProcessPlan, sinks: Sequence[LogSink], *, send: Callable[[Message], None]
    ) -> None:
        """Holds a worker that is about to be started.

        Args:
            plan: what is started.
            sinks: take its stdout and its stderr.
            send: sends an order to its agent.
        """
        self.rank, self.number = plan.rank, plan.worker
        self.host, self.local_rank, self.sinks = plan.host, plan.local_rank, sinks
        self.reading = WorkerProgress()
        self.is_stopped = False
        self.ended_s: float | None = None
        self.returncode = 0
        self.lost: str | None = None
        self.stall: Stall | None = None
        self._send = send
        self._started_s = time.monotonic()
        self._last_heard_s = self._started_s
        self._ended_with: signal.Signals | None = None

    def receive(self, message: Message, data: bytes) -> None:
        """Takes a report of its agent.

        Raises:
            LaunchError: it can't be started.
        """
        kind = message["is"]
        if kind == "started":
            for sink in self.sinks:
                sink.has_gpu = message["has_gpu"]
        elif kind == "output":
            self._sink(message).take(data)
        elif kind == "closed":
            self._sink(message).close()
        elif kind == "progress":
            fields = message["reading"]
            enums = {"stage": Stage(fields["stage"]), "flags": WorkerFlags(fields["flags"])}
            self.reading = WorkerProgress(**{**fields, **enums})
            self.is_stopped = message["is_stopped"]
        elif kind == "ended":
            # By our clock: those of the hosts differ.
            self.ended_s, self.returncode = time.monotonic(), message["returncode"]
        elif kind == "refused":
            where = f"on {self.host}, " if self.host else ""
            raise LaunchError(f"{where}{message['why']}")

    def lose(self, why: str, *, last_heard_s: float) -> None:
        """Notes that its host can't be reached any more; without effect on one that has ended."""
        if self.ended_s is None:
            self.ended_s, self.returncode = time.monotonic(), LOST
            self.lost, self._last_heard_s = why, last_heard_s
        for sink in self.sinks:
            sink.close()

    def was_lost_before(self, when_s: float) -> bool:
        """Whether it is lost with its host, from which nothing was heard after this moment."""
        return self.lost is not None and self._last_heard_s < when_s

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and nothing more will come of its output."""
        return self.ended_s is not None and not any(sink.is_open for sink in self.sinks)

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and all processes of its group."""
        if self.ended_s is None:
            self._ended_with = number
        self._send({"do": "signal", "worker": self.number, "number": int(number)})

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        self._send({"do": "show stacks", "worker": self.number})

    def ask_to_save(self) -> bool:
        """Makes it save and end; False where it can't, by the last report."""
        if self.ended_s is not None or WorkerFlags.SAVES_ON_SIGTERM not in self.reading.flags:
            return False
        self._ended_with = signal.SIGTERM
        self._send({"do": "save", "worker": self.number})
        return True

    @property
    def saves_on_request(self) -> bool:
        """Whether it answers `request_save`, by the last report."""
        return self.ended_s is None and WorkerFlags.SAVES_ON_REQUEST in self.reading.flags

    def request_save(self) -> None:
        """Asks it to save and end when it next can, however long that takes."""
        self._send({"do": "request save", "worker": self.number})

    @property
    def can_stay(self) -> bool:
        """Whether it keeps its process where others come or go, by the last report."""
        stays = WorkerFlags.REGROUPS | WorkerFlags.WAITS_FOR_MEMBERS
        return self.ended_s is None and bool(stays & self.reading.flags)

    @property
    def joins(self) -> bool:
        """Whether it waits for the others at its start, by the last report."""
        return self.ended_s is None and WorkerFlags.JOINS in self.reading.flags

    @property
    def waits(self) -> bool:
        """Whether it waits to be told who takes part now, by the last report."""
        return self.ended_s is None and WorkerFlags.WAITS_FOR_MEMBERS in self.reading.flags

    def tell_membership(self, plan: ProcessPlan | None) -> None:
        """Tells it which worker it is now; None: that it isn't needed any more, and is to end."""
        if plan is not None:
            self.rank = plan.rank
            for sink in self.sinks:
                sink.rename(plan.rank)
        variables = None if plan is None else plan.membership
        self._send({"do": "regroup", "worker": self.number, "variables": variables})
        # What it has reported last isn't so any more.
        flags = self.reading.flags & ~(WorkerFlags.WAITS_FOR_MEMBERS | WorkerFlags.PREEMPTED)
        self.reading = dataclasses.replace(self.reading, flags=flags)

    def reap(self) -> None:
        """Kills what is left of its group, and closes its outputs."""
        self._send({"do": "reap", "worker": self.number})
        for sink in self.sinks:
            sink.close()

    def describe_end(self) -> WorkerExit:
        """How it ended, once it has."""
        assert self.ended_s is not None
        return WorkerExit(
            rank=self.rank,
            returncode=self.returncode,
            after_s=self.ended_s - self._started_s,
            stderr_lines=tuple(self.sinks[-1].tail()),
            ended_with=self._ended_with,
            reading=self.reading,
            stall=self.stall,
            host=self.host,
            lost=self.lost,
        )

    def describe_saving(self) -> WorkerExit:
        """Of a worker that waits: how it would have ended, had it not stayed."""
        reading = dataclasses.replace(
            self.reading, flags=self.reading.flags | WorkerFlags.PREEMPTED
        )
        return WorkerExit(
            rank=self.rank,
            returncode=SAVED_STATUS,
            after_s=time.monotonic() - self._started_s,
            stderr_lines=(),
            ended_with=None,
            reading=reading,
            host=self.host,
        )

    def _sink(self, message: Message) -> LogSink:
        return self.sinks[list(Stream).index(Stream(message["stream"]))]
