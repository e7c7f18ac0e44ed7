"""How examples are made: the user's `load` and `augment`, and a check of what they return."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data import structure
from tfddl.errors import DataError

# The spawn key of augmentation. No other SeedSequence of the same seed and epoch, such as that of
# the permutations in `sharding`, draws the same numbers.
_AUGMENT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transforms:
    """What is done to each example before it becomes part of a batch."""

    load: Callable[..., Any] | None = None
    """Called as ``load(*parts)``; returns the example as Keras takes it."""

    augment: Callable[..., Any] | None = None
    """Called as ``augment(rng, *parts)`` with the parts of what `load` returned, or else of the
    data; returns the example as Keras takes it."""

    seed: int | None = None
    """Of the random numbers for `augment`; None counts as 0."""

    @property
    def is_empty(self) -> bool:
        """Whether examples stay as they are."""
        return self.load is None and self.augment is None

    def make(self, parts: tuple[Any, ...], *, epoch: int, index: int) -> Any:
        """Loads and augments one example; may run in several threads at once.

        Args:
            parts: x, (x, y) or (x, y, sample_weight) of one example.
            epoch: In which it is trained on.
            index: Its number in the data. The random numbers depend on it, the epoch and the seed
                only, so that they are the same whatever the number of workers.

        Returns:
            x, (x, y) or (x, y, sample_weight), with arrays for leaves.

        Raises:
            DataError: A function of the user's raised, or returned something that isn't an array.
        """
        example = structure.element(parts)
        if self.load is not None:
            example = _call("load", self.load, *parts)
        if self.augment is not None:
            seed = np.random.SeedSequence([self.seed or 0, epoch, index], spawn_key=(_AUGMENT,))
            rng = np.random.default_rng(seed)
            example = _call("augment", self.augment, rng, *structure.parts_of(example))
        return structure.element(structure.map_parts(_array, structure.parts_of(example)))


def example_specs(example: Any) -> Any:
    """The `tf.TensorSpec` of each leaf of an example that `Transforms.make` returned."""
    return tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape, a.dtype), example)


def check_example(example: Any, specs: Any) -> list[np.ndarray]:
    """The leaves of an example, which must have the specs of the first.

    Raises:
        DataError: Its structure is another one, or an array has another shape or dtype.
    """
    names = structure.names(structure.parts_of(example))
    expected = structure.names(structure.parts_of(specs))
    if names != expected:
        raise DataError(
            f"it consists of {', '.join(names) or 'nothing'}; expected "
            f"{', '.join(expected)}, as in the first example."
        )
    leaves: list[np.ndarray] = tf.nest.flatten(example)
    for name, leaf, spec in zip(names, leaves, tf.nest.flatten(specs), strict=True):
        if leaf.shape != tuple(spec.shape) or tf.as_dtype(leaf.dtype) != spec.dtype:
            raise DataError(
                f"{name} has shape {leaf.shape} and dtype {tf.as_dtype(leaf.dtype).name}; expected "
                f"{tuple(spec.shape)} and {spec.dtype.name}, as in the first example. HINT: "
                "convert or resize it where it is loaded."
            )
    return leaves


def _call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # Any of the user's own function.
        raise DataError(f"{what} raised {type(error).__name__}: {error}") from error


def _array(leaf: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(leaf)  # Raises a ValueError for nested lists of different lengths.
        tf.as_dtype(array.dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} can't be converted to an array: {error}.") from error
    # Of objects, TensorFlow takes strings only.
    if array.dtype.kind == "O" and not all(isinstance(v, str | bytes) for v in array.flat):
        raise DataError(f"{name} is a {type(leaf).__name__}; expected an array of numbers.")
    return array
