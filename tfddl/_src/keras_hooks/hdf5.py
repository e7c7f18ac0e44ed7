"""HDF5 files as Keras 2 wrote them, under any name: Keras 3 reads them by their ending only."""

from pathlib import Path
from typing import Any

import h5py
import keras

from tfddl._src.keras_hooks.patching import private, private_module

_FORMAT = "keras.src.legacy.saving.legacy_h5_format"


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Writes a model's weights in the layout of Keras 2, which Keras 2 and 3 read.

    Args:
        model: A built model.
        path: The file; its directory must exist.

    Raises:
        UnsupportedError: A Keras that we don't know.
    """
    write = private(private_module(_FORMAT), "save_weights_to_hdf5_group")
    with h5py.File(path, "w") as file:
        write(file, model)


def load_weights(model: keras.Model, path: str | Path, *, by_name: bool = False) -> None:
    """Reads weights, or those of a whole model, from a file in the layout of Keras 2.

    Args:
        model: A built model.
        path: The file.
        by_name: Whether layers are matched by their names, not by their order.

    Raises:
        ValueError: The model's layers have other shapes or numbers of weights.
        UnsupportedError: A Keras that we don't know.
    """
    suffix = "_by_name" if by_name else ""
    read = private(private_module(_FORMAT), f"load_weights_from_hdf5_group{suffix}")
    with h5py.File(path, "r") as file:
        is_whole = "layer_names" not in file.attrs and "model_weights" in file
        read(file["model_weights"] if is_whole else file, model)


def load_model(path: str | Path, **options: Any) -> keras.Model:
    """Reads a whole model from a file in the layout of Keras 2.

    Args:
        path: The file.
        **options: As for `keras.models.load_model`.

    Raises:
        ValueError: The file holds weights only.
        UnsupportedError: A Keras that we don't know.
    """
    return private(private_module(_FORMAT), "load_model_from_hdf5")(path, **options)
