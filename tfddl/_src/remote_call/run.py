"""`tfddl.run`: calls a function on workers, and returns their results."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import operator
import os
import pickle
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TextIO, TypeVar

import cloudpickle

from tfddl._src.launcher import JobOptions
from tfddl._src.launcher.call_relay import CallOutcome, CallRelay, RankResult
from tfddl._src.launcher.environment import Export, outer_job_size
from tfddl._src.launcher.fleet import CONNECT_S, FleetOptions
from tfddl._src.launcher.hosts import HostSlots, fill_slots, parse_hosts
from tfddl._src.launcher.report import describe_exit
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl._src.launcher.ssh import SshOptions
from tfddl._src.launcher.system import require_linux
from tfddl._src.launcher.worker_count import count_workers
from tfddl._src.remote_call import launch, task
from tfddl._src.remote_call.pickling import Answer, Call, dump_call, load_exception
from tfddl.errors import LaunchError

_LOG = logging.getLogger("tfddl")
_Result = TypeVar("_Result")


def run(  # noqa: PLR0913 - options by keyword, as the launcher's flags
    fn: Callable[..., _Result],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    np: int | Literal["auto"] | None = None,
    hosts: str | Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    max_restarts: int | None = None,
    min_np: int | None = None,
    start_timeout: float | None = None,
    output_filename: str | os.PathLike[str] | None = None,
    verbose: bool = False,
    ssh_command: str = "ssh",
    network_interface: str | None = None,
    python: str | None = None,
) -> list[_Result]:
    """Calls a function on several workers, and returns their results in rank order.

    The workers are new processes, started as by ``tfddlrun``, on this machine or on hosts by ssh;
    the function calls `tfddl.init` in them. Their output appears at this process' ``sys.stdout``
    and ``sys.stderr``, in a notebook below the cell, line by line with the rank in front.
    Function, arguments and results are pickled by cloudpickle: what is defined in a script or a
    notebook travels with the function; what it imports must be installed on all hosts. They
    travel through files without a name, and to hosts through ssh: no common file system is needed,
    only this working directory and Python at the same paths. Ctrl-C is passed on to the workers.
    However this process ends, the workers end with it, and nothing is left.

    Args:
        fn: The function. What it needs of TensorFlow it imports within.
        args: Its positional arguments, the same on all workers.
        kwargs: Its arguments by name.
        np: The number of workers, 1 to 1024; "auto" is one for each visible GPU, without a GPU one
            for each CPU socket. None is 2; with ``hosts``, their slots.
        hosts: Names and slots, "hostA:2,hostB:2" or a list of such; None is this machine.
        env: Environment variables for all workers, besides those of this process.
        max_restarts: How often all start again when a worker has failed (default: 0; 3 with
            ``min_np``); a training with `tfddl.callbacks.Checkpoint` goes on.
        min_np: With how few workers it may go on.
        start_timeout: Seconds that hosts have to answer (30), and workers to call `tfddl.init`.
        output_filename: A folder for all output of each worker, as of ``tfddlrun``.
        verbose: Also shows hosts and ports.
        ssh_command: What is run instead of ssh, with its first options ("ssh -p 2222").
        network_interface: Workers are reached at their hosts' addresses on it, or on the first of
            several ("eth1,ib0").
        python: The Python of the workers, with the same version; None is that of this process.

    Returns:
        The results, in rank order.

    Raises:
        LaunchError: An option is out of its range; this is a worker of a job of several; the
            function or a result can't be pickled; hosts can't be reached; a worker failed: the
            message has its rank and traceback, and its exception is the cause, where it can be
            pickled.
        KeyboardInterrupt: Ctrl-C has come, and the workers have ended.
    """
    slots = _parse_hosts(hosts)
    variables = dict(env or {})
    if np is None and not slots:
        np = 2
    num_workers = _count(np, slots, {**os.environ, **variables})
    try:
        ssh = SshOptions(command=tuple(shlex.split(ssh_command)), remote_python=_python(python))
    except ValueError as error:
        raise LaunchError(f"ssh_command is {ssh_command!r}, no line for a shell: {error}") from None
    options = JobOptions(
        num_workers=sum(host.slots for host in slots) if num_workers is None else num_workers,
        command=task.command(_python(python)),
        restarts=RestartOptions(max_restarts=max_restarts, min_workers=min_np),
        logs=None if output_filename is None else Path(output_filename),
        verbose=verbose,
        fleet=make_fleet(
            slots,
            num_workers,
            ssh=ssh,
            interfaces=network_interface,
            start_timeout_s=start_timeout,
        ),
        exports=tuple(Export(name, value) for name, value in variables.items()),
        start_timeout_s=start_timeout,
    )
    return call_on_workers(Call(fn, tuple(args), dict(kwargs or {})), options)


def make_fleet(
    slots: tuple[HostSlots, ...],
    num_workers: int | None,
    *,
    ssh: SshOptions,
    interfaces: str | None,
    start_timeout_s: float | None,
) -> FleetOptions | None:
    """The hosts that workers run on, or None for this machine.

    Args:
        slots: The hosts that were named, if any.
        num_workers: Workers to divide among them; None is one for each slot.
        ssh: How hosts are reached.
        interfaces: Network interfaces, with commas between them.
        start_timeout_s: What hosts have to answer; None is the default.

    Raises:
        LaunchError: There are too few slots, or a value is out of its range.
    """
    if not slots:
        return None
    names = (name.strip() for name in (interfaces or "").split(","))
    fleet = FleetOptions(
        hosts=slots if num_workers is None else fill_slots(slots, num_workers),
        interfaces=tuple(name for name in names if name),
        ssh=ssh,
        connect_s=CONNECT_S if start_timeout_s is None else start_timeout_s,
    )
    return None if fleet.is_this_host else fleet


def call_on_workers(call: Call, options: JobOptions) -> list[Any]:
    """Runs a job whose workers make a call.

    Args:
        call: What they call.
        options: The job, with `task.command` as its command.

    Returns:
        The results, in rank order.

    Raises:
        LaunchError: See `run`.
    """
    require_linux("tfddl.run")
    if (size := outer_job_size(os.environ)) > 1:
        raise LaunchError(
            f"run was called by one of the {size} workers of a job; every one of them would "
            "start a job of its own. HINT: call it in the process that starts the workers; within "
            "the function, tfddl.init() is enough"
        )
    ended = collect(dump_call(call), options)
    if ended.failure is not None:
        raise LaunchError(ended.failure.text) from load_exception(ended.failure.exception)
    return [cloudpickle.loads(result) for _, result in sorted(ended.results.items())]


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first failure of a job.

    Attributes:
        text: which rank, with its traceback, or how its process has ended.
        exception: what it has raised, pickled, where it can be.
        blames_peer: whether it may only say that another rank has failed.
    """

    text: str
    exception: bytes | None = None
    blames_peer: bool = False


