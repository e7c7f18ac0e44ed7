"""The application: its flags, its picture, the command in one process."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl import app, flags
from absl.testing import flagsaver
from PIL import Image

from tests.group import Groups
from tfddl.errors import UnsupportedError
from tfddl.segmentation import train
from tfddl.segmentation.config import TrainConfig, parse_filters, parse_image_size
from tfddl.segmentation.picture import draw_predictions
from tfddl.segmentation.synthetic import write_dataset

FLAGS = [
    "batch_size",
    "batchnorm_momentum",
    "collective",
    "data_dir",
    "epochs",
    "filters",
    "image_size",
    "in_channels",
    "inter_op_threads",
    "intra_op_threads",
    "learning_rate",
    "learning_rate_decay",
    "num_examples",
    "output_dir",
    "progress",
    "seed",
    "skip_bad",
    "validation_split",
]


def default_config() -> TrainConfig:
    """What `tfddl-train` does without flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["tfddl-train"])
    return train.config_from_flags()


def _own_flags() -> list[Any]:
    return list(flags.FLAGS.get_flags_for_module(train.__name__))


def test_flags_are_these_and_the_config_has_them_all() -> None:
    assert sorted(flag.name for flag in _own_flags()) == FLAGS
    assert sorted(field.name for field in dataclasses.fields(TrainConfig)) == FLAGS


def test_flags_are_grouped_and_explained() -> None:
    groups = "[data]", "[model]", "[training]", "[runtime]", "[output]"
    for flag in _own_flags():
        assert sum(group in flag.help for group in groups) == 1, flag.name
    assert all(len(flag.help) > 30 for flag in _own_flags())


@pytest.mark.parametrize(
    ("text", "size"), [("96", (96, 96)), ("96x128", (96, 128)), ("64 X 32", (64, 32))]
)
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "96x", "1x2x3", "-96", "9.6", "large"])
def test_bad_image_sizes(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"--image_size is '.*'; it must be one number \(96"):
        parse_image_size(text)


