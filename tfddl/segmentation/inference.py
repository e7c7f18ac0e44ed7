"""Predicts the masks of a directory of images, each worker those of its shard."""

import contextlib
import functools
import itertools
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tfddl
from tfddl._src.collectives import on_all_ranks
from tfddl._src.cpu import num_loader_threads
from tfddl._src.parallel_map import map_in_order
from tfddl._src.runtime import current
from tfddl.errors import DataError
from tfddl.segmentation.config import PredictConfig
from tfddl.segmentation.coordination import compare_names, make_writable_directory, print_on_chief
from tfddl.segmentation.image_io import EXTENSIONS, MODES, read_image, scale_image, write_png
from tfddl.segmentation.layout import image_files
from tfddl.segmentation.progress_bar import ProgressBar


@dataclass(frozen=True)
class Predicted:
    """What a job predicted; the same on every rank.

    Attributes:
        num_masks: Masks that were written.
        num_skipped: Images that were skipped, because their masks existed.
        left_out: A line for each image that can't be read.
    """

    num_masks: int
    num_skipped: int
    left_out: tuple[str, ...]


def predict(config: PredictConfig) -> Predicted:
    """Writes `X_mask.png` for every image `X`, and prints the progress on rank 0.

    All ranks must call it together, after `tfddl.init()`. Each predicts its shard of the images; a
    rank whose shard is empty waits for the others. A file appears whole or not at all.

    Args:
        config: The same on every rank.

    Returns:
        What all ranks together predicted.

    Raises:
        DataError: On all ranks: one of them can't read the model or the directory, or an image
            without `skip_bad`; the model makes no masks; or a mask can't be written.
        DisagreementError: The ranks have different images.
    """
    started_s = time.monotonic()
    model = on_all_ranks(lambda: _load_model(config.model), error=DataError)
    images = on_all_ranks(lambda: _images(config.input_dir), error=DataError)
    compare_names([path.name for path in images], flag="input_dir")
    on_all_ranks(lambda: make_writable_directory(config.output_dir), error=DataError)
    todo = _todo(images, config)
    height, width, channels = model.input_shape[1:]
    num_workers = tfddl.size()
    print_on_chief(
        f"tfddl: {len(todo)} images for a model of {height} x {width} x {channels}; "
        f"{num_workers} worker{'s' if num_workers > 1 else ''}"
    )
    shard = _Shard(model, todo[slice(*tfddl.shard_range(len(todo), tfddl.rank(), num_workers))])
    _predict_together(shard, num_images=len(todo), config=config)
    left_out = tuple(text for texts in tfddl.allgather_object(shard.problems) for text in texts)
    predicted = Predicted(len(todo) - len(left_out), len(images) - len(todo), left_out)
    _print_summary(predicted, config, took_s=time.monotonic() - started_s)
    return predicted


@dataclass
class _Shard:
    """The images of this rank, and how many are done."""

    model: keras.Model
    images: Sequence[Path]
    num_done: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Image:
    """An image scaled for the model, and its original (height, width)."""

    path: Path
    pixels: NDArray[np.uint8]
    size: tuple[int, int]


_Read = _Image | DataError


