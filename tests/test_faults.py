"""Trainings with injected faults resume and lose nothing: `python -m tests.faults`."""

import os
import re
from pathlib import Path

import pytest

from tests import namespaces
from tests.faults import cases, injection, sweep
from tests.faults.audit import Exposure, Start, exposure
from tests.faults.cases import FAULTS
from tfddl.errors import LaunchError

EVERYDAY = {"SIGKILL of another rank"}


def start(epoch: int, consumed: int, *batches: tuple[int, int, list[int]]) -> Start:
    return Start(epoch, consumed, {(epoch, step): ids for epoch, step, ids in batches})


A, B, C = [0, 1], [2, 3], [4]


@pytest.mark.parametrize(
    ("starts", "lost", "twice", "repeated"),
    [
        ([start(0, 0, (0, 0, A), (0, 1, B), (0, 2, C))], 0, 0, 0),
        ([start(0, 0, (0, 0, A), (0, 1, B))], 1, 0, 0),
        # What wasn't saved is done again.
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 2, (0, 1, B), (0, 2, C))], 0, 0, 1),
        # By fewer workers, in other steps.
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 2, (0, 1, [2]), (0, 2, [3, 4]))], 0, 0, 1),
        # It resumes too late, and too early.
        ([start(0, 0, (0, 0, A)), start(0, 4, (0, 2, C))], 2, 0, 0),
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 4, (0, 1, B), (0, 2, C))], 0, 2, 0),
        # It fails before the first step.
        ([start(0, 0), start(0, 0, (0, 0, A), (0, 1, B), (0, 2, C))], 0, 0, 0),
    ],
)
def test_the_audit_counts(starts: list[Start], lost: int, twice: int, repeated: int) -> None:
    assert exposure(starts, num_examples=5, epochs=1) == Exposure(lost, twice, repeated)


def test_an_epoch_that_was_saved_is_not_counted_again() -> None:
    first = start(0, 0, (0, 0, [0, 1]), (1, 0, [1]))
    assert exposure([first, start(1, 0, (1, 0, [1, 0]))], num_examples=2, epochs=2) == Exposure(
        lost=0, twice=0, repeated=1
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, int], Path]:
    """Trainings without a fault, as they are needed."""
    return {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERYDAY else pytest.mark.long, id=name)
        for name in FAULTS
    ],
)
def test_a_training_with_a_fault_loses_nothing(
    name: str,
    references: dict[tuple[bool, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    fault = FAULTS[name]
    if missing := injection.missing_for(fault):
        pytest.skip(missing)
    if fault.trained_like not in references:
        reference = tmp_path_factory.mktemp("reference")
        injection.run_reference(reference, fault, environment=os.environ)
        references[fault.trained_like] = reference
    found = injection.run_fault(
        name,
        fault,
        tmp_path / "faulty",
        reference=references[fault.trained_like],
        environment=os.environ,
    )
    sweep.check(name, fault, found)
    if fault.saves:
        assert found.exposure.repeated == 0
        # Asked for within a step, it is saved after the next that begins; meanwhile some may run.
        told = re.findall(r"tfddlrun: .*saved (?:at |\()(step \d+ of epoch \d+)", found.log)
        assert len(told) == found.restarts, found.log
        assert {line.rpartition(" of ")[2] for line in told} == {f"epoch {cases.EPOCH + 1}"}
    elif fault.point is cases.Point.STEP and not fault.is_repeated and not fault.ends_job:
        saved = cases.STEP // cases.SAVE_EVERY * cases.SAVE_EVERY
        if fault.precondition is not cases.Precondition.NONE:
            saved -= cases.SAVE_EVERY
        if fault.action is cases.Action.DISCONNECT:
            # What tfddlrun has heard of that host before: some steps less.
            assert re.fullmatch(r"step \d+ of epoch [12]", found.last_step)
            assert found.exposure.repeated >= cases.STEP + 1 - saved
        else:
            # Within its 21st step, so that 20 were done.
            assert found.last_step == f"step {cases.STEP} of epoch {cases.EPOCH + 1}"
            assert found.exposure.repeated == cases.STEP + 1 - saved


def test_what_this_machine_lacks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a host disconnected, then back"
    monkeypatch.setattr(namespaces, "missing_for_hosts", lambda: "needs root")
    with pytest.raises(LaunchError, match=f"{name}: needs root"):
        sweep.run_all(tmp_path, [name], environment=os.environ)
    monkeypatch.setattr(sweep, "FAULTS", {name: FAULTS[name]})
    *_, row = sweep.run_all(tmp_path, [], environment=os.environ).splitlines()
    assert row.startswith(f"| {name} | not run: needs root |")
    assert not any(tmp_path.iterdir())
    assert "1 of 1" in capsys.readouterr().err


@pytest.mark.long
def test_random_kills_in_a_row(tmp_path: Path) -> None:
    text = sweep.at_random(tmp_path, 4, seed=1, environment=os.environ)
    assert "examples lost: 0, twice: 0; weights: bit for bit; left: nothing" in text
