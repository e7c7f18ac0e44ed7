"""Data that can't be read: the error there was, on all ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import on_all_ranks
from tfddl._src.data import find_failure
from tfddl._src.keras_hooks.fit_state import Fit
from tfddl.errors import DataError


@contextmanager
def readable_failures(datasets: Sequence[Any]) -> Iterator[None]:
    """Raises what went wrong with a data set, where TensorFlow made an error of its own of it."""
    try:
        yield
    except tf.errors.OpError:
        found = (find_failure(dataset) for dataset in datasets)
        failure = next((failure for failure in found if failure is not None), None)
        if failure is None:
            raise
        raise failure from None


def raise_failures(fit: Fit) -> None:
    """Raises on all ranks what went wrong on any of them with its data."""

    def check() -> None:
        failure = fit.failure()
        if failure is not None:
            raise failure

    on_all_ranks(check, error=DataError)
