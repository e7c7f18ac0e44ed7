"""All faults one after the other, or kills of one training at random moments."""

import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import audit, cases, injection
from tests.faults.cases import FAULTS, Fault
from tests.faults.injection import Outcome, OutputReader, Run
from tfddl.bench.report import markdown
from tfddl.errors import LaunchError

_HEADINGS = (
    *("fault", "noticed", "resumed", "restarts", "steps again", "lost", "weights", "left"),
)
_PAUSE_MS = 20
_LONGEST_S = 1.5
_STEPS_PER_KILL = 40
_START_S = 120.0


def run_all(directory: Path, names: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Runs a training with each fault; returns a table in Markdown.

    Args:
        directory: For the trainings.
        names: Of the faults; empty for all that this machine allows.
        environment: What the workers inherit.

    Raises:
        LaunchError: A training didn't end well, or not as it has to; or this machine lacks what a
            named fault needs.
    """
    may_be_skipped = not names
    names = names or list(FAULTS)
    rows = []
    references: dict[tuple[bool, int], Path] = {}
    for number, name in enumerate(names, 1):
        sys.stderr.write(f"{number} of {len(names)}: {name}\n")
        fault = FAULTS[name]
        if missing := injection.missing_for(fault):
            if not may_be_skipped:
                raise LaunchError(f"{name}: {missing}")
            rows.append([name, f"not run: {missing}", *[""] * (len(_HEADINGS) - 2)])
            continue
        if fault.trained_like not in references:
            reference = directory / f"reference-{fault.num_workers}"
            injection.run_reference(reference, fault, environment=environment)
            references[fault.trained_like] = reference
        found = injection.run_fault(
            name,
            fault,
            directory / str(number),
            reference=references[fault.trained_like],
            environment=environment,
        )
        check(name, fault, found)
        rows.append(row(name, found))
    return markdown(_HEADINGS, rows)


def check(name: str, fault: Fault, found: Outcome) -> None:
    """Checks that the training restarted, lost nothing and left nothing.

    Raises:
        LaunchError: It didn't; the text has what was found, and the whole log.
    """
    checks = [
        (found.restarts < 1, "it was never started again"),
        (found.exposure.lost > 0, f"{found.exposure.lost} examples were lost"),
        (found.exposure.twice > 0, f"{found.exposure.twice} examples were trained on twice"),
        (found.exposure.repeated < 1 and not fault.saves, "no step was trained again"),
        (found.difference > (1e-5 if fault.is_repeated else 0), f"weights: {found.difference}"),
        (bool(found.left), f"left behind: {', '.join(found.left)}"),
        (
            not found.last_step and not fault.saves and not fault.ends_job,
            "no last step was reported",
        ),
    ]
    wrong = [text for is_wrong, text in checks if is_wrong]
    if wrong:
        raise LaunchError(f"{name}: {'; '.join(wrong)}.\n{found.log}")


def row(name: str, found: Outcome) -> list[str]:
    """A row of the table."""
    same = "bit for bit" if found.difference == 0 else f"within {found.difference:.0e}"
    return [
        name,
        "-" if found.notice_s is None else f"{found.notice_s:.1f} s",
        f"{found.resume_s:.0f} s",
        str(found.restarts),
        str(found.exposure.repeated),
        str(found.exposure.lost),
        same,
        "nothing" if not found.left else ", ".join(found.left),
    ]


def at_random(directory: Path, num_kills: int, *, seed: int, environment: Mapping[str, str]) -> str:
    """Kills workers of one training at random moments; returns what became of it, as a sentence.

    Raises:
        LaunchError: The weights aren't those of the training without kills, or something was left.
    """
    epochs = cases.EPOCHS + num_kills * _STEPS_PER_KILL // cases.STEPS
    flags = [f"--epochs={epochs}"]
    reference = injection.make_run(directory / "reference", flags, ["-np", "2"], environment)
    reference.once()
    flags.append(f"--pause_ms={_PAUSE_MS}")
    options = ["-np", "2", "--max-restarts", str(num_kills)]
    run = injection.make_run(directory / "faulty", flags, options, environment)
    killed = _kill_at_random(run, num_kills, random.Random(seed))
    if reference.status or run.status:
        raise LaunchError(
            f"the trainings ended with {reference.status} and {run.status}:\n{run.log}"
        )
    starts = audit.read_starts(run.directory)
    seen = audit.exposure(starts, num_examples=cases.EXAMPLES, epochs=epochs)
    difference = audit.weights_differ(run.directory, reference.directory)
    left = injection.leftovers(run)
    text = (
        f"{killed} of {num_kills} kills at random, {len(starts) - 1} starts that trained "
        f"after the first, {epochs} epochs; steps trained again: {seen.repeated}; examples lost: "
        f"{seen.lost}, twice: {seen.twice}; weights: "
        f"{'bit for bit' if difference == 0 else difference}; left: {', '.join(left) or 'nothing'}"
    )
    if seen.lost or seen.twice or difference or left or killed < num_kills:
        raise LaunchError(text)
    return text


def _kill_at_random(run: Run, num_kills: int, chance: random.Random) -> int:
    """Kills one of the workers, or both, some time after each start has done its first step."""
    killed = 0
    with injection.started(run) as process:
        reader = OutputReader(process, run)
        while killed < num_kills and _wait_for_starts(run, killed + 1, reader):
            time.sleep(chance.uniform(0, _LONGEST_S))
            pids = _newest_pids(run.directory)
            chosen = pids if chance.random() < 0.1 else [chance.choice(pids)]
            alive = [pid for pid in chosen if _kill(pid)]
            killed += bool(alive)
            sys.stderr.write(f"kill {killed} of {num_kills}\n")
        reader.finish()
    return killed


def _wait_for_starts(run: Run, count: int, reader: OutputReader) -> bool:
    """Waits until so many starts have done a step; returns whether they have."""
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and reader.is_running:
        records = audit.read_records(run.directory, "first")
        if len({record["start"] for record in records}) >= count:
            return True
        time.sleep(0.05)
    return False


def _newest_pids(directory: Path) -> list[int]:
    """The pids of the newest start."""
    records = audit.read_records(directory, "starts")
    newest = max(records, key=lambda record: int(record["start"].partition("/")[2]))["start"]
    return [record["pid"] for record in records if record["start"] == newest]


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