def _predict_together(shard: _Shard, *, num_images: int, config: PredictConfig) -> None:
    """Predicts batch by batch; after each, the ranks exchange progress and errors.

    Every rank makes as many rounds as the one with the largest shard: the exchange is collective.
    """
    largest_shard = -(-num_images // tfddl.size())
    rounds = -(-largest_shard // config.batch_size)
    kind = config.progress if tfddl.rank() == 0 else "none"
    with (
        contextlib.closing(_batches(shard, config.batch_size)) as batches,
        ProgressBar(num_images, kind=kind) as progress,
    ):
        for _ in range(rounds):
            on_all_ranks(lambda: _predict_batch(shard, next(batches, []), config), error=DataError)
            progress.show(sum(tfddl.allgather_object(shard.num_done)))


def _batches(shard: _Shard, batch_size: int) -> Generator[list[_Read]]:
    """Batches of images, decoded by threads while the model predicts those before."""
    image_size, channels = shard.model.input_shape[1:3], shard.model.input_shape[3]
    read = functools.partial(_read, image_size=image_size, channels=channels)
    num_threads = num_loader_threads(current().num_cores)
    with contextlib.closing(map_in_order(read, shard.images, num_threads=num_threads)) as images:
        while batch := list(itertools.islice(images, batch_size)):
            yield batch


def _read(path: Path, *, image_size: tuple[int, int], channels: int) -> _Read:
    try:
        image = read_image(path, channels=channels)
    except DataError as error:
        return error
    return _Image(path, scale_image(image, image_size), (image.height, image.width))


def _predict_batch(shard: _Shard, batch: Sequence[_Read], config: PredictConfig) -> None:
    problems = [str(one) for one in batch if isinstance(one, DataError)]
    if problems and not config.skip_bad:
        raise DataError(
            f"{problems[0]}\nHINT: repair it, or leave such images out with --skip_bad."
        )
    shard.problems += problems
    good = [one for one in batch if isinstance(one, _Image)]
    if good:  # A model must never see an empty batch.
        # Not `predict`, which all ranks must call together.
        probabilities = shard.model.predict_on_batch(np.stack([one.pixels for one in good]))
        for one, of_image in zip(good, probabilities, strict=True):
            _write(one, of_image, config=config)
    shard.num_done += len(batch)


def _write(one: _Image, probabilities: NDArray[np.float32], *, config: PredictConfig) -> None:
    """Writes the mask of one image, in the size of the image or of the model's output."""
    picture = Image.fromarray(np.asarray(probabilities[..., 0], np.float32))
    if config.size == "original":
        # Scaled before the threshold is applied, which keeps edges smooth.
        picture = picture.resize(one.size[::-1], Image.Resampling.BILINEAR)
    values = np.asarray(picture)
    mask_path, probability_path = _targets(one.path, config.output_dir)
    if config.probabilities:
        write_png(probability_path, (values * 255).round().clip(0, 255).astype(np.uint8))
    write_png(mask_path, np.where(values >= config.threshold, 255, 0).astype(np.uint8))


def _targets(image: Path, directory: Path) -> tuple[Path, Path]:
    """The files of an image's mask and probabilities."""
    return directory / f"{image.stem}_mask.png", directory / f"{image.stem}_probability.png"


def _load_model(path: Path) -> keras.Model:
    """The model, if it maps an image to a mask of the same size."""
    if not path.is_file():
        raise DataError(
            f"There is no model {path}. HINT: tfddl-train writes model.keras and best.keras."
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} can't be read as a Keras model: {error}") from error
    _check_shapes(getattr(model, "input_shape", None), getattr(model, "output_shape", None), path)
    return model


def _check_shapes(inputs: Any, outputs: Any, path: Path) -> None:
    """Refuses other models: several inputs have a list of shapes, unbuilt models have none."""
    is_right = (
        isinstance(inputs, tuple)
        and len(inputs) == 4
        and None not in inputs[1:]
        and outputs == (None, *inputs[1:3], 1)
    )
    if not is_right:
        raise DataError(
            f"{path} maps {inputs} to {outputs}; expected a model that maps (None, height, width, "
            "channels) to (None, height, width, 1)."
        )
    if inputs[3] not in MODES:
        raise DataError(
            f"{path} takes images of {inputs[3]} channels; image files have "
            f"{', '.join(map(str, MODES))}."
        )


def _images(directory: Path) -> list[Path]:
    """The images of a directory, sorted; masks beside their images are left out."""
    files = image_files(directory)
    names = [
        name
        for name in files
        if not (name.endswith("_mask") and name.removesuffix("_mask") in files)
    ]
    ambiguous = [name for name in names if len(files[name]) > 1]
    if ambiguous:
        raise DataError(
            f"Several images would have the mask {ambiguous[0]}_mask.png: "
            f"{', '.join(path.name for path in files[ambiguous[0]])}. HINT: rename all but one."
        )
    if not names:
        has_inner = any((directory / name).is_dir() for name in ("images", "train"))
        raise DataError(
            f"There is no image in {directory}; expected files of the kinds "
            f"{', '.join(EXTENSIONS)}."
            + (f" HINT: --input_dir={directory}/images" if has_inner else "")
        )
    return [files[name][0] for name in names]


def _todo(images: Sequence[Path], config: PredictConfig) -> list[Path]:
    """The images to predict, the same on every rank."""
    if not config.skip_existing:
        return list(images)
    mine = {path.name for path in images if _has_outputs(path, config)}
    # Hosts without a shared file system each see their own masks only.
    existing = set().union(*tfddl.allgather_object(mine))
    return [path for path in images if path.name not in existing]


def _has_outputs(image: Path, config: PredictConfig) -> bool:
    mask, probability = _targets(image, config.output_dir)
    return mask.exists() and (probability.exists() or not config.probabilities)


def _print_summary(predicted: Predicted, config: PredictConfig, *, took_s: float) -> None:
    for problem in predicted.left_out:
        print_on_chief(f"tfddl: left out {problem}")
    skipped = f", {predicted.num_skipped} were there" if predicted.num_skipped else ""
    left_out = f", {len(predicted.left_out)} left out" if predicted.left_out else ""
    print_on_chief(
        f"tfddl: {predicted.num_masks} masks in {config.output_dir}{skipped}{left_out}, "
        f"{took_s:.0f} s"
    )
