"""Frozen dataclasses to JSON and back.

JSON, not pickles: workers on other hosts report over a pipe, and to unpickle is to run what the
other end likes.
"""

import dataclasses
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> str:
    """One line of JSON for a dataclass, or a list of them."""
    return json.dumps(value, default=_plain)


def from_json(kind: type[T], text: str) -> T:
    """The dataclass that `to_json` wrote; fields that it doesn't have are left out.

    Raises:
        ValueError: The text isn't JSON.
        TypeError: A field is missing.
    """
    built: T = _build(kind, json.loads(text))
    return built


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return str(value)


def _build(hint: Any, value: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # Only "… | None" is used.
        return None if value is None else _build(parts[0], value)
    if origin in (tuple, list):
        return origin(_build(parts[0], item) for item in value)
    if origin is dict:
        return {_build(parts[0], key): _build(parts[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        known = {name: _build(hints[name], item) for name, item in value.items() if name in hints}
        return hint(**known)  # type: ignore[operator]
    if isinstance(hint, type) and issubclass(hint, enum.Enum | Path | int):
        return hint(value)
    return value
