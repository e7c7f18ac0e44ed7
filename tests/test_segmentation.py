"""The application: its flags, its picture, the command in one process."""

import dataclasses
import os
import re
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

from tests import events
from tests.group import Groups
from tests.pictures import damage
from tfddl.errors import UnsupportedError
from tfddl.segmentation import train
from tfddl.segmentation.augment import CHANGES
from tfddl.segmentation.config import (
    PrepareConfig,
    TrainConfig,
    parse_filters,
    parse_image_size,
    parse_names,
)
from tfddl.segmentation.picture import draw_predictions
from tfddl.segmentation.preparing import prepare
from tfddl.segmentation.presets import PRESETS, describe
from tfddl.segmentation.synthetic import write_dataset

FLAGS = [
    "augment",
    "batch_size",
    "batchnorm_momentum",
    "between_hosts",
    "checkpoint_dir",
    "collective",
    "data_dir",
    "epochs",
    "filters",
    "image_size",
    "in_channels",
    "inter_op_threads",
    "intra_op_threads",
    "keep",
    "learning_rate",
    "learning_rate_decay",
    "loss",
    "num_examples",
    "output_dir",
    "pieces",
    "preset",
    "progress",
    "resume",
    "save_every_steps",
    "seed",
    "skip_bad",
    "tensorboard_dir",
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
    groups = (
        "[preset]",
        "[data]",
        "[model]",
        "[training]",
        "[checkpoints]",
        "[runtime]",
        "[output]",
    )
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


def test_names() -> None:
    assert parse_names(["flip", " shift "]) == ("flip", "shift")
    assert parse_names([""]) == parse_names([]) == ()


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
        ({"preset": "x"}, r"--preset is x; it must be one of default, source\."),
        ({"augment": ("spin",)}, r"--augment is spin; it must be some of flip,"),
        ({"loss": "x"}, r"--loss is x; it must be one of dice_crossentropy, dice, exact_dice\."),
        ({"save_every_steps": 0}, r"--save_every_steps is 0; it must be at least 1\."),
        ({"keep": 0}, r"--keep is 0; it must be at least 1\."),
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


def test_source_is_the_systems_network_and_training() -> None:
    default_config()
    with flagsaver.flagsaver(preset="source"):
        config = train.config_from_flags()
    assert (*config.image_size, config.in_channels) == (512, 512, 3)
    assert config.filters == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert config.batchnorm_momentum == 0.99
    assert (config.batch_size, config.epochs) == (12, 50)
    assert (config.learning_rate, config.learning_rate_decay) == (0.00013, "none")
    assert config.loss == "dice"
    assert config.augment == ()


def test_a_flag_that_is_given_wins_over_the_preset() -> None:
    default = default_config()
    with flagsaver.flagsaver(preset="source", epochs=default.epochs, filters=["4", "8"]):
        config = train.config_from_flags()
    assert config.epochs == default.epochs  # although it is the flag's own default
    assert config.filters == (4, 8)
    assert config.batch_size == 12


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_told_as_one_would_write_them(preset: str) -> None:
    """What --help says of a preset, given as flags, is what it sets."""
    default_config()
    written = describe(preset).split()
    assert (preset == "default") == (written == [])
    names = [word[2:].partition("=")[0] for word in written]
    with flagsaver.flagsaver():
        flags.FLAGS(["tfddl-train", *written, f"--preset={preset}"])
        by_flags = train.config_from_flags()
    with flagsaver.flagsaver(preset=preset):
        assert train.config_from_flags() == by_flags
    assert describe(preset) in flags.FLAGS["preset"].help
    assert set(names) <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_folders_lie_in_the_output_folder_unless_given() -> None:
    config = default_config()
    assert config.checkpoint_dir == config.output_dir / "checkpoints"
    assert config.tensorboard_dir == config.output_dir / "tensorboard"
    with flagsaver.flagsaver(output_dir="x", checkpoint_dir="y", tensorboard_dir=""):
        config = train.config_from_flags()
    assert config.checkpoint_dir == Path("y")
    assert config.tensorboard_dir is None


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


def test_trains_from_a_flagfile_and_leaves_models_and_picture(tmp_path: Path) -> None:
    (tmp_path / "flags").write_text(
        "--num_examples=12\n--image_size=16x32\n--filters=2,4\n--epochs=2\n--batch_size=4\n"
        "--progress=lines\n--output_dir=out\n--learning_rate=0.01\n--augment=flip,shift\n"
    )
    done = _run("--flagfile=flags", "--validation_split=0.25", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "tfddl: no --data_dir; 12 made pictures are in out/data/cars_16x32_12_seed0\n"
        "tfddl: 9 examples to train on, 3 to validate with, 16 x 32 pixels; 1 worker, 4 examples "
        "each in a step\n"
        "tfddl: preset default: filters 2,4, loss dice_crossentropy, learning rate 0.01 x 1 "
        "(cosine decay), 2 epochs, augment flip,shift, seed 0\n"
    ) in done.stdout
    assert "Epoch 2/2" in done.stdout
    summary = done.stdout.splitlines()[-5:]
    assert summary[0].startswith("tfddl: validation Dice 0.")
    assert summary[1] == "tfddl: model    out/model.keras"
    assert re.fullmatch(
        r"tfddl: best     out/best\.keras \(validation loss \d\.\d{4}, after epoch [12]\)",
        summary[2],
    )
    assert summary[3:] == [
        "tfddl: picture  out/predictions.png",
        "tfddl: charts   tensorboard --logdir out/tensorboard",
    ]
    for name in ("model", "best"):
        model = keras.saving.load_model(tmp_path / "out" / f"{name}.keras")
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


def _tiny(directory: Path, **changes: Any) -> TrainConfig:
    config = dataclasses.replace(
        default_config(),
        image_size=(16, 16),
        filters=(2, 4),
        num_examples=13,
        validation_split=0.25,
        epochs=1,
        batch_size=4,
        progress="lines",
        output_dir=directory,
        checkpoint_dir=directory / "checkpoints",
        tensorboard_dir=None,
    )
    return dataclasses.replace(config, **changes)


CASE = "tests.cases.segmentation:run"


def _check_charts(directory: Path, config: TrainConfig) -> None:
    """TensorBoard has the flags, and the picture of the predictions."""
    (picture,) = events.images(directory / "job")["predictions"][1]
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    start = events.hparams(directory / "job")["session_start_info"].session_start_info
    assert set(start.hparams) == set(FLAGS)
    assert start.hparams["loss"].string_value == config.loss


def test_several_workers_make_their_data_train_and_go_on(tmp_path: Path, groups: Groups) -> None:
    first, second = groups(2).run(CASE, config=_tiny(tmp_path))
    assert first["error"] == second["error"] == ""
    assert (
        "tfddl: 10 examples to train on, 3 to validate with, 16 x 16 pixels; 2 workers, 4 examples "
        "each in a step\n"
    ) in first["output"]
    assert "- val_dice: " in first["output"]
    assert "tfddl: validation Dice 0." in first["output"]
    assert "end of a training" not in first["output"]
    assert second["output"] == ""
    assert len(list((tmp_path / "data" / "cars_16x16_13_seed0" / "images").iterdir())) == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.keras",
        "checkpoints",
        "data",
        "model.keras",
        "predictions.png",
    ]
    made = (tmp_path / "model.keras").stat().st_mtime_ns

    # The same again: there is nothing to do, which is said, with what to do instead.
    first, second = groups(2).run(CASE, config=_tiny(tmp_path))
    assert first["error"] == second["error"] == second["output"] == ""
    assert "is the end of a training (1 of 1 epochs" in first["output"]
    assert "HINT: --noresume trains anew; a larger --epochs goes on; anoth" in first["output"]
    assert "- val_dice: " not in first["output"]
    assert "tfddl: validation Dice 0." in first["output"]
    assert (tmp_path / "model.keras").stat().st_mtime_ns > made

    charts = tmp_path / "charts"
    for folder in (charts / "job", charts / "job" / "train", charts / "mine"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.out.tfevents.1").touch()
    config = _tiny(tmp_path, resume=False, loss="dice", tensorboard_dir=charts)
    first, _ = groups(2).run(CASE, config=config)
    assert first["error"] == ""
    assert "- val_dice: " in first["output"]
    assert "(validation loss -0." in first["output"]
    assert f"tfddl: charts   tensorboard --logdir {charts}" in first["output"]
    # Those of the earlier training are gone, but nobody else's.
    assert list(charts.rglob("events.out.tfevents.1")) == [
        charts / "mine" / "events.out.tfevents.1"
    ]
    _check_charts(charts, config)


def test_files_and_arrays_are_the_same_data_however_many_read_them(
    tmp_path: Path, groups: Groups
) -> None:
    """With augmentation: what an example looks like depends on seed and epoch, not on the rank."""
    write_dataset(tmp_path / "files", num_examples=13, image_size=(24, 24), seed=0)
    prepare(
        PrepareConfig(
            input_dir=tmp_path / "files",
            output_dir=tmp_path / "arrays",
            image_size=(16, 16),
            in_channels=1,
            skip_bad=False,
            overwrite=False,
            threads=2,
            progress="none",
        )
    )
    seen = {}
    for kind, size in (("files", 2), ("arrays", 2), ("arrays", 1)):
        config = _tiny(
            tmp_path, data_dir=tmp_path / kind, in_channels=1, augment=CHANGES, batch_size=8 // size
        )
        results = groups(size).run("tests.cases.segmentation:seen", config=config)
        assert all(len(of_rank["training"]) > 3 for of_rank in results)
        seen[kind, size] = {
            name: sorted(one for of_rank in results for one in of_rank[name])
            for name in ("training", "again", "next epoch", "validation")
        }
    assert seen["files", 2] == seen["arrays", 2] == seen["arrays", 1]
    (found,) = {str(value): value for value in seen.values()}.values()
    assert [len(found[name]) for name in found] == [10, 10, 10, 3]
    assert found["training"] == found["again"]
    assert not set(found["training"]) & set(found["next epoch"])


def test_a_file_that_can_not_be_read_stops_all_before_the_first_step(
    tmp_path: Path, groups: Groups
) -> None:
    for name in ("good", "bad"):
        write_dataset(tmp_path / name, num_examples=6, image_size=(16, 16), seed=0)
    # In the half that rank 1 looks at, in its own folder.
    damage(tmp_path / "bad" / "masks" / "0005_mask.png", "no image")
    results = groups(2).run(
        CASE, config=_tiny(tmp_path / "out"), data_dirs=(tmp_path / "good", tmp_path / "bad")
    )
    for result in results:
        assert result["error"].startswith("DataError: 1 of the pairs in ")
        assert "0005: masks/0005_mask.png can't be read: cannot identify" in result["error"]
        assert result["error"].endswith("leave them out with --skip_bad.")
        assert result["output"] == ""


def test_files_that_are_cut_short_are_all_named_or_left_out(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "cut", num_examples=13, image_size=(16, 16), seed=0)
    for path in (tmp_path / "cut" / "images").iterdir():
        if path.name < "0010.png":
            path.write_bytes(path.read_bytes()[:-200])
    config = _tiny(tmp_path / "out", data_dir=tmp_path / "cut", validation_split=0.5)
    results = groups(2).run("tests.cases.segmentation:opened", config=config)
    for result in results:
        assert result["error"].startswith(f"DataError: 9 of the pairs in {tmp_path / 'cut'} can't")
        for i in range(1, 10):
            assert f"\n  000{i}: images/000{i}.png can't be read: " in result["error"]
    config = dataclasses.replace(config, skip_bad=True)
    first, second = groups(2).run("tests.cases.segmentation:opened", config=config)
    assert first["error"] == second["error"] == second["output"] == ""
    assert first["output"].count("tfddl: left out 00") == 9
    assert first["result"] == second["result"] == ("0010", "0011", "0012", "0013")


def test_a_file_that_vanishes_after_all_were_looked_at_stops_all(
    tmp_path: Path, groups: Groups
) -> None:
    write_dataset(tmp_path / "data", num_examples=13, image_size=(16, 16), seed=0)
    results = groups(2).run(
        "tests.cases.segmentation:run_while_files_vanish",
        config=_tiny(tmp_path / "out", data_dir=tmp_path / "data"),
    )
    for result in results:
        assert result["error"].startswith("DataError: ")
        assert "png can't be read: [Errno 2] No such file or directory" in result["error"]


def test_what_can_not_be_trained_on_is_said_on_all_ranks(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "two", num_examples=2, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "one", num_examples=1, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "other", num_examples=3, image_size=(16, 16), seed=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for names, changes, message in (
        (["none"], {}, f"DataError: There is no folder {tmp_path / 'none'}; expected one with ima"),
        (["empty"], {}, f"DataError: {tmp_path / 'empty'} has no images with masks: found nothing"),
        (["one"], {}, "DataError: There is 1 example; training needs at least 2"),
        (["two"], {}, "PlanError: Of 2 examples 1 are to train on, for 2 workers; every worker"),
        (
            ["two", "other"],
            {},
            "DisagreementError: Rank 0 reads 2 examples and rank 1 3; only one of them has 0003. "
            "All hosts need the same --data_dir.",
        ),
        (["two"], {"image_size": (15, 16)}, "PlanError: The images are 15 x 16, but a U-Net of 2"),
        (
            ["two"],
            {"output_dir": tmp_path / "file" / "out"},
            f"DataError: {tmp_path / 'file' / 'out'} can't be written to: ",
        ),
    ):
        results = groups(2).run(
            CASE, config=_tiny(out, **changes), data_dirs=tuple(tmp_path / name for name in names)
        )
        for result in results:
            assert result["error"].startswith(message), result["error"]


def test_slow_reading_is_hinted_at(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "data", num_examples=8, image_size=(16, 16), seed=0)
    config = _tiny(tmp_path / "out", data_dir=tmp_path / "data")
    first, second = groups(2).run(
        "tests.cases.segmentation:opened", config=config, slow_reading_s=0.0
    )
    assert first["error"] == second["error"] == second["output"] == ""
    assert re.fullmatch(
        r"tfddl: to read the files will take each worker \d+ s in every epoch\. HINT: "
        rf"tfddl-prepare --input_dir={tmp_path / 'data'} --output_dir=… does so once\.\n",
        first["output"],
    )
