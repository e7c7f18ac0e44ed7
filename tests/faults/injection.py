"""One training with a fault under `tfddlrun`, from start to end, and its outcome."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests import namespaces
from tests.faults import audit, cases
from tests.faults.cases import Action, Fault, Precondition
from tests.group import ROOT
from tfddl.errors import LaunchError

_LAUNCHER = (sys.executable, "-m", "tfddl.launcher")
_TIMEOUT_S = 300.0
_CLEANUP_S = 5.0
_REPORT = re.compile(r"tfddlrun: (rank \d+( on \S+)? failed|ended by|saved \()")
_LAST_STEP = re.compile(r"tfddlrun: its progress: (step \d+ of epoch \d+|before the first step)")
_SMALL_DISK = "size=256k"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a training with a fault."""

    notice_s: float | None
    """From the fault until `tfddlrun` had ended all workers and reported it; None where it was
    killed itself."""

    resume_s: float
    """From the fault until the first step after it was done."""

    restarts: int
    """Starts after the first."""

    last_step: str
    """Of the failed worker, as `tfddlrun` reported it; empty where it didn't."""

    exposure: audit.Exposure
    difference: float
    """Of the final weights from the reference's, relative; 0 is bit for bit."""

    left: tuple[str, ...]
    """Processes and files left behind."""

    log: str


@dataclasses.dataclass
class Run:
    """A command, given once or twice, and its output with times."""

    directory: Path
    command: list[str]
    environment: Mapping[str, str]
    at_failure: Callable[[], None] = lambda: None
    """Called at each reported failure."""

    launches: int = 0
    lines: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    status: int = 0

    def once(self) -> None:
        """Runs the command to its end.

        Raises:
            LaunchError: It doesn't end in time.
        """
        with started(self) as process:
            OutputReader(process, self).finish()

    @property
    def log(self) -> str:
        return "\n".join(line for _, line in self.lines)


