"""Keeps AutoGraph away from code that has no need of it."""

from collections.abc import Callable
from typing import TypeVar, cast

import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable[..., object])


def no_autograph(function: _Function) -> _Function:
    """A function that a `tf.function` calls as it is, with all that it calls.

    AutoGraph would translate each of them, which takes longer than to run them, and would also
    translate what a graph calls in Python.
    """
    return cast(_Function, tf.autograph.experimental.do_not_convert(function))
