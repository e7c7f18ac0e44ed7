"""`tfddl-predict`: one mask for each image, whoever of the workers makes it."""

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from tests.group import Groups
from tests.pictures import damage, save
from tfddl.errors import UnsupportedError
from tfddl.segmentation.config import PredictConfig

FLAGS = [
    "batch_size",
    "between_hosts",
    "collective",
    "input_dir",
    "inter_op_threads",
    "intra_op_threads",
    "model",
    "output_dir",
    "probabilities",
    "progress",
    "size",
    "skip_bad",
    "skip_existing",
    "threshold",
    "verbose",
]
CASE = "tests.cases.segmentation:predicted"


def _config(directory: Path, **changes: Any) -> PredictConfig:
    config = PredictConfig(
        model=directory / "model.keras",
        input_dir=directory / "images",
        output_dir=directory / "masks",
        size="original",
        threshold=0.5,
        probabilities=False,
        skip_existing=False,
        skip_bad=False,
        batch_size=2,
        collective="auto",
        between_hosts="auto",
        intra_op_threads=None,
        inter_op_threads=None,
        progress="lines",
    )
    return dataclasses.replace(config, **changes)


def _save_model(path: Path, *, channels: int = 3) -> None:
    """A model of 32 x 32 whose mask is what is brighter than grey."""
    inputs = keras.Input((32, 32, channels))
    outputs = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")(inputs)
    model = keras.Model(inputs, outputs)
    kernel = np.full((1, 1, channels, 1), 0.05 / channels, np.float32)
    model.get_layer("mask").set_weights([kernel, np.array([-0.05 * 127.5], np.float32)])
    _save(model, path)


def _save(model: keras.Model, path: Path) -> None:
    with warnings.catch_warnings():  # Keras, TensorFlow and NumPy 2 among themselves
        warnings.simplefilter("ignore", DeprecationWarning)
        model.save(path)


def _save_images(directory: Path, num_images: int) -> dict[str, np.ndarray]:
    """Images of different sizes and kinds, each with a bright rectangle; the true masks."""
    truth = {}
    directory.mkdir()
    for i in range(num_images):
        mask = np.zeros((40 + 3 * i, 70 - 2 * i), bool)
        mask[8 + i : 30 + i, 10 : 40 + i] = True
        pixels = np.where(mask, 250 - 5 * i, 10 + 2 * i).astype(np.uint8)
        name = f"car {i}.{('png', 'jpg', 'bmp')[i % 3]}"
        Image.fromarray(np.repeat(pixels[..., None], 3, -1)).save(directory / name)
        truth[f"car {i}_mask.png"] = mask
    return truth


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    _save_model(tmp_path / "model.keras")
    return tmp_path


def test_every_image_is_predicted_by_one_worker(job: Path, groups: Groups) -> None:
    truth = _save_images(job / "images", 7)
    # No images: a mask that lies beside its image, and something else.
    save(job / "images" / "car 0_mask.png", mode="L")
    (job / "images" / "notes.txt").touch()
    first, second = groups(2).run(CASE, config=_config(job))
    assert first["error"] == second["error"] == ""
    assert first["result"] == second["result"]
    assert (first["result"].num_masks, first["result"].num_skipped) == (7, 0)
    # Shards in order, none missing, none twice, and nothing else is left there.
    assert first["written"] == [f"car {i}_mask.png" for i in range(4)]
    assert second["written"] == [f"car {i}_mask.png" for i in range(4, 7)]
    assert sorted(path.name for path in (job / "masks").iterdir()) == sorted(truth)
    for name, mask in truth.items():
        predicted = _read(job / "masks" / name)
        assert predicted.shape == mask.shape, "as large as the image"
        assert set(np.unique(predicted)) == {0, 255}
        assert _dice(predicted > 0, mask) > 0.93, name
    assert second["output"] == ""
    lines = first["output"].splitlines()
    assert lines[0] == "tfddl: 7 images for a model of 32 x 32 x 3; 2 workers"
    assert [line.split(",")[0] for line in lines[1:-1]] == ["4/7 images", "7/7 images"]
    assert lines[-1].startswith(f"tfddl: 7 masks in {job / 'masks'}, ")

    # Two are gone: only they are made again. Then, of another size, with probabilities: all.
    for i in (2, 5):
        (job / "masks" / f"car {i}_mask.png").unlink()
    first, second = groups(2).run(CASE, config=_config(job, skip_existing=True))
    assert first["written"] == ["car 2_mask.png"]
    assert second["written"] == ["car 5_mask.png"]
    assert f"tfddl: 2 masks in {job / 'masks'}, 5 were there, " in first["output"]
    config = _config(
        job, skip_existing=True, probabilities=True, size="model", threshold=0.9, batch_size=9
    )
    first, second = groups(2).run(CASE, config=config)
    assert first["result"].num_masks == second["result"].num_masks == 7
    for i in range(7):
        mask = _read(job / "masks" / f"car {i}_mask.png")
        probability = _read(job / "masks" / f"car {i}_probability.png")
        assert mask.shape == probability.shape == (32, 32)
        # A byte holds probabilities to half a 255th.
        is_clear = np.abs(probability / 255 - 0.9) > 0.003
        np.testing.assert_array_equal((mask > 0)[is_clear], (probability >= 0.9 * 255)[is_clear])
        assert len(np.unique(probability)) > 2


