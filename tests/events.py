"""Reads what TensorBoard would read."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

Points = dict[int, Any]


def _values(log_dir: Path) -> list[tuple[int, Any]]:
    found = []
    for path in sorted(log_dir.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = Event.FromString(record.numpy())
            found += [(event.step, value) for value in event.summary.value]
    return found


def read(log_dir: Path, plugin: str) -> dict[str, Points]:
    """By tag and step, what one run has for a page of TensorBoard: scalars, text, images."""
    by_tag: dict[str, Points] = defaultdict(dict)
    plugins: dict[str, str] = {}
    for step, value in _values(log_dir):
        # Only the first value of a tag says whose it is.
        plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        if plugins[value.tag] == plugin:
            by_tag[value.tag][step] = tf.make_ndarray(value.tensor)
    return dict(by_tag)


def scalars(log_dir: Path) -> dict[str, dict[int, float]]:
    return {
        tag: {step: float(value) for step, value in points.items()}
        for tag, points in read(log_dir, "scalars").items()
    }


def texts(log_dir: Path) -> dict[str, dict[int, str]]:
    return {
        tag: {step: value.item().decode() for step, value in points.items()}
        for tag, points in read(log_dir, "text").items()
    }


def images(log_dir: Path) -> dict[str, dict[int, list[Any]]]:
    """Decoded; TensorBoard keeps the width and the height before the images."""
    found: dict[str, dict[int, list[Any]]] = defaultdict(dict)
    for tag, points in read(log_dir, "images").items():
        for step, (width, height, *encoded) in points.items():
            pictures = [tf.io.decode_png(data).numpy() for data in encoded]
            assert {p.shape[:2] for p in pictures} == {(int(height), int(width))}
            found[tag][step] = pictures
    return dict(found)


def hparams(log_dir: Path) -> dict[str, HParamsPluginData]:
    return {
        value.tag.rpartition("/")[2]: HParamsPluginData.FromString(
            value.metadata.plugin_data.content
        )
        for _, value in _values(log_dir)
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
