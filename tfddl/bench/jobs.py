"""Runs one job, and reads what its workers report.

A worker reports by lines on its stdout, ``@tfddl-bench {…}``, which `tfddlrun` passes on with the
rank in front. Nothing is sent to workers: all that they need is on their command line.
"""

import contextlib
import dataclasses
import enum
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from tfddl.bench.codec import from_json, to_json
from tfddl.bench.config import Config, InitOptions, Style
from tfddl.bench.results import Results
from tfddl.bench.workloads import Workload
from tfddl.errors import LaunchError

PLAIN = "plain Keras"
"""The label of workers without tfddl."""

_MARK = "@tfddl-bench "
_REPORT = re.compile(rf"(?:\[\d+\] )?{_MARK}(\{{.*\}})")
_SILENCE_S = 900.0
"""A job that says nothing for so long hangs."""

_END_S = 20.0
_TAIL_LINES = 40


class Kind(enum.StrEnum):
    """What a job does: collectives and training in turns; a start; reading a file."""

    MEASURE = "measure"
    START = "start"
    READ = "read"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker of a job is told, on its command line."""

    kind: Kind
    config: Config
    options: InitOptions = InitOptions()
    style: Style = Style.OPTIMIZER  # of a START, as is:
    workload: Workload | None = None
    directory: str = ""  # where a READ finds the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What each worker of a START reports at its end; see `tfddl.bench.results.Start`."""

    label: str
    import_s: float
    init_s: float
    first_step_s: float
    started_bytes: int
    kept_bytes: int
    gradient_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One line of a worker."""

    progress: str | None = None
    results: Results | None = None
    sample: Sample | None = None
    others: tuple[str, ...] = ()
    """Other values of ``tfddl.init(collective=…)`` that would make a difference in this job."""

    has_stepped: bool = False
    """The first training step is done."""

    is_done: bool = False
    """The worker ends."""

    def write(self) -> None:
        """To stdout, at once."""
        sys.stdout.write(f"{_MARK}{to_json(self)}\n")
        sys.stdout.flush()


@dataclasses.dataclass
class Outcome:
    """What the workers of a job reported."""

    results: Results = dataclasses.field(default_factory=Results)
    samples: list[Sample] = dataclasses.field(default_factory=list)
    others: tuple[str, ...] = ()
    step_s: float = 0.0
    """From launch until the last worker had done its first step."""


def run_job(
    command: Sequence[str],
    task: Task,
    *,
    num_workers: int,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> Outcome:
    """Runs a job to its end.

    Args:
        command: Starts a Python in each worker.
        task: What they do.
        num_workers: How many they are.
        environment: What they inherit.
        say: Takes what they say of their progress.

    Raises:
        LaunchError: The job failed, or was silent for 15 minutes; the text has its last output.
    """
    outcome, num_done = Outcome(), 0
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    launched_s = time.monotonic()
    with _started([*command, "-m", "tfddl.bench.worker", to_json(task)], environment) as process:
        for at_s, line in _lines(process):
            found = _REPORT.fullmatch(line)
            if found is None:
                tail.append(f"    {line}\n")
                continue
            report = from_json(Report, found[1])
            if report.progress is not None:
                say(report.progress)
            if report.results is not None:
                outcome.results.add(report.results)
            if report.sample is not None:
                outcome.samples.append(report.sample)
            if report.has_stepped:
                outcome.step_s = at_s - launched_s
            outcome.others = outcome.others or report.others
            num_done += report.is_done
    # With TensorFlow's servers, who is done may yet be aborted as another ends before it.
    if num_done < num_workers:
        raise LaunchError(
            f"a job of {num_workers} workers failed. It said, and at the end who failed first:\n"
            + ("".join(tail) or "    nothing")
        )
    return outcome


@contextlib.contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A running job; it is ended on exit, should it still run."""
    with subprocess.Popen(
        command,
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # A Ctrl-C is ours, and we end it.
    ) as process:
        try:
            yield process
        except BaseException:
            process.send_signal(signal.SIGTERM)  # tfddlrun then ends its workers.
            raise
        finally:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _lines(process: "subprocess.Popen[str]") -> Iterator[tuple[float, str]]:
    """Each line of the output, and when it came, by `time.monotonic`."""
    lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put((time.monotonic(), line.rstrip("\n")))
        lines.put(None)

    threading.Thread(target=read, name="tfddl-bench-output", daemon=True).start()
    while True:
        try:
            item = lines.get(timeout=_SILENCE_S)
        except queue.Empty:
            raise LaunchError(f"a job has said nothing for {_SILENCE_S:.0f} s") from None
        if item is None:
            return
        yield item
