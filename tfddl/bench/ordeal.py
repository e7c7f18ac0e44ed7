"""A training under `tfddlrun` that is struck, from beginning to end, and what is found then."""

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

from tfddl.bench import blows, evidence, namespaces
from tfddl.bench.blows import Act, Blow, Trouble
from tfddl.errors import LaunchError

_LAUNCHER = (sys.executable, "-m", "tfddl.launcher")
_TIMEOUT_S = 300.0
_PATIENCE_S = 5.0
_REPORT = re.compile(r"tfddlrun: (rank \d+( on \S+)? failed|ended by)")
_PLACE = re.compile(r"tfddlrun: it had come to (step \d+ of epoch \d+|before the first step)")
_SMALL_DISK = "size=256k"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a training that was struck."""

    notice_s: float | None
    """From the blow until `tfddlrun` had ended all workers and said so; None where it was killed
    itself."""

    go_on_s: float
    """From the blow until the first step after it was done."""

    restarts: int
    """Starts after the first."""

    last_step: str
    """Of the victim, as `tfddlrun` has told; empty where it has told nothing."""

    exposure: evidence.Exposure
    difference: float
    """Of the final weights from those of an undisturbed training; 0 is bit for bit."""

    left: tuple[str, ...]
    """Processes and files that were left behind."""

    log: str


@dataclasses.dataclass
class Run:
    """The command, given perhaps more than once, and what it has written, with times."""

    directory: Path
    command: list[str]
    environment: Mapping[str, str]
    at_failure: Callable[[], None] = lambda: None
    """Called when a failure has been told of, each time."""

    launches: int = 0
    lines: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    status: int = 0

    def once(self) -> None:
        """Gives the command, and waits for its end.

        Raises:
            LaunchError: It doesn't come to an end.
        """
        with started(self) as process:
            Reader(process, self).finish()

    @property
    def log(self) -> str:
        """All lines."""
        return "\n".join(line for _, line in self.lines)


class Reader:
    """Takes the lines of a running command, while others do something else."""

    def __init__(self, process: subprocess.Popen[str], run: Run) -> None:
        self._process, self._run = process, run
        self._thread = threading.Thread(target=self._read, name="tfddl-bench")
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    def finish(self) -> None:
        """Waits for the end.

        Raises:
            LaunchError: It doesn't come.
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
    """The command, running; it is killed in the end, should it still run."""
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
    """A training in a folder of its own."""
    for name in ("tmp", "checkpoints"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    door = (sys.executable, "-m", "tfddl.bench.faults", f"--train={directory}", *flags)
    whole = {"TF_CPP_MIN_LOG_LEVEL": "2", **environment, "TMPDIR": str(directory / "tmp")}
    return Run(directory, [*_LAUNCHER, *options, *door], whole)


def undisturbed(directory: Path, blow: Blow, *, environment: Mapping[str, str]) -> None:
    """What the training of a case comes to when nothing happens.

    Raises:
        LaunchError: It failed.
    """
    flags = ["--like_sizes"] if blow.is_repeated else []
    run = make_run(directory, flags, ["-np", str(blow.num_workers)], environment)
    run.once()
    if run.status:
        raise LaunchError(f"the undisturbed training failed:\n{run.log}")


def undergo(
    name: str, blow: Blow, directory: Path, *, reference: Path, environment: Mapping[str, str]
) -> Finding:
    """Strikes a training, and looks at what it came to.

    Args:
        name: The case.
        blow: What is done.
        directory: Where it is to train; made.
        reference: Where the undisturbed training was.
        environment: What the workers inherit.

    Raises:
        LaunchError: The training wasn't struck, or didn't come to its end.
    """
    run = make_run(directory, [f"--case={name}"], blow.options, environment)
    with (
        _disk(directory / "checkpoints", small=blow.trouble is Trouble.FULL_DISK),
        _hosts(blow, run),
    ):
        run.once()
        first_status = run.status
        if blow.ends_job:
            run.once()
        struck = [float(path.read_text()) for path in directory.glob("struck.*")]
        if run.status or len(struck) != len(blow.ranks) or blow.ends_job != bool(first_status):
            raise LaunchError(
                f"{name}: struck {len(struck)} times, ended with {first_status} and then "
                f"{run.status}:\n{run.log}"
            )
        return look(run, reference, struck_s=max(struck), blow=blow)


def look(run: Run, reference: Path, *, struck_s: float, blow: Blow) -> Finding:
    """Looks at a training that has come to its end."""
    reports = [at for at, line in run.lines if at >= struck_s and _REPORT.match(line)]
    first_steps = [n["time"] for n in evidence.read_notes(run.directory, "first")]
    places = _PLACE.findall(run.log)
    starts = evidence.read_starts(run.directory)
    notices = blow.act is not Act.KILL_LAUNCHER
    return Finding(
        notice_s=min(reports) - struck_s if notices else None,
        go_on_s=min(at for at in first_steps if at > struck_s) - struck_s,
        restarts=len(starts) - 1,
        last_step=places[-1] if places else "",
        exposure=evidence.exposure(starts, num_examples=blows.EXAMPLES, epochs=blows.EPOCHS),
        difference=evidence.weights_differ(run.directory, reference),
        left=leftovers(run),
        log=run.log,
    )


def leftovers(run: Run) -> tuple[str, ...]:
    """What the training has left: processes of its sessions, and files.

    Ports, sockets and memory without a name are gone with the last process that holds them.
    """
    notes = evidence.read_notes(run.directory, "starts")
    sessions = {session for note in notes for session in note["sessions"]}
    end_s = time.monotonic() + _PATIENCE_S
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
    """A small disk for the folder, where one may be mounted; otherwise the one that it is on."""
    mounted = False
    if small and os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", _SMALL_DISK, "tfddl-bench", str(directory)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def missing_for(blow: Blow) -> str:
    """What this machine lacks for a case; nothing where it lacks nothing."""
    if not blow.hosts:
        return ""
    return namespaces.missing_for_hosts() or namespaces.missing_for_sshd()


@contextlib.contextmanager
def _hosts(blow: Blow, run: Run) -> Iterator[None]:
    """Runs the command on the first of two hosts, where the case has hosts of their own."""
    if not blow.hosts:
        yield
        return
    slots = zip(namespaces.ADDRESSES, blow.hosts, strict=True)
    with namespaces.two_hosts() as (here, there), _far_sshd(run.directory, there) as ssh:
        hosts = ",".join(f"{address}:{count}" for address, count in slots)
        options = ["-H", hosts, "--ssh-command", ssh, "--trusted-network", "-x", "TMPDIR"]
        given = run.command[len(_LAUNCHER) :]
        run.command = [*namespaces.inside(here), *_LAUNCHER, *options, *given]
        if blow.heals:
            run.at_failure = lambda: namespaces.plug_in(there)
        yield


def _far_sshd(directory: Path, name: str) -> contextlib.AbstractContextManager[str]:
    return namespaces.sshd(
        directory / "ssh", address=namespaces.ADDRESSES[1], inside=namespaces.inside(name)
    )


def make_folder(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder for trainings, gone in the end."""
    return tempfile.TemporaryDirectory(prefix="tfddl-bench-", dir=parent)
