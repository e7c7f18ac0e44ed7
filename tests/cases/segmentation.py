"""Cases of the application, run by every worker."""

import contextlib
import dataclasses
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl.errors import TfddlError
from tfddl.segmentation import image_io as pixels_module
from tfddl.segmentation import inference, training_data
from tfddl.segmentation.augmentation import Augmentation
from tfddl.segmentation.config import PredictConfig, TrainConfig
from tfddl.segmentation.dice import exact_dice_loss
from tfddl.segmentation.training_run import train


def run(config: TrainConfig, data_dirs: tuple[Path | None, ...] = (None,)) -> dict[str, Any]:
    """Trains, each rank on its own of the directories; what it wrote, or the error it raised."""
    directory = data_dirs[tfddl.rank() % len(data_dirs)]
    return _outcome(lambda: train(dataclasses.replace(config, data_dir=directory)))


def run_while_files_vanish(config: TrainConfig) -> dict[str, Any]:
    """Trains; once all files have been looked at, the images are gone."""

    def look_and_remove(*args: Any, **kwargs: Any) -> Any:
        found = hint(*args, **kwargs)
        tfddl.barrier()
        if tfddl.rank() == 0 and config.data_dir is not None:
            shutil.rmtree(config.data_dir / "images")
        tfddl.barrier()
        return found

    hint = training_data._hint_at_slow_reading
    with mock.patch.object(training_data, "_hint_at_slow_reading", look_and_remove):
        return _outcome(lambda: train(config))


def opened(config: TrainConfig, slow_reading_s: float = 1e9) -> dict[str, Any]:
    """Opens the data of a training; the names of the examples."""
    with mock.patch.object(training_data, "_SLOW_READING_S", slow_reading_s):
        return _outcome(lambda: training_data.open_data(config).examples.names)


def seen(config: TrainConfig) -> dict[str, list[str]]:
    """A digest of each example of this rank as the network sees it."""
    data = training_data.open_data(config)
    training = {"seed": config.seed, "augment": Augmentation(config.augment)}

    def digests(indices: Any, **options: Any) -> list[str]:
        dataset = data.shard(indices, batch_size=config.batch_size, **options)
        return [
            hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
            for images, masks in dataset.as_numpy_iterator()
            for image, mask in zip(images, masks, strict=True)
        ]

    return {
        "training": digests(data.training, **training),
        "again": digests(data.training, **training),
        "next epoch": digests(data.training, epoch=1, **training),
        "validation": digests(data.validation),
    }


def predicted(config: PredictConfig) -> dict[str, Any]:
    """Predicts; what it said, what came of it, which files this rank wrote, or its error."""
    written: list[str] = []

    def write_png(path: Path, pixels: Any) -> None:
        pixels_module.write_png(path, pixels)
        written.append(path.name)

    with mock.patch.object(inference, "write_png", write_png):
        outcome = _outcome(lambda: inference.predict(config))
    return {**outcome, "written": sorted(written)}


def _outcome(act: Callable[[], Any]) -> dict[str, Any]:
    output = io.StringIO()
    error, result = "", None
    with contextlib.redirect_stdout(output):
        try:
            result = act()
        except TfddlError as caught:
            error = f"{type(caught).__name__}: {caught}"
    return {"output": output.getvalue(), "error": error, "result": result}


def exact_dice_by_hand() -> list[tuple[float, np.ndarray]]:
    """The loss and its averaged gradient, eagerly and in a graph."""
    true, count = [
        ([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], 3),
        ([[0.0, 0.0]], 1),
        ([[1.0, 1.0]], 0),
    ][tfddl.rank()]
    weights = tf.Variable([0.2, 0.6])

    def step() -> tuple[tf.Tensor, tf.Tensor]:
        with tfddl.loss_count(count):
            with tf.GradientTape() as tape:
                loss = exact_dice_loss(true, tf.tile(weights[None], [len(true), 1]))
            return loss, tfddl.DistributedGradientTape(tape).gradient(loss, weights)

    return [(float(loss), gradient.numpy()) for loss, gradient in (step(), tf.function(step)())]


def exact_dice_validates() -> float:
    """The validation loss of 7 examples in batches of 2, of a model that predicts 0.5."""
    true = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [0, 1]], "float32")
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, "sigmoid", kernel_initializer="zeros")]
    )
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)), loss=exact_dice_loss)
    data = tfddl.shard_dataset(true, true, batch_size=2)
    history = model.fit(
        data, validation_data=(true, true), validation_batch_size=2, verbose=0
    ).history
    return float(history["val_loss"][0])
