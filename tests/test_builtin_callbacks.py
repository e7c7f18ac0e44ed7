"""Callbacks of Keras, without other workers: what they write, and on which ranks they run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import pytest

from tfddl._src.keras_hooks import builtin_callbacks, rank_zero


def _folder(path: str, overwrite: bool) -> None:
    """As `model.save` writes a folder."""
    (Path(path) / "assets").mkdir(parents=True)
    (Path(path) / "config.json").write_text("new")
    (Path(path) / "assets/words").write_text("new")


def _contents(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_a_folder_that_is_saved_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    new = {"model/config.json": "new", "model/assets/words": "new"}
    builtin_callbacks._save(_folder, tmp_path / "model")
    assert _contents(tmp_path) == new
    (tmp_path / "model/config.json").write_text("old")
    (tmp_path / "model/assets/others").write_text("a user's")
    (tmp_path / "model/log.csv").write_text("a user's")
    builtin_callbacks._save(_folder, tmp_path / "model")
    users = {"model/assets/others": "a user's", "model/log.csv": "a user's"}
    assert _contents(tmp_path) == {**new, **users}


def test_a_folder_that_cannot_be_saved_stays(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")

    def fail(path: str, overwrite: bool) -> None:
        _folder(path, overwrite)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        builtin_callbacks._save(fail, tmp_path)
    assert _contents(tmp_path) == {"config.json": "old"}


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    for text in ("old", "new"):

        def write(temporary: Any, overwrite: bool, text: str = text) -> None:
            assert temporary.endswith(".keras")
            Path(temporary).write_text(text)

        builtin_callbacks._save(write, path)
    assert _contents(tmp_path) == {"model.keras": "new"}


class _Tracker(keras.callbacks.Callback):
    __module__ = "wandb.integration.keras"


class _StoppingTracker(_Tracker, keras.callbacks.EarlyStopping):
    """It changes the training, too."""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tracker_that_changes_the_training_is_on_every_rank(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = SimpleNamespace(cluster=SimpleNamespace(rank=rank))
    for module in (builtin_callbacks, rank_zero):
        monkeypatch.setattr(module, "current", lambda: runtime)
    stopping = _StoppingTracker()
    found = builtin_callbacks.select_for_rank([_Tracker(), stopping])
    assert found[-1] is stopping
    assert [type(one) for one in found[:-1]] == ([rank_zero.OnRankZero] if rank == 0 else [])
