"""`run`: calls a function on several workers and returns their results (horovod/runner)."""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import cloudpickle

from tfddl.errors import LaunchError, UnsupportedError

_LOG = logging.getLogger("tfddl")
_LOCAL = ("localhost", "127.0.0.1")


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
    """Runs a function on several workers of this host, and returns their results.

    The workers are new processes, started as by ``tfddlrun --horovod``; their output appears here.
    The function, its arguments and its results are pickled by cloudpickle, so that they may be
    defined in a script or a notebook, and passed through unlinked temporary files, which no other
    user can open. However this process ends, the workers end with it, and no file is left.

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
        hosts: "localhost:N" with N at least ``num_proc``, or None.
        hostfile: Must not be given.
        host_discovery_script: Must not be given.
        start_timeout: As for `tfddlrun`.
        ssh_port: Must not be given.
        ssh_identity_file: Must not be given.
        disable_cache: Has no effect: there is no cache.
        output_filename: As for `tfddlrun`.
        verbose: As for `tfddlrun`.
        use_gloo: Has no effect.
        use_mpi: Must not be given.
        mpi_args: Must not be given.
        network_interface: Must not be given.
        network_interfaces: Must not be given.
        executable: The Python of the workers; None is that of this process.
        np: The deprecated name of ``num_proc``.
        min_np: The deprecated name of ``min_num_proc``.
        max_np: The deprecated name of ``max_num_proc``.

    Returns:
        The results, in rank order.

    Raises:
        UnsupportedError: An argument isn't supported.
        LaunchError: A worker failed, with its traceback; it is a `RuntimeError`.
    """
    _refuse(
        max_num_proc=max_num_proc or max_np,
        slots=slots,
        cooldown_range=cooldown_range,
        hostfile=hostfile,
        host_discovery_script=host_discovery_script,
        ssh_port=ssh_port,
        ssh_identity_file=ssh_identity_file,
        use_mpi=use_mpi,
        mpi_args=mpi_args,
        network_interface=network_interface or network_interfaces,
    )
    num_workers = np if np is not None and num_proc == 1 else num_proc
    _check_hosts(hosts, num_workers)
    flags = ["-np", str(num_workers), "--horovod"]
    options = {
        "--min-np": min_num_proc if min_num_proc is not None else min_np,
        "--max-restarts": reset_limit,
        "--start-timeout": start_timeout,
        "--output-filename": output_filename,
    }
    for flag, value in options.items():
        flags += [] if value is None else [flag, str(value)]
    flags += ["--verbose"] if verbose else []
    with _unlinked_files(1 + num_workers) as (call, *files):
        pickle.dump(sys.path, call)  # First: unpickling the rest may need it.
        cloudpickle.dump((func, tuple(args), dict(kwargs or {})), call)
        call.flush()
        descriptors = [file.fileno() for file in (call, *files)]
        flags += ["--caller", str(os.getpid()), "--pass-fds", ",".join(map(str, descriptors))]
        launcher = [sys.executable, "-m", "tfddl.launcher", *flags]
        worker = [executable or sys.executable, "-m", "tfddl._src.horovod.run_task"]
        command = [*launcher, "--", *worker, *map(str, descriptors)]
        status = _run_launcher(command, descriptors)
        return _results(files, status)


@contextlib.contextmanager
def _unlinked_files(count: int) -> Iterator[list[IO[bytes]]]:
    """Temporary files without a name, freed with the last process that has them open."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UnsupportedError(
                f"run(…, {name}={value!r}) isn't supported: run starts workers on this host only. "
                "HINT: for several hosts, write the function into a script of its own and start it "
                "with tfddlrun."
            )


def _check_hosts(hosts: str | None, num_workers: int) -> None:
    if hosts is None:
        return
    host, _, number = hosts.partition(":")
    if host not in _LOCAL or not (number or "1").isdigit() or int(number or "1") < num_workers:
        raise UnsupportedError(
            f"run(…, hosts={hosts!r}) isn't supported: run starts workers on this host only; "
            f"hosts must be None or 'localhost:{num_workers}'. HINT: for several hosts, start a "
            "script with tfddlrun."
        )


def _run_launcher(command: Sequence[str], descriptors: Sequence[int]) -> int:
    """Runs the launcher and returns its status; output goes to sys.stdout, which notebooks show."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # Of a notebook, it is the kernel's.
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=descriptors,
    )
    # Copied by threads, since sys.stdout of a notebook has no descriptor that a process could
    # inherit.
    copiers = [
        threading.Thread(target=_copy, args=(process.stdout, sys.stdout), daemon=True),
        threading.Thread(target=_copy, args=(process.stderr, sys.stderr), daemon=True),
    ]
    try:
        for thread in copiers:
            thread.start()
        for thread in copiers:
            thread.join()
        return process.wait()
    finally:  # After a KeyboardInterrupt, say; SIGTERM makes the launcher end its workers.
        if process.poll() is None:
            process.terminate()
            process.wait()


def _copy(source: IO[str], target: Any) -> None:
    """Copies all lines; reads on where they can't be written: a full pipe would block workers."""
    is_dropped = False
    for line in source:
        try:
            target.write(line)
            target.flush()
        except (OSError, ValueError) as error:  # a full disk; a file that was closed
            if not is_dropped:
                _LOG.error("output of the workers can't be written and is dropped: %s", error)
            is_dropped = True


def _results(files: Sequence[IO[bytes]], status: int) -> list[Any]:
    """The result of each worker.

    Raises:
        LaunchError: One has failed.
    """
    given = []
    for rank, file in enumerate(files):
        file.seek(0)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # It has written none.
            given.append((rank, *pickle.load(file)))
    # A worker that was killed before its start may have left the result of an earlier one.
    last = max((start for _, start, *_ in given), default=0)
    found = [(rank, *answer) for rank, start, *answer in given if start == last]
    failures = [(when_s, rank, text) for rank, when_s, is_failure, text in found if is_failure]
    if status and failures:
        _, failed, text = min(failures)
        raise LaunchError(f"rank {failed} failed:\n{text}")
    if status or len(found) < len(files):
        raise LaunchError(
            f"the workers ended with status {status} and without a traceback. HINT: see their last "
            "output above"
        )
    return [cloudpickle.loads(result) for _, _, _, result in found]