@dataclasses.dataclass(frozen=True)
class CallEnd:
    """What came of a call.

    Attributes:
        results: pickled, by rank, of the workers that this launcher has started.
        failure: if any has failed.
    """

    results: Mapping[int, bytes]
    failure: Failure | None = None


def collect(data: bytes, options: JobOptions) -> CallEnd:
    """Runs a job whose workers make a pickled call; unpickles neither call nor results."""
    with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as results:
        sent.write(data)
        sent.flush()
        relay = CallRelay(sent.fileno(), results.fileno())
        status = _run_launcher(dataclasses.replace(options, call=relay), relay)
        results.seek(0)
        return _read_end(_records(results), status)


def _parse_hosts(hosts: str | Sequence[str] | None) -> tuple[HostSlots, ...]:
    if hosts is None:
        return ()
    return parse_hosts(hosts if isinstance(hosts, str) else ",".join(hosts))


def _python(given: str | None) -> str:
    return sys.executable if given is None else given


def _count(np: Any, slots: Sequence[HostSlots], environment: Mapping[str, str]) -> int | None:
    """The number of workers; None where the hosts say it."""
    if np != "auto":
        try:
            return None if np is None else operator.index(np)
        except TypeError:
            raise LaunchError(f"np is {np!r}; expected a number of workers, or 'auto'") from None
    if slots:
        raise LaunchError(
            "np is 'auto', which counts the GPUs of this host, and hosts names others. HINT: a "
            "number of workers for each, as in hosts='hostA:4,hostB:4'"
        )
    return count_workers(environment).number


