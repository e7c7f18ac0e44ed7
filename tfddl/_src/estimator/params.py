"""Parameters of Spark ML with their getters and setters, under Horovod's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters

_Class = TypeVar("_Class", bound=type)

INT, FLOATS = TypeConverters.toInt, TypeConverters.toListFloat
STRING, STRINGS = TypeConverters.toString, TypeConverters.toListString
BOOL = TypeConverters.toBoolean

# Whose accessors aren't the name in capitals (horovod/spark/common/params.py).
_ACCESSORS = {
    "shuffle_buffer_size": "ShufflingBufferSize",
    "train_reader_num_workers": "TrainReaderNumWorker",
    "val_reader_num_workers": "ValReaderNumWorker",
    "inmemory_cache_all": "InMemoryCacheAll",
}


def with_params(
    declared: Mapping[str, tuple[str, Callable[[Any], Any] | None]],
) -> Callable[[_Class], _Class]:
    """Adds parameters to a class, each with ``getName`` and ``setName``.

    Args:
        declared: Name -> what it is, and how values are checked; None takes any.
    """

    def add(cls: _Class) -> _Class:
        for name, (doc, converter) in declared.items():
            setattr(cls, name, Param(Params._dummy(), name, doc, converter))
            accessor = _ACCESSORS.get(name, name.title().replace("_", ""))
            if f"get{accessor}" not in vars(cls):  # Some are written out.
                setattr(cls, f"get{accessor}", _getter(name, doc))
            setattr(cls, f"set{accessor}", _setter(name, doc))
        return cls

    return add


def _getter(name: str, doc: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return self.getOrDefault(name)

    get.__doc__ = f"The parameter ``{name}``: {doc}."
    return get


def _setter(name: str, doc: str) -> Callable[[Any, Any], Any]:
    def set_value(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    set_value.__doc__ = f"Sets ``{name}``: {doc}."
    return set_value
