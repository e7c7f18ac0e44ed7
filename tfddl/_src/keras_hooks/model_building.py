"""A model's variables are made before training, so that all ranks can start from the same.

Keras makes those of a model without an `Input` in the first step (`Trainer._symbolic_build`, or the
call itself), when ranks could no longer be given the same ones before they train.
"""

import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import on_all_ranks
from tfddl._src.keras_hooks import scope
from tfddl._src.keras_hooks.data_errors import reraise_data_errors
from tfddl._src.runtime import current
from tfddl.errors import DataError, UnsupportedError


def build(model: Any, given: dict[str, Any]) -> None:
    """Makes the variables of a model that has none yet.

    All ranks must call it together, also those whose model is built.

    Args:
        model: That `fit` was called on.
        given: The arguments of `fit`. A generator in it is replaced by one that begins with the
            batch that was taken from it.

    Raises:
        DataError: On all ranks, where one can't read its first batch.
        UnsupportedError: There is no `call` that would make the variables.
    """
    has_call = type(model).call is not keras.Model.call
    is_built = all(layer.built for layer in model.layers) and (model.built or not has_call)
    if isinstance(given.get("x"), tf.distribute.DistributedDataset):
        is_built = True  # Keras builds a model under the scope by itself.
    if not (is_built or has_call):
        raise UnsupportedError(
            f"{type(model).__name__} has layers without variables, and no call() that would make "
            "them: the ranks couldn't start from the same weights. HINT: give its layers and the "
            "models in it an Input, or call them on a batch before fit."
        )
    make = on_all_ranks(lambda: None if is_built else _maker(model, given), error=DataError)
    if make is not None:
        with scope.of(model):
            make()


def _maker(model: Any, given: dict[str, Any]) -> Callable[[], Any]:
    """What makes a model's variables; reads what data it needs for it."""
    x = given.get("x")
    if isinstance(x, tf.data.Dataset) and not model.run_eagerly:
        # Traced, as Keras does in the first step, and without a batch: a shuffle would begin its
        # second order with the first epoch, and what a dataset gives only once would be lost.
        inputs = keras.utils.unpack_x_y_sample_weight(x.element_spec)[0]
        trace = tf.function(lambda batch: model(batch, training=False), autograph=False)
        return lambda: trace.get_concrete_function(inputs)
    first = _first_inputs(given)
    return lambda: model(first, training=False)


def _first_inputs(given: dict[str, Any]) -> Any:
    """The inputs of a first batch, or of an example."""
    x = given.get("x")
    if isinstance(x, tf.data.Dataset):
        with reraise_data_errors((x,)):
            batch = next(iter(x))
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif isinstance(x, types.GeneratorType):
        batches = list(itertools.islice(x, 1))
        if not batches:
            raise DataError(
                f"rank {current().cluster.rank}: the generator that fit got has no batch; expected "
                "at least one."
            )
        given["x"] = _chain(batches, x)
        batch = batches[0]
    else:
        return tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:1]), x)
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def _chain(first: Sequence[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # Not itertools.chain: get_data_adapter (keras/src/trainers/data_adapters/__init__.py) takes
    # only what is a types.GeneratorType for a generator.
    yield from first
    yield from rest
