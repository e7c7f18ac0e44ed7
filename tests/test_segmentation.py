"""The application: pictures of predictions, the command, training on several workers."""

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
from absl import app
from absl.testing import flagsaver
from PIL import Image

from tests import events
from tests.configs import default_config
from tests.group import Groups
from tests.pictures import damage
from tfddl._src.startup_logs import has_gpu
from tfddl.segmentation import train
from tfddl.segmentation.augmentation import TRANSFORMS
from tfddl.segmentation.config import PrepareConfig, TrainConfig
from tfddl.segmentation.preprocessing import prepare
from tfddl.segmentation.synthetic import write_dataset
from tfddl.segmentation.visualization import draw_predictions


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_draw_predictions_shows_every_example(channels: int) -> None:
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
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_trains_from_a_flagfile_and_leaves_models_and_picture(tmp_path: Path) -> None:
    (tmp_path / "flags").write_text(
        "--num_examples=12\n--image_size=16x32\n--filters=2,4\n--epochs=2\n--batch_size=4\n"
        "--output_dir=out\n--learning_rate=0.01\n--augment=flip,shift\n"
    )
    done = _run("--flagfile=flags", "--validation_split=0.25", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or has_gpu()
    assert (
        "tfddl: no --data_dir; 12 synthetic examples are in out/data/synthetic_16x32_12_seed0\n"
        "tfddl: 9 examples to train on, 3 to validate with, 16 x 32 pixels; 1 worker, 4 examples "
        "each in a step\n"
        "tfddl: preset default: filters 2,4, loss dice_crossentropy, learning rate 0.01 x 1 "
        "(cosine decay), 2 epochs, augment flip,shift, seed 0\n"
    ) in done.stdout
    lines = done.stdout.splitlines()  # no bar where there is no terminal
    assert lines[3] == "Epoch 1/2"
    assert re.fullmatch(r"3/3 - .*/step - dice: .* - val_loss: \S+ - examples/s: \S+", lines[4])
    assert lines[5] == "Epoch 2/2"
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
    assert set(start.hparams) == {field.name for field in dataclasses.fields(config)}
    assert start.hparams["loss"].string_value == config.loss


@pytest.mark.long
def test_several_workers_make_their_data_train_and_resume(tmp_path: Path, groups: Groups) -> None:
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
    assert len(list((tmp_path / "data" / "synthetic_16x16_13_seed0" / "images").iterdir())) == 13
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
    for directory in (charts / "job", charts / "job" / "train", charts / "mine"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "events.out.tfevents.1").touch()
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


@pytest.mark.long
def test_virtual_workers_make_the_same_model_on_any_number_of_workers(
    tmp_path: Path, groups: Groups
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--num_examples=13", "--image_size=16x16", "--filters=2,4", "--epochs=1"]
    flags += ["--batch_size=1", "--validation_split=0.25", "--virtual_workers=4", "--augment=flip"]
    done = _run(*flags, f"--output_dir={one}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = _tiny(two, batch_size=1, virtual_workers=4, augment=("flip",))
    for result in groups(2, intra_op_threads=1).run(CASE, config=config):
        assert result["error"] == ""
    of_one, of_two = (
        keras.saving.load_model(directory / "model.keras").get_weights() for directory in (one, two)
    )
    assert [w.tobytes() for w in of_one] == [w.tobytes() for w in of_two]


def test_files_and_arrays_give_the_same_examples_on_any_number_of_workers(
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
            tmp_path,
            data_dir=tmp_path / kind,
            in_channels=1,
            augment=TRANSFORMS,
            batch_size=8 // size,
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


def test_an_unreadable_file_stops_all_ranks_before_the_first_step(
    tmp_path: Path, groups: Groups
) -> None:
    for name in ("good", "bad"):
        write_dataset(tmp_path / name, num_examples=6, image_size=(16, 16), seed=0)
    # In the half that rank 1 checks, in its own directory.
    damage(tmp_path / "bad" / "masks" / "0005_mask.png", "no image")
    results = groups(2).run(
        CASE, config=_tiny(tmp_path / "out"), data_dirs=(tmp_path / "good", tmp_path / "bad")
    )
    for result in results:
        assert result["error"].startswith("DataError: 1 of the pairs in ")
        assert "0005: masks/0005_mask.png can't be read: cannot identify" in result["error"]
        assert result["error"].endswith("leave them out with --skip_bad.")
        assert result["output"] == ""


def test_truncated_files_are_all_named_or_left_out(tmp_path: Path, groups: Groups) -> None:
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


def test_a_file_that_vanishes_after_the_check_stops_all(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "data", num_examples=13, image_size=(16, 16), seed=0)
    results = groups(2).run(
        "tests.cases.segmentation:run_while_files_vanish",
        config=_tiny(tmp_path / "out", data_dir=tmp_path / "data"),
    )
    for result in results:
        assert result["error"].startswith("DataError: ")
        assert "png can't be read: [Errno 2] No such file or directory" in result["error"]


def test_unusable_data_is_an_error_on_all_ranks(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "two", num_examples=2, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "one", num_examples=1, image_size=(16, 16), seed=0)
    write_dataset(tmp_path / "other", num_examples=3, image_size=(16, 16), seed=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for names, changes, message in (
        (
            ["none"],
            {},
            f"DataError: There is no directory {tmp_path / 'none'}; expected one with ima",
        ),
        (["empty"], {}, f"DataError: {tmp_path / 'empty'} has no images with masks: found nothing"),
        (["one"], {}, "DataError: There is 1 example; training needs at least 2"),
        (
            ["two"],
            {},
            "ShardingError: Of 2 examples 1 are to train on, for 2 workers; every worker",
        ),
        (
            ["two", "other"],
            {},
            "DisagreementError: Rank 0 reads 2 examples and rank 1 3; only one of them has 0003. "
            "HINT: give all hosts the same --data_dir.",
        ),
        (
            ["two"],
            {"image_size": (15, 16)},
            "ShardingError: The images are 15 x 16, but a U-Net of 2",
        ),
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


def test_slow_reading_gets_a_hint(tmp_path: Path, groups: Groups) -> None:
    write_dataset(tmp_path / "data", num_examples=8, image_size=(16, 16), seed=0)
    config = _tiny(tmp_path / "out", data_dir=tmp_path / "data")
    first, second = groups(2).run(
        "tests.cases.segmentation:opened", config=config, slow_reading_s=0.0
    )
    assert first["error"] == second["error"] == second["output"] == ""
    assert re.fullmatch(
        r"tfddl: reading the files will take each worker \d+ s in every epoch\. HINT: "
        rf"tfddl-prepare --input_dir={tmp_path / 'data'} --output_dir=… decodes them once\.\n",
        first["output"],
    )
