"""The structure of examples: nested tuples and dictionaries, and the names of their leaves."""

import collections
from collections.abc import Callable
from typing import Any

import tensorflow as tf

PARTS = ("x", "y", "sample_weight")


def map_leaves(function: Callable[[Any, str], Any], structure: Any, name: str) -> Any:
    """The structure with ``function(leaf, its name)`` in place of each leaf.

    Tuples and mappings are structure. Lists are leaves: a list of numbers is data, although
    `tf.nest` would take it for structure.

    Args:
        function: Called with each leaf and its name, such as "x['image'][0]".
        structure: Any nesting.
        name: The name of the whole.
    """
    if isinstance(structure, collections.abc.Mapping):
        return {
            key: map_leaves(function, value, f"{name}[{key!r}]") for key, value in structure.items()
        }
    if isinstance(structure, tuple):
        items = [map_leaves(function, value, f"{name}[{i}]") for i, value in enumerate(structure)]
        # A namedtuple takes its fields one by one.
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    return function(structure, name)


def map_parts(function: Callable[[Any, str], Any], parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """`map_leaves` for x, for (x, y), or for (x, y, sample_weight)."""
    return tuple(map_leaves(function, part, name) for name, part in zip(PARTS, parts, strict=False))


def names(parts: tuple[Any, ...]) -> list[str]:
    """What each leaf is called, in the order of `tf.nest.flatten`: "x['image']", "y"."""
    flat: list[str] = tf.nest.flatten(map_parts(lambda _, name: name, parts))
    return flat


def element(parts: tuple[Any, ...]) -> Any:
    """An example as Keras takes it: x, (x, y) or (x, y, sample_weight)."""
    return parts[0] if len(parts) == 1 else parts


def parts_of(given: Any) -> tuple[Any, ...]:
    """The parts of an example as Keras takes it."""
    # A namedtuple is a single x with named parts.
    is_tuple = isinstance(given, tuple) and not hasattr(given, "_fields")
    return given if is_tuple else (given,)


def batched(specs: Any) -> Any:
    """The specs of batches of any length, for the specs of an example."""
    return tf.nest.map_structure(lambda s: tf.TensorSpec((None, *s.shape), s.dtype), specs)


def unbatched(specs: Any) -> Any:
    """The specs of an example, for the specs of batches."""
    return tf.nest.map_structure(lambda s: tf.TensorSpec(s.shape[1:], s.dtype), specs)
