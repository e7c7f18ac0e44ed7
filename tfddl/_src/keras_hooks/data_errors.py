"""Errors in reading data: the original one, and on all ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import on_all_ranks
from tfddl._src.data import find_error
from tfddl._src.keras_hooks.fit_state import FitState
from tfddl.errors import DataError


@contextmanager
def reraise_data_errors(datasets: Sequence[Any]) -> Iterator[None]:
    """Raises the `DataError` that there was, where TensorFlow raises an error of its own for it.

    Args:
        datasets: What may be read within; what isn't a dataset of shards is ignored.
    """
    try:
        yield
    except tf.errors.OpError:
        found = (find_error(dataset) for dataset in datasets)
        error = next((error for error in found if error is not None), None)
        if error is None:
            raise
        raise error from None


def raise_on_all_ranks(fit: FitState) -> None:
    """Raises on all ranks what failed in any of them when its data was read.

    All ranks must call it together.

    Raises:
        DataError: The rank's own, or one that names the rank that it comes from.
    """

    def check() -> None:
        error = fit.data_error()
        if error is not None:
            raise error

    on_all_ranks(check, error=DataError)
