"""Trains a U-Net as a configuration says, and writes the results."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import tfddl
from tfddl._src.checkpoint import CheckpointStore
from tfddl._src.collectives import on_all_ranks
from tfddl._src.storage import make_path
from tfddl._src.virtual_workers import own_workers
from tfddl.errors import DataError
from tfddl.models import unet
from tfddl.segmentation.augmentation import Augmentation
from tfddl.segmentation.config import TrainConfig
from tfddl.segmentation.coordination import make_writable_directory, print_on_chief
from tfddl.segmentation.dice import dice, dice_crossentropy, dice_loss, exact_dice_loss
from tfddl.segmentation.training_data import TrainingData, open_data
from tfddl.segmentation.visualization import draw_predictions

# Validation examples in predictions.png.
_NUM_SHOWN = 6
_MODEL, _BEST, _PICTURE = "model.keras", "best.keras", "predictions.png"
_LOSSES = {
    "dice_crossentropy": dice_crossentropy,
    "dice": dice_loss,
    "exact_dice": exact_dice_loss,
}
_VERBOSE = {"none": 0, "bar": 1, "lines": 2}


def train(config: TrainConfig) -> None:
    """Trains, writes models and picture, and prints a summary on rank 0.

    All ranks must call it together, after `tfddl.init()`.

    Args:
        config: The same on every rank.

    Raises:
        ShardingError: The network can't halve the image size so often, or there are fewer examples
            to train on, or to validate with, than workers.
        DataError: On all ranks: one of them can't read the data or write the results.
        DisagreementError: The ranks read different examples, or have different checkpoints.
        CheckpointError: The checkpoints are those of another model, or can't be written.
    """
    # The same initial weights on all ranks; `fit` broadcasts rank 0's in any case.
    keras.utils.set_random_seed(config.seed)
    model = unet(
        (*config.image_size, config.in_channels),
        filters=config.filters,
        scale=1 / 255,
        momentum=config.batchnorm_momentum,
    )
    on_all_ranks(functools.partial(_make_directories, config), error=DataError)
    data = open_data(config)
    _print_plan(data, config)
    started_s = time.monotonic()
    logs = _fit(model, data, config=config)
    took_s = time.monotonic() - started_s
    best = _write_results(model, data, config=config)
    lines = [
        f"validation Dice {logs['val_dice'][-1]:.4f} after {took_s:.0f} s of training",
        f"model    {config.output_dir / _MODEL}",
        f"best     {config.output_dir / _BEST} (validation loss {best['best']['value']:.4f}, after "
        f"epoch {best['epoch']})",
        f"picture  {config.output_dir / _PICTURE}",
    ]
    if config.tensorboard_dir is not None:
        lines.append(f"charts   tensorboard --logdir {config.tensorboard_dir}")
    print_on_chief("\n".join(f"tfddl: {line}" for line in lines))


def _print_plan(data: TrainingData, config: TrainConfig) -> None:
    num_workers = config.virtual_workers or tfddl.size()
    height, width = config.image_size
    decay = "" if config.learning_rate_decay == "none" else f" ({config.learning_rate_decay} decay)"
    print_on_chief(
        f"tfddl: {len(data.training)} examples to train on, {len(data.validation)} to validate "
        f"with, {height} x {width} pixels; {num_workers} "
        f"{'virtual ' if config.virtual_workers else ''}worker{'s' if num_workers > 1 else ''}, "
        f"{config.batch_size} examples each in a step\n"
        f"tfddl: preset {config.preset}: filters {','.join(map(str, config.filters))}, loss "
        f"{config.loss}, learning rate {config.learning_rate} x {num_workers}{decay}, "
        f"{config.epochs} epochs, augment {','.join(config.augment) or 'none'}, seed {config.seed}"
    )


def _fit(model: keras.Model, data: TrainingData, *, config: TrainConfig) -> dict[str, list[float]]:
    """Trains from the newest checkpoint on; the logs of all epochs, those before it included."""
    dataset = data.shard(
        data.training,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=Augmentation(config.augment) if config.augment else None,
        virtual_workers=config.virtual_workers,
    )
    validation = data.shard(
        data.validation, batch_size=config.batch_size, virtual_workers=config.virtual_workers
    )
    num_steps = int(dataset.cardinality())
    if config.virtual_workers is not None:  # A step has a batch for each of the worker's own.
        num_steps //= len(own_workers(config.virtual_workers, tfddl.rank(), tfddl.size()))
    rate = _learning_rate(config, num_steps=config.epochs * num_steps)
    optimizer = tfddl.DistributedOptimizer(
        keras.optimizers.Adam(rate), virtual_workers=config.virtual_workers
    )
    model.compile(
        optimizer=optimizer,
        loss=_LOSSES[config.loss],
        metrics=[dice],
    )
    begun: list[int] = []
    counter = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(epoch))
    history = model.fit(
        dataset,
        validation_data=validation,
        epochs=config.epochs,
        callbacks=[counter, *_callbacks(data, config)],
        verbose=_VERBOSE[config.progress] if tfddl.rank() == 0 else 0,
    )
    if not begun:
        print_on_chief(
            "tfddl: its results are written again. HINT: --noresume trains anew; a larger --epochs "
            "goes on; another --output_dir is another training."
        )
    return dict(history.history)


def _callbacks(data: TrainingData, config: TrainConfig) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = [
        tfddl.callbacks.Checkpoint(
            config.checkpoint_dir, save_every_steps=config.save_every_steps, keep=config.keep
        )
    ]
    if config.tensorboard_dir is not None:
        callbacks.append(
            tfddl.callbacks.Monitor(
                config.tensorboard_dir,
                hparams=dataclasses.asdict(config),
                predictions=lambda model: {"predictions": np.asarray(_draw(model, data))[None]},
            )
        )
    return callbacks


def _learning_rate(config: TrainConfig, *, num_steps: int) -> Any:
    # Linear scaling: Accurate, Large Minibatch SGD, Goyal et al., 2017, arXiv:1706.02677.
    rate = config.learning_rate * (config.virtual_workers or tfddl.size())
    if config.learning_rate_decay == "none":
        return rate
    # The first cycle of SGDR, Loshchilov and Hutter, 2017, arXiv:1608.03983.
    return keras.optimizers.schedules.CosineDecay(rate, num_steps)


def _write_results(
    model: keras.Model, data: TrainingData, *, config: TrainConfig
) -> dict[str, Any]:
    """Writes both models and the picture; returns the metadata of the best checkpoint."""

    def write_final() -> None:
        if tfddl.rank() == 0:
            _save(model, config.output_dir / _MODEL)
            _draw(model, data).save(config.output_dir / _PICTURE)

    def write_best() -> None:
        if tfddl.rank() == 0:
            _save(model, config.output_dir / _BEST)

    on_all_ranks(write_final, error=DataError)
    best = tfddl.load_checkpoint(config.checkpoint_dir, model, which="best")
    on_all_ranks(write_best, error=DataError)
    return best


def _draw(model: keras.Model, data: TrainingData) -> Image.Image:
    """A picture of the model's predictions. Any rank may call it alone."""
    images, masks = data.load(data.validation[:_NUM_SHOWN])
    # Not `predict`, which all ranks must call together.
    probabilities = keras.ops.convert_to_numpy(model(images, training=False))
    return draw_predictions(
        images,
        masks=masks[..., 0] > 0,
        predictions=probabilities[..., 0] >= 0.5,
        scores=keras.ops.convert_to_numpy(dice(masks, probabilities)).tolist(),
    )


def _save(model: keras.Model, path: Path) -> None:
    """Saves a model to a file that appears under its name whole or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    # A model of the same layers that was never compiled: then loading it needs neither tfddl nor
    # the loss.
    keras.Model(model.inputs, model.outputs, name=model.name).save(partial)
    partial.replace(path)


def _make_directories(config: TrainConfig) -> None:
    """Fails before the training rather than after it where results can't be written."""
    make_writable_directory(config.output_dir)
    if tfddl.rank() == 0 and not config.resume:
        CheckpointStore(make_path(config.checkpoint_dir)).clear()
        if config.tensorboard_dir is not None:
            _remove_event_files(config.tensorboard_dir)


def _remove_event_files(directory: Path | str) -> None:
    """Removes what `callbacks.Monitor` wrote (under job/); other event files stay."""
    for folder, _, names in tf.io.gfile.walk(tf.io.gfile.join(str(directory), "job")):
        for name in names:
            if name.startswith("events.out.tfevents."):
                tf.io.gfile.remove(tf.io.gfile.join(folder, name))