def test_filters() -> None:
    assert parse_filters(["8", " 16"]) == (8, 16)
    with pytest.raises(UnsupportedError, match=r"--filters is '8,a'; it must be numbers between"):
        parse_filters(["8", "a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (0, 8)}, r"--image_size is \(0, 8\); it must be positive\."),
        ({"validation_split": 0.0}, r"--validation_split is 0\.0; it must be in \(0, 1\)\."),
        ({"validation_split": 1.0}, r"--validation_split is 1\.0; it must be in \(0, 1\)\."),
        ({"num_examples": 1}, r"--num_examples is 1; it must be at least 2\."),
        ({"seed": -1}, r"--seed is -1; it must be in 0\.\.2147483647\."),
        ({"filters": ()}, r"--filters is \(\); it must be one positive number for each level"),
        ({"filters": (8, 0)}, r"--filters is \(8, 0\); it must be one positive number"),
        ({"in_channels": 2}, r"--in_channels is 2; it must be one of 1, 3, 4\."),
        ({"batchnorm_momentum": 1.0}, r"--batchnorm_momentum is 1\.0; it must be in \[0, 1\)\."),
        ({"epochs": 0}, r"--epochs is 0; it must be at least 1\."),
        ({"batch_size": 0}, r"--batch_size is 0; it must be at least 1\."),
        ({"learning_rate": 0.0}, r"--learning_rate is 0\.0; it must be positive\."),
        ({"learning_rate": float("nan")}, r"--learning_rate is nan; it must be positive\."),
        ({"learning_rate_decay": "x"}, r"--learning_rate_decay is x; it must be one of cosine, no"),
        ({"collective": "mpi"}, r"--collective is mpi; it must be one of auto, ring, nccl\."),
        ({"progress": "x"}, r"--progress is x; it must be one of bar, lines, none\."),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        dataclasses.replace(default_config(), **change)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_picture_shows_every_example(channels: int) -> None:
    images = np.full((3, 16, 32, channels), 90, np.uint8)
    masks = np.zeros((3, 16, 32), bool)
    masks[:, :8] = True
    picture = draw_predictions(
        images, masks=masks, predictions=~masks, scores=[0.25, 0.5, 1.0]
    ).convert("RGB")
    colours = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}
    assert {(90, 90, 90), (0, 0, 0), (255, 255, 255)} <= colours
    taller = draw_predictions(
        np.repeat(images, 2, 0),
        masks=np.repeat(masks, 2, 0),
        predictions=np.repeat(masks, 2, 0),
        scores=[1.0] * 6,
    )
    assert taller.height > 1.5 * picture.height
    assert taller.width == picture.width


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command is `run()`, called by a script that has no flags of its own."""
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", "from tfddl.segmentation.train import run; run()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_trains_from_a_flagfile_and_leaves_model_and_picture(tmp_path: Path) -> None:
    (tmp_path / "flags").write_text(
        "--num_examples=12\n--image_size=16x32\n--filters=2,4\n--epochs=2\n--batch_size=4\n"
        "--progress=lines\n--output_dir=out\n--learning_rate=0.01\n"
    )
    done = _run("--flagfile=flags", "--validation_split=0.25", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "tfddl: no --data_dir; making 12 pictures in out/data/cars_16x32_12_seed0\n"
        "tfddl: 9 examples to train on, 3 to validate with, 16 x 32 pixels; 1 worker, 4 examples "
        "each in a step\n"
    ) in done.stdout
    assert "Epoch 2/2" in done.stdout
    summary = done.stdout.splitlines()[-3:]
    assert summary[0].startswith("tfddl: validation Dice 0.")
    assert summary[1:] == [
        "tfddl: model    out/model.keras",
        "tfddl: picture  out/predictions.png",
    ]
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert not model.compiled
    assert model.input_shape == (None, 16, 32, 3)
    with Image.open(tmp_path / "out" / "predictions.png") as picture:
        assert picture.format == "PNG"


def test_a_bad_value_ends_the_command_with_its_message() -> None:
    default_config()
    with flagsaver.flagsaver(epochs=0), pytest.raises(SystemExit) as caught:
        train.main(["tfddl-train"])
    assert caught.value.code == (
        "tfddl-train: UnsupportedError: --epochs is 0; it must be at least 1."
    )


def test_arguments_that_are_no_flags_are_refused() -> None:
    with pytest.raises(app.UsageError, match=r"Unexpected arguments: a b; all values are flags\."):
        train.main(["tfddl-train", "a", "b"])


def test_help_of_the_installed_command_lists_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that only calls `run()` has no flags of its own."""
    monkeypatch.setattr(sys, "argv", ["/bin/tfddl-train"])
    monkeypatch.setattr(app, "run", lambda main: None)
    train.run()
    shown = flags.FLAGS.main_module_help().replace("--[no]", "--")
    assert [name for name in FLAGS if f"--{name}:" not in shown] == []


def _tiny(output_dir: Path) -> TrainConfig:
    return dataclasses.replace(
        default_config(),
        image_size=(16, 16),
        filters=(2, 4),
        num_examples=13,
        validation_split=0.25,
        epochs=1,
        batch_size=4,
        progress="lines",
        output_dir=output_dir,
    )


def test_several_workers_make_their_data_train_and_rank_0_speaks(
    tmp_path: Path, groups: Groups
) -> None:
    first, second = groups(2).run("tests.cases.segmentation:run", config=_tiny(tmp_path))
    assert first["error"] == second["error"] == ""
    assert (
        "tfddl: 10 examples to train on, 3 to validate with, 16 x 16 pixels; 2 workers, 4 examples "
        "each in a step\n"
    ) in first["output"]
    assert "tfddl: validation Dice 0." in first["output"]
    assert second["output"] == ""
    assert len(list((tmp_path / "data" / "cars_16x16_13_seed0" / "images").iterdir())) == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data",
        "model.keras",
        "predictions.png",
    ]


def test_a_problem_of_one_rank_stops_all_with_its_message(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "good", num_examples=6, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "bad", num_examples=6, image_size=(16, 16), seed=0)
    (tmp_path / "bad" / "masks" / "0003_mask.png").write_text("not an image")
    first, second = groups(2).run(
        "tests.cases.segmentation:run",
        config=_tiny(tmp_path / "out"),
        data_dirs=(tmp_path / "good", tmp_path / "bad"),
    )
    problem = "0003: masks/0003_mask.png can't be read: cannot identify image file"
    assert first["error"].startswith("DataError: Rank 1 has stopped: 1 of the pairs in")
    assert second["error"].startswith("DataError: 1 of the pairs in")
    assert problem in first["error"]
    assert problem in second["error"]


def test_ranks_that_read_different_examples_stop(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "a", num_examples=6, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "b", num_examples=7, image_size=(16, 16), seed=0)
    results = groups(2).run(
        "tests.cases.segmentation:run",
        config=_tiny(tmp_path / "out"),
        data_dirs=(tmp_path / "a", tmp_path / "b"),
    )
    assert [result["error"] for result in results] == 2 * [
        "DisagreementError: Rank 0 reads 6 examples and rank 1 7; only one of them has 0007. All "
        "hosts need the same --data_dir."
    ]