def test_an_unreadable_image_stops_all_ranks_or_is_left_out(job: Path, groups: Groups) -> None:
    _save_images(job / "images", 5)
    damage(job / "images" / "car 3.png", "truncated")
    first, second = groups(2).run(CASE, config=_config(job))
    problem = "images/car 3.png can't be read: image file is truncated"
    hint = "\nHINT: repair it, or leave such images out with --skip_bad."
    assert first["error"].startswith(f"DataError: Rank 1 has stopped: {problem}")
    assert second["error"].startswith(f"DataError: {problem}")
    assert first["error"].endswith(hint)
    assert second["error"].endswith(hint)

    first, second = groups(2).run(CASE, config=_config(job, skip_bad=True))
    assert first["result"] == second["result"]
    assert first["result"].num_masks == 4
    assert [text[: len(problem)] for text in first["result"].left_out] == [problem]
    assert f"tfddl: left out {problem}" in first["output"]
    assert f"tfddl: 4 masks in {job / 'masks'}, 1 left out, " in first["output"]
    assert len(list((job / "masks").iterdir())) == 4


def test_more_workers_than_images(job: Path, groups: Groups) -> None:
    truth = _save_images(job / "images", 1)
    first, second = groups(2).run(CASE, config=_config(job, progress="none"))
    assert first["error"] == second["error"] == ""
    assert (first["written"], second["written"]) == (["car 0_mask.png"], [])
    assert _dice(_read(job / "masks" / "car 0_mask.png") > 0, truth["car 0_mask.png"]) > 0.93


def test_wrong_inputs_are_errors_on_all_ranks(job: Path, groups: Groups) -> None:
    _save_images(job / "images", 2)
    (job / "empty" / "images").mkdir(parents=True)
    (job / "file").write_text("not a model")
    (job / "file.keras").write_text("not a model")
    _save_model(job / "five.keras", channels=5)
    inputs = keras.Input((8,))
    _save(keras.Model(inputs, keras.layers.Dense(1)(inputs)), job / "flat.keras")
    (job / "twice").mkdir()
    save(job / "twice" / "a.png")
    save(job / "twice" / "a.jpg")
    for change, message in (
        ({"model": job / "none"}, f"There is no model {job / 'none'}. HINT: tfddl-train writes"),
        ({"model": job / "file"}, f"{job / 'file'} can't be read as a Keras model: "),
        ({"model": job / "file.keras"}, f"{job / 'file.keras'} can't be read as a Keras model: "),
        ({"model": job / "five.keras"}, "takes images of 5 channels; image files have 1, 3, 4."),
        ({"model": job / "flat.keras"}, "maps (None, 8) to (None, 1); expected a model that maps"),
        ({"input_dir": job / "none"}, f"There is no directory {job / 'none'}."),
        ({"input_dir": job / "empty"}, f"HINT: --input_dir={job / 'empty'}/images"),
        (
            {"input_dir": job / "twice"},
            "have the mask a_mask.png: a.jpg, a.png. HINT: rename all but",
        ),
        ({"output_dir": job / "file" / "out"}, f"{job / 'file' / 'out'} can't be written to: "),
    ):
        for result in groups(2).run(CASE, config=_config(job, **change)):
            assert result["error"].startswith("DataError: "), result
            assert message in result["error"]
            assert result["written"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "x"}, r"--size is x; it must be one of original, model\."),
        ({"threshold": 0.0}, r"--threshold is 0\.0; it must be in \(0, 1\]\."),
        ({"threshold": float("nan")}, r"--threshold is nan; it must be in \(0, 1\]\."),
        ({"batch_size": 0}, r"--batch_size is 0; it must be at least 1\."),
        ({"collective": "mpi"}, r"--collective is mpi; it must be one of auto, ring, nccl\."),
        ({"progress": "x"}, r"--progress is x; it must be one of bar, lines, none\."),
        ({"output_dir": Path("a/../images"), "input_dir": Path("images")}, "masks would lie among"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _config(tmp_path, **change)


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", "from tfddl.segmentation.predict import run; run()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_in_one_process(job: Path) -> None:
    _save_images(job / "images", 2)
    flags = ("--model=model.keras", "--input_dir=images", "--output_dir=masks", "--verbose")
    done = _run(*flags, cwd=job)
    assert done.returncode == 0, done.stderr
    assert "oneDNN custom operations are on." in done.stderr
    assert "2/2 images, " in done.stdout  # no bar where there is no terminal
    assert done.stdout.splitlines()[-1].startswith("tfddl: 2 masks in masks, ")
    assert len(list((job / "masks").iterdir())) == 2


def test_help_lists_the_flags_and_a_wrong_value_is_an_error(tmp_path: Path) -> None:
    done = _run("--help", cwd=tmp_path)
    assert done.returncode == 0
    shown = done.stdout.replace("--[no]", "--")
    assert [name for name in FLAGS if f"--{name}:" not in shown] == []
    assert shown.count("\n  --") == len(FLAGS)
    assert sorted(field.name for field in dataclasses.fields(PredictConfig)) == FLAGS
    done = _run("--model=a", "--input_dir=b", "--output_dir=b", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "tfddl-predict: UnsupportedError: --output_dir is --input_dir, b: masks would lie among"
    )
