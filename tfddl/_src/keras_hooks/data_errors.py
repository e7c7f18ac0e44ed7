"""Data that can't be read: the error there was, on all ranks."""

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
    """Raises what went wrong with a data set, where TensorFlow made an error of its own of it."""
    try:
        yield
    except tf.errors.OpError:
        found = (find_error(dataset) for dataset in datasets)
        failure = next((failure for failure in found if failure is not None), None)
        if failure is None:
            raise
        raise failure from None


def raise_on_all_ranks(fit: FitState) -> None:
    """Raises on all ranks what went wrong on any of them with its data."""

    def check() -> None:
        failure = fit.failure()
        if failure is not None:
            raise failure

    on_all_ranks(check, error=DataError)
