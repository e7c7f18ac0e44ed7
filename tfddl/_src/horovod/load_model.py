"""`load_model`: a saved model whose optimizer is distributed again (horovod/_keras/__init__.py)."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import keras

from tfddl._src.horovod.compression import Compression
from tfddl._src.horovod.optimizers import WrapperOptions, wrap_optimizer
from tfddl.errors import UnsupportedError

_HDF5 = (".h5", ".hdf5")
_SHORT_NAMES = ("mse", "mae", "mape", "msle")
"""Names of losses that Keras 3 writes to HDF5 files but can't deserialize from them."""


def load_model(
    filepath: Any,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compression: Any = Compression.none,
    legacy_opts: bool = False,
) -> keras.Model:
    """Loads a Keras model and makes its optimizer a `DistributedOptimizer` again.

    Nothing is communicated: any rank may call it alone.

    Args:
        filepath: A ``.keras`` or ``.h5`` file.
        custom_optimizers: Classes of custom optimizers.
        custom_objects: As for `keras.models.load_model`.
        compression: As for `DistributedOptimizer`.
        legacy_opts: Has no effect: Keras 3 has one kind of optimizers.

    Returns:
        The model; its optimizer has the saved state.

    Raises:
        UnsupportedError: The file has no optimizer, or it can't be wrapped.
    """
    is_hdf5 = str(filepath).endswith(_HDF5)
    known: dict[str, Any] = {kind.__name__: kind for kind in custom_optimizers or ()}
    if is_hdf5:
        known.update({name: keras.losses.get(name) for name in _SHORT_NAMES})
    model = keras.models.load_model(filepath, custom_objects={**known, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is None:
        raise UnsupportedError(
            f"The model in {filepath} was saved without its optimizer. HINT: load it with "
            "keras.models.load_model and compile it with hvd.DistributedOptimizer(…)."
        )
    if is_hdf5:
        model.optimizer = _optimizer_of_hdf5(model, filepath)
    wrap_optimizer(model.optimizer, WrapperOptions(compression=compression))
    return model


def _optimizer_of_hdf5(model: keras.Model, filepath: Any) -> keras.optimizers.Optimizer:
    """The optimizer of an HDF5 file with its slots, which Keras 3 builds for no variables."""
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
            f"this model ({len(values)} variables; expected {len(shapes)}); it is reset.",
            stacklevel=3,
        )
        return optimizer
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)
    return optimizer
