"""Workers that get no further: found by what they write on their boards."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.group import Groups
from tests.launching import PAGE, launch, launched, pids, two_workers, worker
from tests.processes import in_sessions
from tfddl._src.comm.native.thread_stacks import is_in_pipeline
from tfddl._src.heartbeat import VARIABLE, ProgressPage, Stage, WorkerFlags, WorkerProgress
from tfddl._src.launcher.stall_detector import Stall, StallDetector, find_suspects


def at(begun: int, ended: int, *, beats: int = 5, stage: Stage = Stage.TRAINING) -> WorkerProgress:
    return WorkerProgress(beats=beats, steps=beats, stage=stage, begun=begun, ended=ended)


def by_hand(begun: int, ended: int, *, rounds: int = 5) -> WorkerProgress:
    return WorkerProgress(rounds=rounds, begun=begun, ended=ended)


@pytest.mark.parametrize(
    ("readings", "stopped", "suspects"),
    [
        ([at(7, 6), at(6, 6), at(7, 6)], [], [1]),  # It doesn't come to what the others are in.
        ([at(7, 6), at(7, 7)], [], [1]),
        ([at(9, 6), at(7, 6), at(7, 7)], [], [2]),
        ([at(7, 6), at(7, 6)], [], [0, 1]),  # The network between them.
        ([at(0, 0), at(0, 0)], [], [0, 1]),  # Nobody counts.
        ([at(7, 6), at(7, 6)], [0], [0]),
        ([], [], []),
    ],
)
def test_whom_the_others_wait_for(
    readings: list[WorkerProgress], stopped: list[int], suspects: list[int]
) -> None:
    found = find_suspects(dict(enumerate(readings)), frozenset(stopped))
    assert list(found) == suspects


def test_a_stall_is_the_suspects_and_has_a_beginning() -> None:
    def find(watch: StallDetector, now_s: float, *readings: WorkerProgress) -> dict[int, Stall]:
        return watch.find(dict(enumerate(readings)), stopped=frozenset(), now_s=now_s)

    watch = StallDetector(10.0)
    late, waiting = at(6, 6), at(7, 6)
    assert find(watch, 0.0, waiting, late) == {}
    # Rank 0 may wait as long as rank 1 does something.
    assert find(watch, 9.0, waiting, at(6, 6, beats=6)) == {}
    assert find(watch, 18.0, waiting, at(6, 6, beats=6)) == {}
    [(rank, stall)] = find(watch, 19.0, waiting, at(6, 6, beats=6)).items()
    assert (rank, stall) == (1, Stall(for_s=10.0, is_stopped=False, waiting=(0,)))
    # Before the first step, and outside of fit, evaluate and predict, anything may take its time.
    for stage, beats in ((Stage.TRAINING, 0), (Stage.OUTSIDE, 5)):
        idle = at(6, 6, beats=beats, stage=stage)
        assert find(watch, 100.0, idle, idle) == find(watch, 200.0, idle, idle) == {}
    assert find(StallDetector(0.0), 0.0, waiting, late) == {}


def test_a_loop_by_hand_stalls_while_others_wait() -> None:
    watch = StallDetector(10.0)

    def find(now_s: float, *readings: WorkerProgress) -> list[int]:
        return list(watch.find(dict(enumerate(readings)), stopped=frozenset(), now_s=now_s))

    waiting, busy = by_hand(7, 6), by_hand(6, 6)
    # What all do alone may take its time, and then nobody has waited yet.
    assert find(0.0, busy, busy) == find(50.0, busy, busy) == []
    assert find(50.0, waiting, busy) == find(59.0, waiting, busy) == []
    assert find(60.0, waiting, busy) == [1]
    # Nobody comes out of what all have begun: the network between them.
    assert find(61.0, waiting, waiting) == []
    assert find(71.0, waiting, waiting) == [0, 1]
    # Before gradients were exchanged, somebody may fetch the data for all.
    idle = by_hand(2, 2, rounds=0), by_hand(3, 2, rounds=0)
    assert find(80.0, *idle) == find(200.0, *idle) == []


def test_a_warning_comes_once_for_each_that_keeps_others_waiting() -> None:
    watch = StallDetector(0.0)

    def warn(now_s: float, *readings: WorkerProgress) -> str:
        return watch.warning(dict(enumerate(readings)), stopped=frozenset([1]), now_s=now_s)

    late = at(6, 6)
    assert [warn(s, at(7, 6), late) for s in (0.0, 59.0)] == ["", ""]
    assert warn(61.0, at(7, 6), late) == (
        "rank 1 has made no progress for 61 s (its process is stopped), and others wait for it: "
        "rank 0"
    )
    assert [warn(s, at(7, 6), late) for s in (62.0, 600.0)] == ["", ""]
    assert warn(601.0, at(8, 8), at(8, 8)) == ""
    # Counted from when others began to wait.
    assert warn(700.0, at(9, 8), at(8, 8)) == ""
    assert "no progress for 70 s" in warn(770.0, at(9, 8), at(8, 8))


def test_a_page_is_only_written_where_it_is_one(tmp_path: Path) -> None:
    with ProgressPage.create() as page:
        copy = ProgressPage.from_environment({VARIABLE: str(os.dup(page.fileno()))})
        copy.count_step(epoch=2, step=7)
        with copy.in_stage(Stage.EVALUATING):
            assert page.read().stage is Stage.EVALUATING
        copy.record_operations((4, 3))
        copy.set_flags(WorkerFlags.SAVES_ON_SIGTERM)
        expected = WorkerProgress(
            beats=3, epoch=2, step=7, steps=1, flags=WorkerFlags.SAVES_ON_SIGTERM
        )
        expected = WorkerProgress(**{**vars(expected), "begun": 4, "ended": 3})
        assert page.read() == expected
        assert page.read().is_waiting
        copy.close()
    other = tmp_path / "file"
    other.write_bytes(b"mine" * 2000)
    with other.open("r+b") as file:
        for number in (str(file.fileno()), "999", "-1", "", "x"):
            with ProgressPage.from_environment({VARIABLE: number}) as nobodys:
                assert not nobodys.is_shared
                nobodys.beat()
    assert other.read_bytes() == b"mine" * 2000


STUCK: dict[str, tuple[str, list[str]]] = {
    "stopped": (
        "os.kill(os.getpid(), signal.SIGSTOP)",
        ["rank 0 waited for it; its process was stopped, by SIGSTOP, Ctrl-Z or a debugger"],
    ),
    "running": (
        "def loop_without_end():\n    while True:\n        time.sleep(0.01)\nloop_without_end()",
        ["it was running, was asked for the stacks of its threads", "in loop_without_end"],
    ),
}


@pytest.mark.parametrize(("kind", "remote"), [("stopped", True), ("running", False)])
def test_a_worker_that_gets_no_further_is_found(kind: str, remote: bool, tmp_path: Path) -> None:
    action, texts = STUCK[kind]
    script = f"""{PAGE}
