"""Starts, watches and ends the workers of one host, by order of the supervisor.

The agent decides nothing: orders and questions ("do") come from the supervisor, reports and answers
("is") go to it. On this machine the agent is part of the supervisor's own process, see
`local_client`; on another it is a process at the far end of an ssh connection, see `agent_server`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from tfddl._src.cgroups import LimitMonitor
from tfddl._src.cluster import ports
from tfddl._src.launcher import interfaces
from tfddl._src.launcher.call_files import CallFiles
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.doctor_probe import DoctorProbe
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.oom import count_oom_kills
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.preloading import Preloader
from tfddl._src.launcher.system import require_files
from tfddl._src.launcher.worker_process import OutputPipe, WorkerProcess, preloader_of
from tfddl._src.startup_logs import has_gpu
from tfddl.errors import LaunchError

# What a worker that has ended may leave to its children: a `tee` that still has lines to write.
_DRAIN_S = 1.0
# A pipe holds 64 KiB, as much as is read at a time; what is written meanwhile is another process's.
_READS_PER_PIPE = 2


class Send(Protocol):
    """Sends a report or an answer to the supervisor."""

    def __call__(self, message: Message, data: bytes = b"", /) -> None:
        """Sends a message, and bytes that are passed on as they are."""


def start_message(plan: ProcessPlan) -> Message:
    """The order to start a worker."""
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    changed = {"environment": dict(plan.environment), "binding": plan.binding.value}
    return {"do": "start", "worker": plan.worker, "plan": {**values, **changed}}


class Agent:
    """The workers of one host.

    Whoever owns it waits for its selector, and calls `turn`. The calling process must have no
    threads. It has to adopt orphans before a worker starts, and to call `kill_orphans` in the end:
    that kills the workers, too, and all that they have started.
    """

    def __init__(
        self,
        send: Send,
        *,
        selector: selectors.BaseSelector,
        environment: Mapping[str, str],
        store: HostStore,
        call_fd: int | None = None,
    ) -> None:
        """Begins without workers.

        Args:
            send: takes reports and answers.
            selector: what the agent waits for is registered there, with a function to call as
                data; its owner may register more.
            environment: this host's, to which each worker's is added.
            store: where the workers keep commits.
            call_fd: the file with the function call that workers make, where it is on this host.
        """
        self._send, self._selector = send, selector
        self._environment, self._store = environment, store
        self._files, self._call_problem = CallFiles(call_fd), ""
        self._workers: dict[int, WorkerProcess] = {}
        self._preloader: Preloader | None = None
        self._holds_output = False
        self._probe = DoctorProbe(selector)
        self._oom_kills, self._limits = count_oom_kills(), LimitMonitor()
        self._has_gpu = has_gpu()
        self._reported: dict[int, Message] = {}
        self._orders: Mapping[str, Callable[[Message], None]] = {
            "start": self._start,
            "prepare": self._prepare,
            "probe": self._answer_probe,
            "take commit": self._take_commit,
            "describe commit": self._describe_commit,
            "give commit": self._give_commit,
            "take call": self._take_call,
            "describe results": self._describe_results,
            "give result": self._give_result,
            "beat": lambda message: self._send({"is": "beat"}),
        }
        self._worker_orders: Mapping[str, Callable[[WorkerProcess, Message], object]] = {
            "signal": lambda worker, message: worker.signal_group(
                signal.Signals(message["number"])
            ),
            "show stacks": lambda worker, message: worker.ask_for_stacks(),
            "save": lambda worker, message: worker.ask_to_save(),
            "request save": lambda worker, message: worker.request_save(),
            "regroup": lambda worker, message: worker.tell_membership(message["variables"]),
            "reap": self._reap,
        }

    def receive(self, message: Message, data: bytes = b"") -> None:
        """Executes an order, or answers a question."""
        what = message["do"]
        if what in self._orders:
            self._orders[what]({**message, "data": data})
        elif (worker := self._workers.get(message["worker"])) is not None:
            self._worker_orders[what](worker, message)

    def turn(self, wait_s: float = 0.0) -> None:
        """Waits so long for something to happen, and reports it."""
        # What each key has for data is what to do: not only pipes are waited for here.
        for key, _ in self._selector.select(wait_s):
            key.data()
        now_s = time.monotonic()
        for worker in self._workers.values():
            if worker.look():
                self._report_end(worker)
            if self._is_drained(worker, now_s):
                for pipe in worker.outputs:
                    self._close_output(worker, pipe)

    def timeout_s(self) -> float:
        """After how many seconds `turn` has something to do, though nothing happens."""
        if self._holds_output:
            return math.inf
        ends = (
            worker.ended_s + _DRAIN_S
            for worker in self._workers.values()
            if worker.ended_s is not None and any(pipe.is_open for pipe in worker.outputs)
        )
        return max(0.0, min(ends, default=math.inf) - time.monotonic())

    def hold_output(self, holds: bool) -> None:
        """Reads no output for now, so that workers wait with it; or reads it again."""
        if holds == self._holds_output:
            return
        self._holds_output = holds
        for worker in self._workers.values():
            for pipe in worker.outputs:
                if pipe.is_open and holds:
                    self._selector.unregister(pipe)
                elif pipe.is_open:
                    self._watch(worker, pipe)

    def report_progress(self, ranks: Iterable[int] | None = None) -> None:
        """Reports how far these workers have come, or all, where that has changed."""
        for worker in self._workers.values() if ranks is None else map(self._workers.get, ranks):
            if worker is None:
                continue
            report = worker.progress()
            if report != self._reported.get(worker.number):
                self._reported[worker.number] = report
                self._send({"is": "progress", "worker": worker.number, **report})

    def ask_to_save(self) -> bool:
        """Makes all workers save and end that can; False where none can."""
        asked = [worker.ask_to_save() for worker in self._workers.values()]
        return any(asked)

    @property
    def has_workers(self) -> bool:
        """Whether workers were started that aren't reaped."""
        return bool(self._workers)

    def _start(self, message: Message) -> None:
        # Through JSON, from another host, tuples have become lists, and enums their values.
        fields = message["plan"]
        plan = ProcessPlan(
            **{
                **fields,
                "argv": tuple(fields["argv"]),
                "preload": tuple(fields["preload"]),
                "environment": {**self._environment, **fields["environment"]},
                "binding": Binding(fields["binding"]),
            }
        )
        try:
            files = self._open_files(plan.rank) if plan.makes_call else {}
            if plan.preload and self._preloader is None:
                self._preloader = preloader_of(plan)
            worker = WorkerProcess(plan, store=self._store, files=files, preloader=self._preloader)
        except LaunchError as error:
            self._send({"is": "refused", "worker": plan.worker, "why": str(error)})
            return
        self._workers[plan.worker] = worker
        self._send({"is": "started", "worker": plan.worker, "has_gpu": self._has_gpu})
        if not self._holds_output:
            for pipe in worker.outputs:
                self._watch(worker, pipe)

    def _open_files(self, rank: int) -> Mapping[str, int]:
        try:
            if self._call_problem:
                raise LaunchError(self._call_problem)
            return self._files.open_for(rank)
        except OSError as error:
            raise LaunchError(_explain_no_file(error)) from error

    def _watch(self, worker: WorkerProcess, pipe: OutputPipe) -> None:
        read = functools.partial(self._read_output, worker, pipe)
        self._selector.register(pipe, selectors.EVENT_READ, read)

    def _read_output(self, worker: WorkerProcess, pipe: OutputPipe) -> None:
        # It may have been closed by what else happened at the same time.
        data = pipe.read() if pipe.is_open else None
        if data:
            self._send({"is": "output", "worker": worker.number, "stream": pipe.stream.value}, data)
        elif data is not None:
            self._close_output(worker, pipe)

    def _close_output(self, worker: WorkerProcess, pipe: OutputPipe) -> None:
        """Sends what the pipe still holds, and closes it."""
        if not pipe.is_open:
            return
        name = {"worker": worker.number, "stream": pipe.stream.value}
        for _ in range(_READS_PER_PIPE):
            if not (data := pipe.read()):
                break
            self._send({"is": "output", **name}, data)
        if not self._holds_output:
            self._selector.unregister(pipe)
        pipe.close()
        self._send({"is": "closed", **name})

    def _is_drained(self, worker: WorkerProcess, now_s: float) -> bool:
        """Whether nobody waits for its output any more. While that is held nothing may be lost."""
        if worker.ended_s is None or self._holds_output:
            return False
        return now_s >= worker.ended_s + _DRAIN_S

    def _report_end(self, worker: WorkerProcess) -> None:
        self.report_progress([worker.number])
        self._send(
            {
                "is": "ended",
                "worker": worker.number,
                "returncode": worker.returncode,
                "num_oom_kills": count_oom_kills() - self._oom_kills,
                "limits": self._limits.reached(),
            }
        )

    def kill_all(self) -> None:
        """Sends SIGKILL to all workers and the processes of their groups."""
        for worker in self._workers.values():
            worker.signal_group(signal.SIGKILL)

    def close(self) -> None:
        """Frees the files of a function call, which results are read from until then."""
        if self._preloader is not None:
            self._preloader.close()
        self._files.close()

    def _reap(self, worker: WorkerProcess, message: Message) -> None:
        worker.reap()
        for pipe in worker.outputs:
            self._close_output(worker, pipe)
        del self._workers[worker.number]

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
        self._send(answer)

    def _answer_probe(self, message: Message) -> None:
        self._send({"is": "probe", **self._probe.answer(message)})

    def _take_commit(self, message: Message) -> None:
        self._store.write(message["data"], message["offset"])

    def _describe_commit(self, message: Message) -> None:
        self._send({"is": "commit", "number": self._store.newest, "size": self._store.size})

    def _give_commit(self, message: Message) -> None:
        data = self._store.read(message["offset"], message["length"])
        self._send({"is": "commit bytes"}, data)

    def _take_call(self, message: Message) -> None:
        try:
            self._files.write_call(message["data"], message["offset"])
        except OSError as error:
            self._call_problem = _explain_no_file(error)

    def _describe_results(self, message: Message) -> None:
        self._send({"is": "results", "sizes": self._files.sizes()})

    def _give_result(self, message: Message) -> None:
        data = self._files.read_result(
            message["of"], offset=message["offset"], length=message["length"]
        )
        self._send({"is": "result bytes"}, data)


def _explain_no_file(error: OSError) -> str:
    return (
        f"can't write the function's call to a temporary file: {error.strerror}. HINT: TMPDIR "
        "names a folder with enough space"
    )
