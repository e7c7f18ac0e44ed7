"""`run`: Horovod's signature of `tfddl.run` (horovod/runner)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfddl._src.launcher import JobOptions
from tfddl._src.launcher.hosts import parse_hosts, read_hostfile
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl._src.launcher.ssh import SshOptions
from tfddl._src.remote_call import task
from tfddl._src.remote_call.pickling import Call
from tfddl._src.remote_call.run import call_on_workers, make_fleet
from tfddl.errors import LaunchError, UnsupportedError


def run(  # noqa: PLR0913 - Horovod's signature
    func: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int = 1,
    min_num_proc: int | None = None,
    max_num_proc: int | None = None,
    slots: int | None = None,
    reset_limit: int | None = None,
    cooldown_range: Any = None,
    hosts: str | None = None,
    hostfile: str | None = None,
    host_discovery_script: str | None = None,
    start_timeout: int | None = None,
    ssh_port: int | None = None,
    ssh_identity_file: str | None = None,
    disable_cache: bool | None = None,
    output_filename: str | None = None,
    verbose: Any = None,
    use_gloo: bool | None = None,
    use_mpi: bool | None = None,
    mpi_args: str | None = None,
    network_interface: str | None = None,
    network_interfaces: str | None = None,
    executable: str | None = None,
    np: int | None = None,
    min_np: int | None = None,
    max_np: int | None = None,
) -> list[Any]:
    """Runs a function on several workers, as `tfddl.run` does, and returns their results.

    The workers are started as by ``tfddlrun --horovod``: `import horovod` finds tfddl.

    Args:
        func: The function; it imports what it needs, and calls `init`.
        args: Its arguments.
        kwargs: Its arguments by name.
        num_proc: The number of workers.
        min_num_proc: As ``--min-np`` of `tfddlrun`.
        max_num_proc: Must not be given.
        slots: Must not be given.
        reset_limit: As ``--max-restarts`` of `tfddlrun`.
        cooldown_range: Must not be given.
        hosts: "hostA:2,hostB:2", reached by ssh; None is this host.
        hostfile: A file with lines like "hostA slots=2".
        host_discovery_script: Must not be given.
        start_timeout: As for `tfddlrun`.
        ssh_port: As for `tfddlrun`.
        ssh_identity_file: As for `tfddlrun`.
        disable_cache: Has no effect: there is no cache.
        output_filename: As for `tfddlrun`.
        verbose: As for `tfddlrun`.
        use_gloo: Has no effect.
        use_mpi: Must not be given.
        mpi_args: Must not be given.
        network_interface: As for `tfddlrun`.
        network_interfaces: The same.
        executable: The Python of the workers; None is that of this process.
        np: The deprecated name of ``num_proc``.
        min_np: The deprecated name of ``min_num_proc``.
        max_np: The deprecated name of ``max_num_proc``.

    Returns:
        The results, in rank order.

    Raises:
        UnsupportedError: An argument isn't supported.
        LaunchError: As of `tfddl.run`; it is a `RuntimeError`.
    """
    _refuse(
        max_num_proc=max_num_proc or max_np,
        slots=slots,
        cooldown_range=cooldown_range,
        host_discovery_script=host_discovery_script,
        use_mpi=use_mpi,
        mpi_args=mpi_args,
    )
    if hosts and hostfile:
        raise LaunchError("both hosts and hostfile name hosts. HINT: give one of the two")
    named = parse_hosts(hosts) if hosts else read_hostfile(Path(hostfile)) if hostfile else ()
    num_workers = np if np is not None and num_proc == 1 else num_proc
    python = executable or sys.executable
    ssh = SshOptions(
        port=ssh_port,
        identity_file=None if ssh_identity_file is None else Path(ssh_identity_file),
        remote_python=python,
    )
    options = JobOptions(
        num_workers=num_workers,
        command=task.command(python),
        restarts=RestartOptions(
            max_restarts=reset_limit,
            min_workers=min_num_proc if min_num_proc is not None else min_np,
        ),
        logs=None if output_filename is None else Path(output_filename),
        as_horovod=True,
        verbose=bool(verbose),
        fleet=make_fleet(
            named,
            num_workers,
            ssh=ssh,
            interfaces=network_interface or network_interfaces,
            start_timeout_s=start_timeout,
        ),
        start_timeout_s=start_timeout,
    )
    return call_on_workers(Call(func, tuple(args), dict(kwargs or {})), options)


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UnsupportedError(
                f"run(…, {name}={value!r}) isn't supported: the workers are started on this host, "
                "or by ssh on the given ones, and their number is fixed. HINT: num_proc, hosts, "
                "min_num_proc and reset_limit are"
            )