class OutputReader:
    """Reads the output of a running command in a thread."""

    def __init__(self, process: subprocess.Popen[str], run: Run) -> None:
        self._process, self._run = process, run
        self._thread = threading.Thread(target=self._read, name="tfddl-faults", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> None:
        """Waits for the end of the command.

        Raises:
            LaunchError: It doesn't end in time.
        """
        try:
            self._run.status = self._process.wait(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise LaunchError(
                f"the training has not ended after {_TIMEOUT_S:.0f} s:\n{self._run.log}"
            ) from error
        finally:
            self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._run.lines.append((time.time(), line.rstrip("\n")))
            if _REPORT.match(line):
                self._run.at_failure()


@contextlib.contextmanager
def started(run: Run) -> Iterator[subprocess.Popen[str]]:
    """The running command; it is killed on exit, should it still run."""
    run.launches += 1
    with subprocess.Popen(
        [*run.command, f"--launch={run.launches}"],
        env=dict(run.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def make_run(
    directory: Path, flags: list[str], options: list[str], environment: Mapping[str, str]
) -> Run:
    """A training in its own directory."""
    for name in ("tmp", "checkpoints"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "hosts").write_text("localhost:2\n")
    command = (sys.executable, "-m", "tests.faults", f"--train={directory}", *flags)
    whole = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **environment,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(directory / "tmp"),
    }
    return Run(directory, [*_LAUNCHER, *options, *command], whole)


def run_reference(directory: Path, fault: Fault, *, environment: Mapping[str, str]) -> None:
    """Trains without a fault, for `run_fault` to compare with.

    Raises:
        LaunchError: The training failed.
    """
    flags = ["--resizable"] if fault.is_repeated else []
    run = make_run(directory, flags, ["-np", str(fault.num_workers)], environment)
    run.once()
    if run.status:
        raise LaunchError(f"the reference training failed:\n{run.log}")


def run_fault(
    name: str, fault: Fault, directory: Path, *, reference: Path, environment: Mapping[str, str]
) -> Outcome:
    """Trains with a fault, and tells the outcome.

    Args:
        name: Of the case.
        fault: The case.
        directory: Where to train; made.
        reference: The directory of the training without a fault.
        environment: What the workers inherit.

    Raises:
        LaunchError: The fault wasn't injected, or the training didn't end well.
    """
    run = make_run(directory, [f"--case={name}"], fault.options, environment)
    with (
        _disk(directory / "checkpoints", small=fault.precondition is Precondition.FULL_DISK),
        _hosts(fault, run),
    ):
        run.once()
        first_status = run.status
        if fault.ends_job:
            run.once()
        injected = [float(path.read_text()) for path in directory.glob("injected.*")]
        if run.status or len(injected) != len(fault.ranks) or fault.ends_job != bool(first_status):
            raise LaunchError(
                f"{name}: {len(injected)} faults injected, exit status {first_status} and then "
                f"{run.status}:\n{run.log}"
            )
        return outcome_of(run, reference, fault_s=max(injected), fault=fault)


def outcome_of(run: Run, reference: Path, *, fault_s: float, fault: Fault) -> Outcome:
    """The outcome of a training that has ended."""
    reports = [at for at, line in run.lines if at >= fault_s and _REPORT.match(line)]
    first_steps = [n["time"] for n in audit.read_records(run.directory, "first")]
    last_steps = _LAST_STEP.findall(run.log)
    starts = audit.read_starts(run.directory)
    notices = fault.action is not Action.KILL_LAUNCHER
    return Outcome(
        notice_s=min(reports) - fault_s if notices else None,
        resume_s=min(at for at in first_steps if at > fault_s) - fault_s,
        restarts=len(starts) - 1,
        last_step=last_steps[-1] if last_steps else "",
        exposure=audit.exposure(starts, num_examples=cases.EXAMPLES, epochs=cases.EPOCHS),
        difference=audit.weights_differ(run.directory, reference),
        left=leftovers(run),
        log=run.log,
    )


def leftovers(run: Run) -> tuple[str, ...]:
    """Processes of the training's sessions, and temporary files, that are still there.

    Ports, sockets and anonymous memory go with the last process that holds them.
    """
    records = audit.read_records(run.directory, "starts")
    sessions = {session for record in records for session in record["sessions"]}
    end_s = time.monotonic() + _CLEANUP_S
    while (processes := _in_sessions(sessions)) and time.monotonic() < end_s:
        time.sleep(0.1)
    temporary = [*(run.directory / "tmp").iterdir()]
    half_written = [*(run.directory / "checkpoints").glob(".writing-*")]
    return (
        *(f"process {pid}" for pid in processes),
        *(str(path) for path in [*temporary, *half_written]),
    )


def _in_sessions(sessions: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) in sessions:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def _disk(directory: Path, *, small: bool) -> Iterator[None]:
    """Mounts a small tmpfs on the directory where that is allowed; `training` has another way."""
    mounted = False
    if small and os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", _SMALL_DISK, "tfddl-faults", str(directory)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def missing_for(fault: Fault) -> str:
    """What this machine lacks for a case; empty if nothing."""
    if not fault.hosts:
        return ""
    return namespaces.missing_for_hosts() or namespaces.missing_for_sshd()


@contextlib.contextmanager
def _hosts(fault: Fault, run: Run) -> Iterator[None]:
    """Runs the command in the first of two network namespaces, if the case has hosts."""
    if not fault.hosts:
        yield
        return
    slots = zip(namespaces.ADDRESSES, fault.hosts, strict=True)
    with namespaces.two_hosts() as (here, there), _sshd_of(run.directory, there) as ssh:
        hosts = ",".join(f"{address}:{count}" for address, count in slots)
        options = ["-H", hosts, "--ssh-command", ssh, "--trusted-network", "-x", "TMPDIR"]
        given = run.command[len(_LAUNCHER) :]
        run.command = [*namespaces.inside(here), *_LAUNCHER, *options, *given]
        if fault.reconnects:
            run.at_failure = lambda: namespaces.connect(there)
        yield


def _sshd_of(directory: Path, name: str) -> contextlib.AbstractContextManager[str]:
    return namespaces.sshd(
        directory / "ssh", address=namespaces.ADDRESSES[1], inside=namespaces.inside(name)
    )


def temporary_directory(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A directory for trainings, removed on exit."""
    return tempfile.TemporaryDirectory(prefix="tfddl-faults-", dir=parent)
