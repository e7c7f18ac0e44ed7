"""Models loaded so that they go on training together."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import keras

from tfddl._src.horovod.optimizers import WrapperOptions, wrap_optimizer
from tfddl._src.horovod.reductions import Compression
from tfddl.errors import UnsupportedError

_HDF5 = (".h5", ".hdf5")
_SHORT_NAMES = ("mse", "mae", "mape", "msle")
"""Keras 3 writes these into HDF5 files, and doesn't know them when it reads them."""


def load_model(
    filepath: Any,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compression: Any = Compression.none,
    legacy_opts: bool = False,
) -> keras.Model:
    """Loads a Keras model and makes its optimizer a `DistributedOptimizer` again.

    Any rank may load by itself; nothing travels.

    Args:
        filepath: A ``.keras`` or ``.h5`` file.
        custom_optimizers: Classes of optimizers of one's own.
        custom_objects: As for `keras.models.load_model`.
        compression: As for `DistributedOptimizer`.
        legacy_opts: Has no effect: Keras 3 has one kind of optimizers.

    Returns:
        The model; its optimizer keeps its state.

    Raises:
        UnsupportedError: The file has no optimizer, or one that can't be wrapped.
    """
    is_hdf5 = str(filepath).endswith(_HDF5)
    known: dict[str, Any] = {kind.__name__: kind for kind in custom_optimizers or ()}
    if is_hdf5:
        known.update({name: keras.losses.get(name) for name in _SHORT_NAMES})
    model = keras.models.load_model(filepath, custom_objects={**known, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is None:
        raise UnsupportedError(
            f"The model in {filepath} was saved without its optimizer. Load it with "
            "keras.models.load_model and compile it with hvd.DistributedOptimizer(…)."
        )
    if is_hdf5:
        model.optimizer = _optimizer_of_hdf5(model, filepath)
    wrap_optimizer(model.optimizer, WrapperOptions(compression=compression))
    model.jit_compile = False  # Compiled as a model of one process: XLA can't exchange gradients.
    return model


def _optimizer_of_hdf5(model: keras.Model, filepath: Any) -> keras.optimizers.Optimizer:
    """The optimizer of a file, with its slots: Keras 3 builds it for no variables at all."""
    loaded = model.optimizer
    optimizer = type(loaded).from_config(loaded.get_config())
    optimizer.build(model.trainable_variables)
    with h5py.File(filepath) as file:
        group = file.get("optimizer_weights", {})
        names = group.attrs["weight_names"] if group else []
        values = [group[name][()] for name in names]
    shapes = [tuple(variable.shape) for variable in optimizer.variables]
    if [value.shape for value in values] != shapes:
        warnings.warn(
            f"The optimizer's state in {filepath} isn't that of {type(optimizer).__name__} for "
            f"this model ({len(values)} variables for {len(shapes)}); it starts anew.",
            stacklevel=3,
        )
        return optimizer
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)
    return optimizer
