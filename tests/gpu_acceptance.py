"""What `launch/gpu.sh` runs: certifies tfddl on the GPUs of this machine. It isn't in the wheel.

It starts jobs of real workers and puts what they find into a table; the exit status is the table's.
On a machine without a GPU it checks what can be checked there, and ends with status 3.

``--rehearse`` runs nearly all of its code without a GPU, on two workers whose operations go through
the NCCL branch over RING. That proves the code of this file, and nothing about GPUs.
"""

import argparse
import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.one_process import in_one_process

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = 3
FAILED = 1

JOB_S = 240.0
SLEEP_S = 8.0
WARN_S = 2.0
CLOSE = 1e-5
"""How far weights may be from one process', by the largest weight of their variable."""

_INIT_COMPLETE = re.compile(r"Init COMPLETE")
_KILLED = 128 + signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    state: str
    """"ok", "FAILED", "not shown" (why is in the detail), or "rehearsed"."""

    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run, on this machine."""

    num_gpus: int
    workers: int
    collective: str
    """What `tfddl.init` gets."""

    rehearses: bool = False

    @property
    def good(self) -> str:
        """What a row says that went well."""
        return "rehearsed" if self.rehearses else "ok"

    def row(self, what: str, problem: str, detail: str = "") -> Row:
        """A row of what was run: it went well if there is no problem."""
        return Row(what, "FAILED", problem) if problem else Row(what, self.good, detail)


def make_plan(num_gpus: int, *, workers: int | None, rehearse: bool) -> Plan:
    """How many workers use what.

    Args:
        num_gpus: How many GPUs there are.
        workers: How many to use; None is all.
        rehearse: Whether no GPU is to be used.
    """
    if rehearse:
        return Plan(num_gpus=0, workers=2, collective="ring", rehearses=True)
    if num_gpus < 2:  # Which two processes share.
        return Plan(num_gpus=num_gpus, workers=2, collective="ring")
    return Plan(num_gpus=num_gpus, workers=min(num_gpus, workers or num_gpus), collective="nccl")


def environment(plan: Plan) -> dict[str, str]:
    """Of the jobs: NCCL tells of its start."""
    more = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split()]),
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT",
    }
    if plan.rehearses:
        more["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **more}


def run(line: Sequence[str], plan: Plan, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; what takes too long is killed, with all that it started."""
    with subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment(plan),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **more,
    ) as process:
        try:
            out, _ = process.communicate(timeout=JOB_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            out += f"\nno end after {JOB_S:g} s"
    return subprocess.CompletedProcess(line, process.returncode, out)


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def ask(what: str, plan: Plan) -> Any:
    """What a process of its own finds out, which may use TensorFlow; text if it fails."""
    done = run([sys.executable, "-m", "tests.gpu_acceptance_worker", what], plan)
    for text in done.stdout.splitlines():
        if text.startswith("found "):
            return json.loads(text.removeprefix("found "))
    return _last_lines(done.stdout)


def job(case: str, plan: Plan, directory: Path) -> subprocess.CompletedProcess[str]:
    """A job of real workers, as users start them."""
    worker = [sys.executable, "-m", "tests.gpu_acceptance_worker", case, "--out", str(directory)]
    worker += ["--collective", plan.collective, *(["--rehearse"] if plan.rehearses else [])]
    line = [sys.executable, "-m", "tfddl.launcher", "-np", str(plan.workers), "--trusted-network"]
    return run([*line, "--", *worker], plan)


def check_machine(plan: Plan) -> Iterator[Row]:
    """What can be checked without a GPU, too."""
    done = run([sys.executable, "-c", _DOCTOR], plan)
    tell(done.stdout.rstrip())
    problem = "" if done.returncode == 0 else "see what it says above"
    yield plan.row("tfddl-doctor", problem, "no problem")
    kernels = ask("kernels", plan)
    missing = kernels if isinstance(kernels, str) else ", ".join(kernels["missing"])
    yield plan.row("TensorFlow's kernels for GPUs", missing, "every collective, in NCCL's dtypes")


_DOCTOR = "from tfddl._src.launcher.main import run_doctor; run_doctor()"


def check_jobs(plan: Plan, directory: Path) -> Iterator[Row]:
    """What workers find."""
    kind = "NCCL" if plan.collective == "nccl" else "RING"
    tell(f"\nA job of {plan.workers} workers by {kind}: collectives, exactness, speed …")
    done = job("all", plan, directory)
    yield from _of_job(plan, done, directory)
    tell("A job in which a rank sleeps …")
    yield _sleeper(plan, job("sleep", plan, directory))
    tell("A job in which a rank is killed …")
    begin_s = time.monotonic()
    done = job("kill", plan, directory)
    yield _killed(plan, done, time.monotonic() - begin_s)


def _of_job(plan: Plan, done: subprocess.CompletedProcess[str], directory: Path) -> Iterator[Row]:
    lines = len(_INIT_COMPLETE.findall(done.stdout))
    if plan.collective == "nccl":
        few = "" if lines >= plan.workers else f"{lines} lines, {plan.workers} or more expected"
        yield plan.row("NCCL's own 'Init COMPLETE'", few, f"{lines} lines")
    found = [directory / f"{rank}.pickle" for rank in range(plan.workers)]
    if done.returncode != 0 or not all(path.exists() for path in found):
        yield Row("the job", "FAILED", f"status {done.returncode}: {_last_lines(done.stdout)}")
        return
    # What our own workers have written.
    ranks: list[Mapping[str, Any]] = [pickle.loads(path.read_bytes()) for path in found]
    for what in ranks[0]["rows"]:
        problems = [f"rank {r}: {p}" for r, f in enumerate(ranks) if (p := f["rows"][what][0])]
        yield plan.row(what, "; ".join(problems), ranks[0]["rows"][what][1])
    for api, spec in ranks[0]["specs"].items():
        yield _exactness(plan, api, spec, [rank["trained"][api] for rank in ranks], directory)


def _exactness(
    plan: Plan, api: str, spec: dict[str, Any], ranks: list[dict[str, Any]], directory: Path
) -> Row:
    what = f"{plan.workers} ranks and 1 process, {api}"
    steps = [
        [example for shard in shards for example in shard]
        for shards in zip(*(rank["seen"] for rank in ranks), strict=True)
    ]
    per_epoch = len(steps) // spec["epochs"]
    batches = [steps[i : i + per_epoch] for i in range(0, len(steps), per_epoch)]
    try:
        [one] = in_one_process([(spec, batches)], directory)
    except subprocess.SubprocessError as error:
        return Row(what, "FAILED", str(error))
    worst = max(
        float(np.abs(rank["weights"][path] - expected).max() / np.abs(expected).max())
        for rank in ranks
        for path, expected in one["weights"].items()
    )
    alike = all(
        rank["weights"][path].tobytes() == value.tobytes()
        for rank in ranks
        for path, value in ranks[0]["weights"].items()
    )
    problem = "" if worst <= CLOSE else f"weights differ by {worst:.1e}; at most {CLOSE:g} expected"
    problem = problem if alike else "the ranks' weights differ"
    return plan.row(what, problem, f"weights differ by {worst:.1e} after {len(steps)} steps")


def _sleeper(plan: Plan, done: subprocess.CompletedProcess[str]) -> Row:
    late = plan.workers - 1
    named = re.search(rf"rank {late} hasn't called it", done.stdout)
    problem = "" if named else f"nobody named rank {late}: {_last_lines(done.stdout)}"
    if done.returncode != 0:
        problem = f"status {done.returncode}: {_last_lines(done.stdout)}"
    return plan.row("a rank that sleeps", problem, f"rank {late} is named, and the job goes on")


def _killed(plan: Plan, done: subprocess.CompletedProcess[str], took_s: float) -> Row:
    killed = plan.workers - 1
    fine = done.returncode == _KILLED and f"rank {killed}" in done.stdout
    problem = "" if fine else f"status {done.returncode}: {_last_lines(done.stdout)}"
    detail = f"rank {killed} is named, the others end; {took_s:.0f} s with the start"
    return plan.row("a rank that is killed", problem, detail)


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-6:])


