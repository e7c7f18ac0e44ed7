"""The far side of a job on several hosts: starts and ends the workers of one host as it is told.

`tfddlrun` starts it there, over ssh, and speaks with it through its standard input and output by
frames. It decides nothing by itself but this: when the connection ends, or nothing has been heard
for a while, it kills all that it has started, and ends. SIGTERM (its host is about to go) makes the
workers save, as it does when it comes to them, or to `tfddlrun`.

The messages are named by "do" (orders and questions) and "is" (reports and answers); `Link` is the
other end of them.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from tfddl import __version__
from tfddl._src.cgroups import LimitMonitor
from tfddl._src.cluster import ports
from tfddl._src.heartbeat import ProgressPage
from tfddl._src.launcher import interfaces
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.environment import inherited
from tfddl._src.launcher.examine import Examination
from tfddl._src.launcher.frames import HELLO, Message, Unpacker, pack
from tfddl._src.launcher.guard import guarded
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.memory import with_board, with_store
from tfddl._src.launcher.oom import count_oom_kills
from tfddl._src.launcher.output import Outlet
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.system import require_files, require_linux
from tfddl._src.launcher.worker import DRAIN_S, Stream, Worker, adopt_orphans, kill_orphans
from tfddl.errors import LaunchError

BEAT_S = 4.0
"""How often either side says that it is still there."""

PATIENCE_S = 20.0
"""After so long a silence the other side is taken for lost."""

# How often it is told how far workers have come.
_TELL_S = 0.5
# What of a plan has no meaning on another host.
_OURS = frozenset({"board", "descriptors"})
# Beyond so many bytes that wait to be sent, workers have to wait with their output.
_MOST_WAITING = 1 << 20


def plan_message(plan: ProcessPlan) -> Message:
    """The order to start a worker."""
    names = {field.name for field in dataclasses.fields(plan)} - _OURS
    values = {name: getattr(plan, name) for name in names}
    changed = {"environment": dict(plan.environment), "binding": plan.binding.value}
    return {"do": "start", "plan": {**values, **changed}}


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


@dataclasses.dataclass(frozen=True)
class _SendingSink:
    """Sends an output of a worker to tfddlrun."""

    outbox: _Outbox
    rank: int
    outlet: Outlet

    def take(self, data: bytes) -> None:
        self.outbox.put({"is": "output", **self._name()}, data)

    def finish(self) -> None:
        self.outbox.put({"is": "closed", **self._name()})

    def tail(self) -> Iterable[str]:
        return ()

    def _name(self) -> Message:
        return {"rank": self.rank, "outlet": self.outlet.value}


class Agent:
    """Serves one connection, until it ends."""

    def __init__(
        self, *, stdin_fd: int, stdout_fd: int, signals: Signals, environment: Mapping[str, str]
    ) -> None:
        """Says hello.

        Args:
            stdin_fd: where orders come from.
            stdout_fd: where reports go.
            signals: wakes us when a worker has ended; SIGINT and SIGHUP end us, and so does SIGTERM
                where no worker can save.
            environment: this host's, to which each worker's is added.
        """
        self._stdin, self._stdout = stdin_fd, stdout_fd
        self._signals, self._environment = signals, environment
        self._outbox = _Outbox(stdout_fd)
        self._unpacker = Unpacker()
        self._workers: dict[int, Worker] = {}
        self._examination = Examination()
        self._oom_kills, self._limits = count_oom_kills(), LimitMonitor()
        self._heard_s = self._said_s = self._told_s = time.monotonic()
        self._told: dict[int, Message] = {}
        self._was_asked = False
        self._store = HostStore()
        self._orders: Mapping[str, Callable[[Message], None]] = {
            "start": self._start,
            "signal": self._signal,
            "show stacks": self._show_stacks,
            "save": self._save,
            "reap": self._reap,
            "prepare": self._prepare,
            "examine": self._examine,
            "take commit": lambda message: self._store.take(message),
            "tell commit": lambda message: self._outbox.put(self._store.tell()),
            "give commit": self._give_commit,
            "beat": lambda message: self._outbox.put({"is": "beat"}),
        }
        self._outbox.put({"is": "hello", "version": __version__})
        self._outbox.flush()

    def serve(self) -> None:
        """Does what it is told until the connection ends; then leaves nothing behind."""
        adopt_orphans()
        try:
            while self._turn():
                pass
        except OSError as error:
            sys.stderr.write(f"tfddl agent: the connection was lost: {error.strerror}\n")
        finally:
            for worker in self._workers.values():
                worker.signal_group(signal.SIGKILL)
            kill_orphans()

    def _turn(self) -> bool:
        """Waits for something, and does what follows; False once the connection has ended."""
        readable = self._wait()
        now_s = time.monotonic()
        if self._signals.fileno() in readable:
            self._signals.read()
        if self._stdin in readable:
            data = os.read(self._stdin, 1 << 16)
            if not data:
                return False
            self._heard_s = now_s
            for message, payload in self._unpacker.feed(data):
                self._orders[message["do"]]({**message, "data": payload})
        if not self._goes_on() or now_s - self._heard_s > PATIENCE_S:
            return False
        self._pass_on(readable)
        self._examination.serve(readable)
        self._report(now_s)
        self._outbox.flush()
        return True

    def _goes_on(self) -> bool:
        """Whether no signal ends us. SIGTERM makes workers save, and then they end the job."""
        for number in self._signals.take_ending():
            asked = [
                w for w in self._workers.values() if number == signal.SIGTERM and w.ask_to_save()
            ]
            if self._was_asked or not asked:
                return False
            self._was_asked = True
        return True

    def _wait(self) -> set[int]:
        """The descriptors that have something to read."""
        poll = select.poll()
        poll.register(self._stdin, select.POLLIN)
        poll.register(self._signals.fileno(), select.POLLIN)
        if self._outbox.num_bytes:
            poll.register(self._stdout, select.POLLOUT)
        if self._outbox.num_bytes < _MOST_WAITING:
            for stream in self._streams():
                poll.register(stream.fileno(), select.POLLIN)
        for fd in self._examination.filenos():
            poll.register(fd, select.POLLIN)
        wait_s = _TELL_S if self._workers else BEAT_S / 2
        if any(worker.ended_s is not None for worker in self._workers.values()):
            wait_s = DRAIN_S / 4
        return {fd for fd, _ in poll.poll(wait_s * 1000)}

    def _streams(self) -> list[Stream]:
        return [s for worker in self._workers.values() for s in worker.streams if s.is_open]

    def _pass_on(self, readable: set[int]) -> None:
        """Sends what workers have written; how far they had come by then is told before."""
        for worker in self._workers.values():
            ready = [s for s in worker.streams if s.is_open and s.fileno() in readable]
            if ready:
                self._report_progress(worker)
            for stream in ready:
                if not stream.pump():
                    stream.close()

    def _report(self, now_s: float) -> None:
        """Says what is new, and that we are here."""
        self._report_ends()
        if now_s - self._told_s >= _TELL_S and self._outbox.num_bytes < _MOST_WAITING:
            self._told_s = now_s
            for worker in self._workers.values():
                self._report_progress(worker)
        if now_s - self._said_s >= BEAT_S:
            self._said_s = now_s
            self._outbox.put({"is": "beat"})

    def _report_ends(self) -> None:
        now_s = time.monotonic()
        for worker in self._workers.values():
            if (
                worker.ended_s is not None
                and now_s >= worker.ended_s + worker.drain_s
                and self._outbox.num_bytes < _MOST_WAITING
            ):
                for stream in worker.streams:
                    if stream.is_open:
                        stream.close()
            if worker.look():
                self._report_progress(worker)
                self._outbox.put(
                    {
                        "is": "ended",
                        "rank": worker.rank,
                        "returncode": worker.returncode,
                        "num_oom_kills": count_oom_kills() - self._oom_kills,
                        "limits": self._limits.reached(),
                    }
                )

    def _report_progress(self, worker: Worker) -> None:
        report = worker.attendance.report()
        if report != self._told.get(worker.rank):
            self._told[worker.rank] = report
            self._outbox.put({"is": "progress", "rank": worker.rank, **report})

    def _start(self, message: Message) -> None:
        fields = message["plan"]
        plan = ProcessPlan(
            **{
                **fields,
                "argv": tuple(fields["argv"]),
                "environment": {**self._environment, **fields["environment"]},
                "binding": Binding(fields["binding"]),
            }
        )
        sinks = [_SendingSink(self._outbox, plan.rank, outlet) for outlet in Outlet]
        try:
            plan = with_store(with_board(plan, ProgressPage.create()), self._store.fd)
            self._workers[plan.rank] = Worker(plan, sinks)
        except LaunchError as error:
            self._outbox.put({"is": "refused", "rank": plan.rank, "why": str(error)})
        except OSError as error:
            why = f"can't make the memory that a worker shares with us: {error.strerror}"
            self._outbox.put({"is": "refused", "rank": plan.rank, "why": why})

    def _signal(self, message: Message) -> None:
        worker = self._workers.get(message["rank"])
        if worker is not None:
            worker.signal_group(signal.Signals(message["number"]))

    def _show_stacks(self, message: Message) -> None:
        worker = self._workers.get(message["rank"])
        if worker is not None:
            worker.attendance.ask_for_stacks()

    def _save(self, message: Message) -> None:
        worker = self._workers.get(message["rank"])
        if worker is not None:
            worker.ask_to_save()

    def _reap(self, message: Message) -> None:
        worker = self._workers.pop(message["rank"], None)
        if worker is not None:
            worker.reap()

    def _prepare(self, message: Message) -> None:
        """Finds out what the workers of this host need, before any is started."""
        answer: Message = {"is": "prepared"}
        try:
            os.stat(os.path.join(message["directory"], "."))
            require_files(message["num_workers"])
            wanted = message["interfaces"]
            name, address = interfaces.interface_of(wanted) if wanted else ("", None)
            answer |= {
                "ports": ports.free_ports(message["num_workers"]),
                "interface": name,
                "address": address,
                "identity": interfaces.identity(),
                "resolved": {n: interfaces.resolve_texts(n) for n in message["names"]},
            }
        except LaunchError as error:
            answer["error"] = str(error)
        except OSError as error:
            answer["error"] = (
                f"can't enter the folder {message['directory']}: {error.strerror}. HINT: the "
                "workers of all hosts run in the folder that tfddlrun is started in"
            )
        self._outbox.put(answer)

    def _give_commit(self, message: Message) -> None:
        self._outbox.put({"is": "piece"}, self._store.give(message))

    def _examine(self, message: Message) -> None:
        self._outbox.put({"is": "examined", **self._examination.answer(message)})


def run() -> None:
    """What is started on the far host."""
    try:
        require_linux("a host of tfddlrun")
        sys.exit(guarded(_serve, program="tfddl agent"))
    except LaunchError as error:
        sys.exit(f"tfddl agent: {error}")


def _serve(signals: Signals) -> int:
    Agent(stdin_fd=0, stdout_fd=1, signals=signals, environment=inherited(os.environ)).serve()
    return 0
