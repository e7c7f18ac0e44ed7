"""Trainings that are struck in every way, one after the other, or in one way again and again."""

import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfddl.bench import blows, evidence, ordeal
from tfddl.bench.blows import BLOWS, Blow
from tfddl.bench.ordeal import Finding, Run
from tfddl.bench.table import markdown
from tfddl.errors import LaunchError

_HEADINGS = (
    *("struck by", "noticed", "going on", "restarts", "steps again", "lost", "weights", "left"),
)
_PAUSE_MS = 20
_LONGEST_S = 1.5
_STEPS_PER_KILL = 40
_START_S = 120.0


def in_a_row(directory: Path, names: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Strikes a training in each of these ways; returns the table.

    Args:
        directory: Where the trainings are made.
        names: The ways; none is all that can be tried on this machine.
        environment: What the workers inherit.

    Raises:
        LaunchError: One of them didn't come to its end, or was not what it has to be; or one that
            was asked for can't be tried.
    """
    can_be_left_out = not names
    names = names or list(BLOWS)
    rows = []
    references: dict[bool, Path] = {}
    for number, name in enumerate(names, 1):
        sys.stderr.write(f"{number} of {len(names)}: {name}\n")
        blow = BLOWS[name]
        if missing := ordeal.missing_for(blow):
            if not can_be_left_out:
                raise LaunchError(f"{name}: {missing}")
            rows.append([name, f"not run: {missing}", *[""] * (len(_HEADINGS) - 2)])
            continue
        if blow.is_repeated not in references:
            reference = directory / f"undisturbed-{blow.num_workers}"
            ordeal.undisturbed(reference, blow, environment=environment)
            references[blow.is_repeated] = reference
        found = ordeal.undergo(
            name,
            blow,
            directory / str(number),
            reference=references[blow.is_repeated],
            environment=environment,
        )
        check(name, blow, found)
        rows.append(row(name, found))
    return markdown(_HEADINGS, rows)


def check(name: str, blow: Blow, found: Finding) -> None:
    """Makes sure that the training was struck, and that nothing has come of it.

    Raises:
        LaunchError: With what was found, and the whole log.
    """
    faults = [
        (found.restarts < 1, "it was never started again"),
        (found.exposure.lost > 0, f"{found.exposure.lost} examples were lost"),
        (found.exposure.twice > 0, f"{found.exposure.twice} examples were trained on twice"),
        (found.exposure.repeated < 1 and not blow.saves, "no step was trained again"),
        (found.difference > (1e-5 if blow.is_repeated else 0), f"weights: {found.difference}"),
        (bool(found.left), f"left behind: {', '.join(found.left)}"),
        (not found.last_step and not blow.ends_job, "the victim's last step was not told"),
    ]
    wrong = [text for is_wrong, text in faults if is_wrong]
    if wrong:
        raise LaunchError(f"{name}: {'; '.join(wrong)}.\n{found.log}")


def row(name: str, found: Finding) -> list[str]:
    """Of the table."""
    same = "bit for bit" if found.difference == 0 else f"within {found.difference:.0e}"
    return [
        name,
        "-" if found.notice_s is None else f"{found.notice_s:.1f} s",
        f"{found.go_on_s:.0f} s",
        str(found.restarts),
        str(found.exposure.repeated),
        str(found.exposure.lost),
        same,
        "nothing" if not found.left else ", ".join(found.left),
    ]


def at_random(directory: Path, num_kills: int, *, seed: int, environment: Mapping[str, str]) -> str:
    """Kills workers of one training at random moments, and tells what it came to.

    Raises:
        LaunchError: It didn't come to the weights of an undisturbed training, or left something.
    """
    epochs = blows.EPOCHS + num_kills * _STEPS_PER_KILL // blows.STEPS
    flags = [f"--epochs={epochs}"]
    reference = ordeal.make_run(directory / "undisturbed", flags, ["-np", "2"], environment)
    reference.once()
    flags.append(f"--pause_ms={_PAUSE_MS}")
    options = ["-np", "2", "--max-restarts", str(num_kills)]
    run = ordeal.make_run(directory / "struck", flags, options, environment)
    killed = _strike_at_random(run, num_kills, random.Random(seed))
    if reference.status or run.status:
        raise LaunchError(
            f"the trainings ended with {reference.status} and {run.status}:\n{run.log}"
        )
    starts = evidence.read_starts(run.directory)
    seen = evidence.exposure(starts, num_examples=blows.EXAMPLES, epochs=epochs)
    difference = evidence.weights_differ(run.directory, reference.directory)
    left = ordeal.leftovers(run)
    text = (
        f"{killed} of {num_kills} kills at random, {len(starts) - 1} starts that came to train "
        f"after the first, {epochs} epochs; steps trained again: {seen.repeated}; examples lost: "
        f"{seen.lost}, twice: {seen.twice}; weights: "
        f"{'bit for bit' if difference == 0 else difference}; left: {', '.join(left) or 'nothing'}"
    )
    if seen.lost or seen.twice or difference or left or killed < num_kills:
        raise LaunchError(text)
    return text


def _strike_at_random(run: Run, num_kills: int, chance: random.Random) -> int:
    """Kills one of the workers, or both, a while after each start has done its first step."""
    killed = 0
    with ordeal.started(run) as process:
        reader = ordeal.Reader(process, run)
        while killed < num_kills and _wait_for_starts(run, killed + 1, reader):
            time.sleep(chance.uniform(0, _LONGEST_S))
            pids = _newest_pids(run.directory)
            victims = pids if chance.random() < 0.1 else [chance.choice(pids)]
            alive = [pid for pid in victims if _kill(pid)]
            killed += bool(alive)
            sys.stderr.write(f"kill {killed} of {num_kills}\n")
        reader.finish()
    return killed


def _wait_for_starts(run: Run, count: int, reader: "ordeal.Reader") -> bool:
    """Whether so many starts have come to their first step, as long as the job lives."""
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and reader.is_running:
        notes = evidence.read_notes(run.directory, "first")
        if len({note["start"] for note in notes}) >= count:
            return True
        time.sleep(0.05)
    return False


def _newest_pids(directory: Path) -> list[int]:
    """The processes of the newest start."""
    notes = evidence.read_notes(directory, "starts")
    newest = max(notes, key=lambda note: int(note["start"].partition("/")[2]))["start"]
    return [note["pid"] for note in notes if note["start"] == newest]


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