def _run_launcher(options: JobOptions, relay: CallRelay) -> int:
    """Runs the launcher, shows its output here, and returns its status.

    Raises:
        KeyboardInterrupt: Ctrl-C has come, and the launcher has ended after it.
    """
    interrupt = None
    with subprocess.Popen(
        launch.command(os.getpid()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(relay.call_fd, relay.results_fd),
        process_group=0,  # A terminal's Ctrl-C reaches this process alone, which passes it on.
    ) as process:
        output = _Output(process)
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # Its status says that it has ended.
                process.stdin.write(pickle.dumps(options))
                process.stdin.close()
            while True:
                try:
                    output.copy()
                    break
                except KeyboardInterrupt as error:
                    interrupt = error
                    process.send_signal(signal.SIGINT)
            status = process.wait()
        finally:  # After a signal handler's exception, say; SIGTERM makes it end its workers.
            if process.poll() is None:
                process.terminate()
                process.communicate()
    if interrupt is not None:
        raise interrupt
    return status


class _Output:
    """What the launcher writes, which is shown by the calling thread.

    Notebooks show below a cell what its own thread writes to `sys.stdout`; other threads' output,
    and what is written to descriptor 1, may appear elsewhere.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._selector = selectors.DefaultSelector()
        for pipe, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, _LineWriter(target))

    def copy(self) -> None:
        """Copies lines until both pipes are closed; goes on after a KeyboardInterrupt."""
        while self._selector.get_map():
            for key, _ in self._selector.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    self._selector.unregister(key.fileobj)
                key.data.take(data)
        self._selector.close()


class _LineWriter:
    """Writes whole lines; goes on where they can't be written: a full pipe would block workers."""

    def __init__(self, target: TextIO | None) -> None:
        self._target, self._rest = target, b""
        self._is_lost = target is None

    def take(self, data: bytes) -> None:
        """Writes the lines that are complete; no data is the end."""
        lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
        text = lines + newline
        if not data:
            text, self._rest = text + self._rest, b""
        if not text or self._target is None:
            return
        try:
            self._target.write(text.decode(errors="replace"))
            self._target.flush()
        except (OSError, ValueError) as error:  # A full disk; a file that was closed.
            if not self._is_lost:
                _LOG.error("output of the workers can't be written and is dropped: %s", error)
            self._is_lost = True


def _records(file: IO[bytes]) -> Iterator[RankResult | CallOutcome | str]:
    """What the launcher has written: results, then how the job ended, or why it couldn't start."""
    while (record := _load(file)) is not None:
        yield record


def _load(file: IO[bytes]) -> Any:
    """The next object of a file; None where there is none, or its end is missing.

    Who wrote it may have been killed meanwhile.
    """
    try:
        return pickle.load(file)
    except Exception:  # noqa: BLE001 - what is cut off raises almost anything, as pickle's pages say
        return None


def _read_end(records: Iterator[RankResult | CallOutcome | str], status: int) -> CallEnd:
    found: dict[int, RankResult] = {}
    outcome = None
    for record in records:
        if isinstance(record, RankResult):
            found[record.rank] = record
        elif isinstance(record, CallOutcome):
            outcome = record
        else:
            return CallEnd({}, Failure(record))
    if outcome is None:
        return CallEnd(
            {},
            Failure(
                f"the launcher of the workers ended early: {describe_exit(status)}. HINT: see its "
                "last output above"
            ),
        )
    answers = {
        rank: answer
        for rank, record in found.items()
        if isinstance(answer := _load(io.BytesIO(record.data)), Answer)
    }
    results = {rank: answer.result for rank, answer in answers.items() if answer.result is not None}
    return CallEnd(results, _find_failure(outcome, found, answers))


def _find_failure(
    outcome: CallOutcome, found: Mapping[int, RankResult], answers: Mapping[int, Answer]
) -> Failure | None:
    """The first failure, if any.

    The launcher knows whose process ended first. Another exception may be older, whose process took
    longer to end; clocks of hosts can't be compared. A root without an exception was killed, or has
    left the function without returning.
    """
    raised = {rank: answer for rank, answer in answers.items() if answer.result is None}
    if raised and not outcome.is_interrupted and (outcome.root is None or outcome.root in raised):

        def order(rank: int) -> tuple[bool, bool, float]:
            is_elsewhere = found[rank].host != outcome.root_host
            return raised[rank].blames_peer, is_elsewhere, raised[rank].at_s

        rank = min(raised, key=order)
        where = f" on {found[rank].host}" if found[rank].host else ""
        first = raised[rank]
        return Failure(
            f"rank {rank}{where} failed:\n{first.error}", first.exception, first.blames_peer
        )
    if outcome.report:
        return Failure(outcome.report)
    missing = sorted(set(outcome.ranks) - answers.keys())
    if absent := [rank for rank in missing if rank not in found]:
        return Failure(
            f"all workers ended well, but no result has come of rank "
            f"{', '.join(map(str, absent))}; one of each of {len(outcome.ranks)} workers was "
            "expected. HINT: was the connection to a host lost at the end?"
        )
    if missing:
        return Failure(
            f"rank {missing[0]} ended with exit code 0 before the function has returned. HINT: "
            "something has called os._exit, or has replaced the process"
        )
    return None
