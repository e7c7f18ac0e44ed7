"""Runs one job, and reads what its workers report.

A worker reports by lines on its stdout, ``@tfddl-bench {…}``, which `tfddlrun` passes on with the
rank in front: JSON, not pickles, since workers may be on other hosts, and to unpickle is to run
what the other end likes. Nothing is sent to workers: all that they need are the command's flags.
"""

import contextlib
import enum
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfddl.errors import LaunchError

_MARK = "@tfddl-bench "
_REPORT = re.compile(rf"(?:\[\d+\] )?{_MARK}(\{{.*\}})$")
_LONGEST_S = 7200.0
_END_S = 20.0
_TAIL_LINES = 40


class Kind(enum.StrEnum):
    """What a job does: measures collectives and training, reads a file, or only starts."""

    MEASURE = "measure"
    READ = "read"
    START_PLAIN = "start-plain"
    START_TFDDL = "start-tfddl"
    START_STRATEGY = "start-strategy"


def write_report(name: str, value: Any = None) -> None:
    """Writes a line of a worker to its stdout, at once.

    Args:
        name: "progress": a text; "results": `Results.to_json`; "others": see
            `session.other_collectives`; "by": with what a start was made; "sample": numbers of it;
            "stepped": it has done its first step; "done": the worker ends.
        value: In JSON.
    """
    sys.stdout.write(f"{_MARK}{json.dumps({name: value})}\n")
    sys.stdout.flush()


def run_job(
    command: Sequence[str],
    *,
    num_workers: int,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> list[tuple[float, str, Any]]:
    """Runs a job of so many workers to its end.

    Returns:
        All reports: seconds after the launch, name, value.

    Raises:
        LaunchError: The job failed, or took more than two hours; the text has its last output.
    """
    reports, tail = [], deque[str](maxlen=_TAIL_LINES)
    launched_s = time.monotonic()
    with _started(command, environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _REPORT.match(line):
                [(name, value)] = json.loads(found[1]).items()
                if name == "progress":
                    say(value)
                reports.append((time.monotonic() - launched_s, name, value))
            else:
                tail.append(f"    {line}")
    # With TensorFlow's servers, who is done may yet be aborted as another ends before it.
    if sum(name == "done" for _, name, _ in reports) < num_workers:
        raise LaunchError(
            f"a job of {num_workers} workers failed. It said, and at the end who failed first:\n"
            + ("".join(tail) or "    nothing")
        )
    return reports


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