def one_gpu(plan: Plan) -> Iterator[Row]:
    """What a single GPU shows of NCCL, and what it can't."""
    alone = ask("alone", plan)
    problem = alone if isinstance(alone, str) else alone["problem"]
    yield plan.row("NCCL between one GPU and itself", problem, "sum, gather, broadcast")
    if not plan.rehearses:
        for what in ("NCCL between GPUs", "bandwidth and overlap of NCCL"):
            yield Row(what, "not shown", "needs a second GPU")


def table(rows: Sequence[Row], plan: Plan) -> str:
    """The table, with a headline that can't be taken for more than it is."""
    width = max(len(row.what) for row in rows)
    lines = [f"{row.state:<10} {row.what:<{width}}  {row.detail}".rstrip() for row in rows]
    if plan.rehearses:
        title = "REHEARSAL ON CPUs, BY RING: THIS SAYS NOTHING ABOUT GPUs"
        lines.append(title)
    elif not plan.num_gpus:
        title = "NO GPU: only what can be checked without one"
    else:
        title = f"{plan.num_gpus} GPU{'s' * (plan.num_gpus > 1)}, {plan.workers} workers"
    return "\n".join(["", title, *lines])


def status(rows: Sequence[Row], plan: Plan) -> int:
    """The exit status."""
    if any(row.state == "FAILED" for row in rows):
        return FAILED
    return NO_GPU if not plan.num_gpus and not plan.rehearses else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh", add_help=False)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    plan = make_plan(0, workers=options.workers, rehearse=options.rehearse)
    seen = ask("devices", plan)
    rows = []
    if isinstance(seen, str):
        rows.append(Row("TensorFlow", "FAILED", seen))
    else:
        tell("\n".join(seen["lines"]))
        plan = make_plan(seen["gpus"], workers=options.workers, rehearse=options.rehearse)
    rows += check_machine(plan)
    if plan.num_gpus or plan.rehearses:
        with tempfile.TemporaryDirectory(prefix="tfddl-gpu-") as directory:
            rows += check_jobs(plan, Path(directory))
        if plan.num_gpus < 2:
            rows += one_gpu(plan)
    else:
        tell("\nno GPU: TensorFlow sees none; nothing more can be checked here")
    tell(table(rows, plan))
    return status(rows, plan)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
