"""Trainings are struck, go on, and lose nothing: `python -m tfddl.bench.faults`."""

import os
import re
from pathlib import Path

import pytest

from tests.group import ROOT
from tfddl.bench import blows, namespaces, ordeal, ordeals
from tfddl.bench.blows import BLOWS
from tfddl.bench.evidence import Exposure, Start, exposure
from tfddl.errors import LaunchError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
EVERYDAY = {"SIGKILL of another rank"}


def start(epoch: int, consumed: int, *batches: tuple[int, int, list[int]]) -> Start:
    return Start(epoch, consumed, {(epoch, step): ids for epoch, step, ids in batches})


A, B, C = [0, 1], [2, 3], [4]


@pytest.mark.parametrize(
    ("starts", "lost", "twice", "repeated"),
    [
        ([start(0, 0, (0, 0, A), (0, 1, B), (0, 2, C))], 0, 0, 0),
        ([start(0, 0, (0, 0, A), (0, 1, B))], 1, 0, 0),
        # What wasn't saved is trained on again.
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 2, (0, 1, B), (0, 2, C))], 0, 0, 1),
        # By fewer workers, in other steps.
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 2, (0, 1, [2]), (0, 2, [3, 4]))], 0, 0, 1),
        # It goes on too late, and too early.
        ([start(0, 0, (0, 0, A)), start(0, 4, (0, 2, C))], 2, 0, 0),
        ([start(0, 0, (0, 0, A), (0, 1, B)), start(0, 4, (0, 1, B), (0, 2, C))], 0, 2, 0),
        # Struck at once.
        ([start(0, 0), start(0, 0, (0, 0, A), (0, 1, B), (0, 2, C))], 0, 0, 0),
    ],
)
def test_the_evidence_counts(starts: list[Start], lost: int, twice: int, repeated: int) -> None:
    assert exposure(starts, num_examples=5, epochs=1) == Exposure(lost, twice, repeated)


def test_an_epoch_that_was_saved_is_not_counted_again() -> None:
    first = start(0, 0, (0, 0, [0, 1]), (1, 0, [1]))
    assert exposure([first, start(1, 0, (1, 0, [1, 0]))], num_examples=2, epochs=2) == Exposure(
        lost=0, twice=0, repeated=1
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Undisturbed trainings, as they are needed."""
    return {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERYDAY else pytest.mark.long, id=name)
        for name in BLOWS
    ],
)
def test_a_training_that_is_struck_loses_nothing(
    name: str,
    references: dict[bool, Path],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    blow = BLOWS[name]
    if missing := ordeal.missing_for(blow):
        pytest.skip(missing)
    if blow.is_repeated not in references:
        reference = tmp_path_factory.mktemp("undisturbed")
        ordeal.undisturbed(reference, blow, environment=ENVIRONMENT)
        references[blow.is_repeated] = reference
    found = ordeal.undergo(
        name,
        blow,
        tmp_path / "struck",
        reference=references[blow.is_repeated],
        environment=ENVIRONMENT,
    )
    ordeals.check(name, blow, found)
    if blow.saves:
        assert found.exposure.repeated == 0
        # Asked for within a step, it is saved after the next that begins; meanwhile some may run.
        told = re.search(r"ended by SIGTERM, after the training was saved at (.*);", found.log)
        assert told is not None, found.log
        assert re.fullmatch(rf"step \d+ of epoch {blows.EPOCH + 1}", told.group(1))
    elif blow.place is blows.Place.STEP and not blow.is_repeated and not blow.ends_job:
        # Within its 21st step, so that 20 were done.
        assert found.last_step == f"step {blows.STEP} of epoch {blows.EPOCH + 1}"
        saved = blows.STEP // blows.SAVE_EVERY * blows.SAVE_EVERY
        if blow.trouble is not blows.Trouble.NONE:
            saved -= blows.SAVE_EVERY
        assert found.exposure.repeated == blows.STEP + 1 - saved


def test_what_cant_be_tried_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a host cut off by the network, then back"
    monkeypatch.setattr(namespaces, "missing_for_hosts", lambda: "needs a pair of tongs")
    with pytest.raises(LaunchError, match=f"{name}: needs a pair of tongs"):
        ordeals.in_a_row(tmp_path, [name], environment=ENVIRONMENT)
    monkeypatch.setattr(ordeals, "BLOWS", {name: BLOWS[name]})
    *_, row = ordeals.in_a_row(tmp_path, [], environment=ENVIRONMENT).splitlines()
    assert row.startswith(f"| {name} | not run: needs a pair of tongs |")
    assert not any(tmp_path.iterdir())
    assert "1 of 1" in capsys.readouterr().err


@pytest.mark.long
def test_random_kills_in_a_row(tmp_path: Path) -> None:
    text = ordeals.at_random(tmp_path, 4, seed=1, environment=ENVIRONMENT)
    assert "examples lost: 0, twice: 0; weights: bit for bit; left: nothing" in text
