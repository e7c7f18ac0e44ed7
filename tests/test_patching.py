"""Functions around Keras' own, and what is said of a Keras that has changed."""

from types import ModuleType
from typing import Any

import keras
import pytest
import tensorflow as tf

from tfddl._src.keras_hooks.patching import (
    changed,
    private,
    private_module,
    wrap_function,
    wrap_method,
)
from tfddl.errors import UnsupportedError


def _classes() -> tuple[type, type]:
    class Base:
        def add(self, x: int, *, y: int = 1) -> int:
            return x + y

    class Derived(Base):
        size = 3

    return Base, Derived


def test_a_method_is_wrapped_once_where_it_is_defined() -> None:
    base, derived = _classes()

    def around(original: Any, self: Any, x: int, **kwargs: Any) -> Any:
        return 10 * original(self, x, **kwargs)

    for _ in range(2):
        wrap_method(derived, "add", ("x",), around)
    assert "add" not in vars(derived)
    assert derived().add(2, y=3) == base().add(x=2, y=3) == 50
    assert base.add.__name__ == "add"  # type: ignore[attr-defined]


def test_a_function_is_wrapped_in_its_module() -> None:
    module: Any = ModuleType("keras.src.some")

    def double(x: int) -> int:
        return 2 * x

    module.double = double
    for _ in range(2):
        wrap_function(module, "double", ("x",), lambda original, x: original(x) + 1)
    assert module.double(4) == 9


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("gone", (), "Derived.gone is gone"),
        ("size", (), "Derived.size is gone"),
        ("add", ("a",), "Derived.add takes (self, x), not (self, a)"),
        ("add", ("x", "y", "z"), "Derived.add takes (self, x, y), not (self, x, y, z)"),
    ],
)
def test_a_method_that_has_changed_is_named(
    name: str, parameters: tuple[str, ...], text: str
) -> None:
    _, derived = _classes()
    with pytest.raises(UnsupportedError) as raised:
        wrap_method(derived, name, parameters, lambda original, *args: None)
    assert str(raised.value) == (
        f"Keras {keras.__version__} has changed where tfddl relies on it: {text}. "
        "HINT: use a Keras that docs/where-it-runs.md names, or a newer tfddl."
    )


def test_private_attributes_and_modules_that_are_gone_are_named() -> None:
    _, derived = _classes()
    assert private(derived(), "size") == private(derived, "size") == 3
    for owner in (derived, derived()):
        with pytest.raises(UnsupportedError, match="relies on it: Derived._gone is gone"):
            private(owner, "_gone")
    assert private_module("keras.src.trainers.epoch_iterator").EpochIterator
    with pytest.raises(UnsupportedError, match=r"relies on it: keras.src.gone is gone"):
        private_module("keras.src.gone")


def test_tensorflow_is_named_where_it_has_changed() -> None:
    assert changed("a is gone", library=tf).startswith(f"TensorFlow {tf.__version__} has changed")
