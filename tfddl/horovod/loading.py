"""Models loaded so that they go on training together."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfddl.errors import UnsupportedError
from tfddl.horovod.reductions import Compression
from tfddl.horovod.sets import global_process_set
from tfddl.horovod.training import Options, wrap_optimizer


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
    known = {kind.__name__: kind for kind in custom_optimizers or ()}
    model = keras.models.load_model(filepath, custom_objects={**known, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is None:
        raise UnsupportedError(
            f"The model in {filepath} was saved without its optimizer. Load it with "
            "keras.models.load_model and compile it with hvd.DistributedOptimizer(…)."
        )
    options = Options(
        compression=compression,
        sparse_as_dense=False,
        op=None,
        gradient_predivide_factor=1.0,
        num_groups=0,
        groups=None,
        process_set=global_process_set,
        scale_local_gradients=True,
    )
    wrap_optimizer(
        model.optimizer, options, backward_passes_per_step=1, average_aggregated_gradients=False
    )
    model.jit_compile = False  # Compiled as a model of one process: XLA can't exchange gradients.
    return model
