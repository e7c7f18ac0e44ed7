"""`fit_generator` and its like, with the order of Keras 2's arguments; steps that are fractions."""

import functools
import inspect
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings

_FIT = """steps_per_epoch epochs verbose callbacks validation_data validation_steps
    validation_freq class_weight max_queue_size workers use_multiprocessing shuffle
    initial_epoch""".split()
_READ = "steps callbacks max_queue_size workers use_multiprocessing verbose".split()
_METHODS: dict[str, tuple[str, list[str]]] = {
    "fit_generator": ("fit", _FIT),
    "evaluate_generator": ("evaluate", _READ),
    "predict_generator": ("predict", _READ),
}
"""The methods, what replaces them, and the order of their arguments after the generator."""

_READERS = ("workers", "use_multiprocessing", "max_queue_size")
"""How `fit` reads a generator or a `Sequence`: in Keras 3 attributes of the `PyDataset`."""

_KERAS1 = {
    "max_q_size": "max_queue_size",
    "nb_epoch": "epochs",
    "nb_val_samples": "validation_steps",
    "nb_worker": "workers",
    "pickle_safe": "use_multiprocessing",
}
"""Arguments of Keras 1, which Keras 2 took with a warning."""

_STEPS = ("steps_per_epoch", "validation_steps", "steps")


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    for old, (modern, names) in _METHODS.items():
        _wrap_reader(deprecations, modern)
        if not hasattr(keras.Model, old):
            setattr(keras.Model, old, _forwarding(deprecations, old, modern, names))


def _wrap_reader(deprecations: DeprecationWarnings, name: str) -> None:
    home: Any = next(base for base in keras.Model.__mro__ if name in vars(base))
    original = getattr(home, name)
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def method(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs = _renamed(deprecations, name, kwargs)
        given = {reader: kwargs.pop(reader) for reader in _READERS if reader in kwargs}
        if given:
            modern = "PyDataset(workers=…), as the data's own arguments; generators need none."
            deprecations.warn_once(f"model.{name}(…, {next(iter(given))}=…)", modern)
        if isinstance(x, keras.utils.PyDataset):
            for reader, value in given.items():
                setattr(x, reader, value)
        if "validation_data" in kwargs:
            kwargs["validation_data"] = _as_generator(kwargs["validation_data"])
        return original(self, _as_generator(x), *args, **_whole_steps(deprecations, kwargs))

    replace_method(home, original, method)


def _as_generator(x: Any) -> Any:
    """Keras 2 took any iterator, such as a `zip` of two; Keras 3 knows a generator by its class."""
    # Not a PyDataset, nor a tf.data.Dataset, which is no iterator.
    is_plain = isinstance(x, Iterator) and not isinstance(x, keras.utils.PyDataset)
    return (batch for batch in x) if is_plain and not isinstance(x, Generator) else x


def _renamed(
    deprecations: DeprecationWarnings, method: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    for old in kwargs.keys() & _KERAS1.keys():
        old_line = f"model.{method}(…, {old}=…)"
        deprecations.warn_once(old_line, f"{_KERAS1[old]}=….", of="Keras 1")
    return {_KERAS1.get(name, name): value for name, value in kwargs.items()}


def _whole_steps(deprecations: DeprecationWarnings, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Numbers of steps as Keras 2 counted them: it went on while fewer were done."""
    for name in _STEPS:
        value = kwargs.get(name)
        # NumPy's numbers are no ints of Python's, which Keras 3 expects.
        if value is not None and not isinstance(value, int):
            if value != int(value):
                deprecations.warn_once(f"{name}={value}", f"{name}=math.ceil(…).")
            kwargs[name] = math.ceil(value)
    return kwargs


def replace_method(home: Any, original: Any, method: Any) -> None:
    """Replaces a method by one that accepts further keywords."""
    # `keras_hooks` binds arguments by the signature, which must accept these keywords, too.
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    method.__signature__ = signature.replace(parameters=parameters)
    setattr(method, PATCH_MARK, True)
    setattr(home, original.__name__, method)


def _forwarding(
    deprecations: DeprecationWarnings, old: str, modern: str, names: list[str]
) -> Callable[..., Any]:
    def method(self: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        deprecations.warn_once(f"model.{old}(generator, …)", f"model.{modern}(generator, …).")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if modern != "fit":
            given.setdefault("verbose", 0)
        return getattr(self, modern)(_as_generator(generator), **given)

    method.__name__ = old
    method.__doc__ = f"Keras 2's `{old}`: the same as `{modern}`."
    return method
