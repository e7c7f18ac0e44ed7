"""Runs one job, and reads what its workers report.

A worker reports by lines on its stdout, ``@tfddl-bench {…}``, which `tfddlrun` passes on with the
rank in front. Nothing is sent to workers: all that they need is on their command line.
"""

import contextlib
import dataclasses
import enum
import re
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
_REPORT = re.compile(rf"(?:\[\d+\] )?{_MARK}(\{{.*\}})$")
_LONGEST_S = 7200.0
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

    num_done: int = 0


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
        LaunchError: The job failed, or took more than two hours; the text has its last output.
    """
    outcome, tail = Outcome(), deque[str](maxlen=_TAIL_LINES)
    launched_s = time.monotonic()
    with _started([*command, "-m", "tfddl.bench.worker", to_json(task)], environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _REPORT.match(line):
                report = from_json(Report, found[1])
                _take(outcome, report, time.monotonic() - launched_s)
                if report.progress is not None:
                    say(report.progress)
            else:
                tail.append(f"    {line}")
    # With TensorFlow's servers, who is done may yet be aborted as another ends before it.
    if outcome.num_done < num_workers:
        raise LaunchError(
            f"a job of {num_workers} workers failed. It said, and at the end who failed first:\n"
            + ("".join(tail) or "    nothing")
        )
    return outcome


def _take(outcome: Outcome, report: Report, at_s: float) -> None:
    if report.results is not None:
        outcome.results.add(report.results)
    if report.sample is not None:
        outcome.samples.append(report.sample)
    if report.has_stepped:
        outcome.step_s = at_s
    outcome.others = outcome.others or report.others
    outcome.num_done += report.is_done


@contextlib.contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A running job; it is ended on exit, and after two hours."""
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
        timer = threading.Timer(_LONGEST_S, process.terminate)
        timer.start()
        try:
            yield process
        except BaseException:
            process.terminate()  # tfddlrun then ends its workers.
            raise
        finally:
            timer.cancel()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
