"""`tfddl.run`: calls a function on workers, and returns their results."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import os
import pickle
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import cloudpickle

from tfddl._src.launcher import JobOptions
from tfddl._src.launcher.call_relay import CallRelay
from tfddl._src.launcher.environment import Export, outer_job_size
from tfddl._src.launcher.fleet import CONNECT_S, FleetOptions
from tfddl._src.launcher.hosts import HostSlots, fill_slots, parse_hosts
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl._src.launcher.ssh import SshOptions
from tfddl._src.launcher.system import require_linux
from tfddl._src.launcher.worker_count import count_workers
from tfddl._src.remote_call import launch, task
from tfddl._src.remote_call.call_end import CallEnd, read_end, read_records
from tfddl._src.remote_call.output import LauncherOutput
from tfddl._src.remote_call.pickling import Call, dump_call, load_exception
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
        starter=ssh,
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


def collect(data: bytes, options: JobOptions) -> CallEnd:
    """Runs a job whose workers make a pickled call; unpickles neither call nor results."""
    with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as results:
        sent.write(data)
        sent.flush()
        relay = CallRelay(sent.fileno(), results.fileno())
        status = _run_launcher(dataclasses.replace(options, call=relay), relay)
        results.seek(0)
        return read_end(read_records(results), status)


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
        output = LauncherOutput(process)
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