def stick():
    {action.replace(chr(10), chr(10) + "    ")}
say(f"rank {{rank}} is ready")
wait_for(f"rank {{1 - rank}} is ready")
with page.in_stage(Stage.TRAINING):
    page.record_operations((1, 1))
    page.count_step(epoch=1, step=3)
    if start:
        sys.exit()
    if rank == 1:
        say("rank 1 sticks")
        stick()
    wait_for("rank 1 sticks")
    stat = Path(f"/proc/{{Path('rank 1 sticks').read_text()}}/stat")
    while {kind == "stopped"} and stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    page.record_operations((2, 1))
    while True:
        time.sleep(60)
"""
    options = ("--stall-timeout", "1", "--max-restarts", "1")
    done = launch(*two_workers(tmp_path, remote=remote), *options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = "\n".join(line for line in done.stderr.splitlines() if line.startswith("tfddlrun: "))
    assert re.search(
        r"rank 1( on \S+)? failed: no progress for \d+ s, killed by SIGKILL after", report
    )
    assert "its progress: step 3 of epoch 2, training" in report
    for text in texts:
        assert text in report
    assert "restart 1 of 1" in report
    assert not in_sessions(pids(tmp_path, "rank 0 is ready", "rank 1 is ready"))


LOOP = """
import sys, time
import tensorflow as tf
import tfddl

tfddl.init()
weight = tf.Variable([1.0])

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * weight)
    tape = tfddl.DistributedGradientTape(tape)
    weight.assign_sub(0.1 * tape.gradient(loss, [weight])[0])

def loop_without_end():
    while True:
        time.sleep(0.01)

if tfddl.rank() == 0:
    time.sleep(8)  # What is done before the first step may take its time.
for number in range(200):
    step()
    time.sleep(0.02)
    if number == 99 and tfddl.rank() == 1:
        loop_without_end()
"""


@pytest.mark.long
def test_a_loop_by_hand_that_gets_no_further_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOOP]
    with launched("-np", "2", "--stall-timeout", "4", *command, cwd=tmp_path) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 137, err
    report = "\n".join(line for line in err.splitlines() if line.startswith("tfddlrun: "))
    assert re.search(r"rank 1 failed: no progress for \d+ s, killed by SIGKILL after", report)
    assert re.search(r"its progress: about step (9\d|100) of a loop by hand", report)
    assert "rank 0 waited for it; it was running, was asked for the stacks" in report
    assert "in loop_without_end" in report


@pytest.mark.parametrize("collective", ["auto", "ring"])
def test_ranks_in_different_operations_end_with_their_lines(
    groups: Groups, collective: str
) -> None:
    """One has a step more than the others, by hand; no timeout is set."""
    group = groups(3, timeout_s=0.0, stall_warning_s=0.0, collective=collective)
    messages = group.run("tests.cases.ends:different_operations")
    group.close()
    for message in messages:
        assert "wait for each other in different operations, and none can go on:\n" in message
        assert re.search(r"\n  rank 0: allreduce .*ends.py, line \d+: step\(\)\)\n", message), (
            message
        )
        line = r'tfddl.allreduce\(tf.constant\(1.0\), name="epoch_loss"\)'
        text = r"allreduce average <epoch_loss> of float32 \(\)"
        found = re.search(rf"\n  ranks 1..2: .*{text} .*ends.py, line \d+: {line}\)\n", message)
        assert found, message


def test_what_runs_in_a_pipeline_is_known() -> None:
    """Its threads may come to operations while all of Python's wait."""
    found: dict[str, list[bool]] = {"function": [], "map": [], "generator": []}

    def note(where: str, value: Any) -> Any:
        found[where].append(is_in_pipeline())
        return value

    def numbers() -> Iterator[int]:
        yield note("generator", 1)

    tf.function(lambda x: note("function", x))(tf.zeros([]))
    list(tf.data.Dataset.range(2).map(lambda x: note("map", x)))
    kind = tf.TensorSpec([], tf.int32)
    list(tf.data.Dataset.from_generator(numbers, output_signature=kind).prefetch(1))
    assert found == {"function": [False], "map": [True], "generator": [True]}
