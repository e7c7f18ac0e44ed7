"""Functions, arguments and results as bytes, by cloudpickle; says which part can't be pickled."""

from __future__ import annotations

import functools
import pickle
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from tfddl.errors import LaunchError, PeerLostError, StalledError

# A chain of references that is longer is shown up to here.
_MAX_DEPTH = 20
# Whose frames are before the function's in a traceback.
_OURS = (Path(__file__).parent, Path(__file__).parent.parent / "engines")


@dataclass(frozen=True)
class Call:
    """A function call.

    Attributes:
        fn: the function.
        args: its positional arguments.
        kwargs: its arguments by name.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def make(self) -> Any:
        """Calls the function."""
        return self.fn(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Answer:
    """What came of a call in one worker.

    Attributes:
        result: the pickled result; None where the function raised.
        error: the traceback, as text.
        exception: the pickled exception; None where it can't be.
        blames_peer: whether it may only say that another rank has failed.
        at_s: when (`time.monotonic` of the worker's host).
    """

    result: bytes | None
    error: str = ""
    exception: bytes | None = None
    blames_peer: bool = False
    at_s: float = 0.0


def dump_call(call: Call) -> bytes:
    """The bytes of a call, with the paths that unpickling it may have to import from.

    Raises:
        LaunchError: a part of it can't be pickled; the message says which.
    """
    name = getattr(call.fn, "__name__", repr(call.fn))
    parts = [(name, call.fn)]
    parts += [(f"args[{i}]", value) for i, value in enumerate(call.args)]
    parts += [(f"kwargs[{key!r}]", value) for key, value in call.kwargs.items()]
    data = _dump((call.fn, call.args, dict(call.kwargs)), "the call", parts)
    return pickle.dumps((sys.prefix, sys.path, data))


def load_call(data: bytes) -> Call:
    """The call of these bytes; from here on modules are found where its caller finds them.

    Raises:
        LaunchError: a module isn't there, or not the same, or another Python has pickled it.
    """
    prefix, paths, pickled = pickle.loads(data)
    if prefix == sys.prefix:
        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    else:  # Another environment: its own packages are first, and the caller's are left out.
        sys.path += [p for p in paths if p not in sys.path and not p.startswith(prefix)]
    try:
        return Call(*cloudpickle.loads(pickled))
    except Exception as error:
        raise LaunchError(
            f"the function can't be unpickled: {type(error).__name__}: {error}. HINT: all hosts "
            "need the same Python and packages; a module of your own that isn't installed there "
            "travels with cloudpickle.register_pickle_by_value(module)"
        ) from error


def add_paths(data: bytes, paths: Sequence[str]) -> bytes:
    """The same call, to be loaded where modules are found in these paths as well."""
    prefix, own, pickled = pickle.loads(data)
    return pickle.dumps((prefix, [*own, *(path for path in paths if path not in own)], pickled))


def dump_result(result: Any) -> bytes:
    """The bytes of a function's result.

    Raises:
        LaunchError: a part of it can't be pickled; the message says which.
    """
    return _dump(result, "the result", [("the result", result)])


def dump_failure(error: BaseException) -> Answer:
    """The answer of a call that has raised: the traceback begins at the function."""
    text = "".join(traceback.format_exception(type(error), error, user_frames(error)))
    try:
        data: bytes | None = cloudpickle.dumps(error)
        cloudpickle.loads(data)  # Some can be pickled, but not loaded.
    except Exception:  # noqa: BLE001 - an exception's own methods may raise anything; text is left
        data = None
    # Of an operation in a graph TensorFlow keeps the text of an exception, and not its class.
    blames_peer = isinstance(error, PeerLostError | StalledError) or (
        type(error).__module__.startswith("tensorflow.")
    )
    return Answer(None, text, data, blames_peer, at_s=time.monotonic())


def user_frames(error: BaseException) -> types.TracebackType | None:
    """The traceback of an exception, from the function on that was called."""
    frames = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).parent in _OURS:
        frames = frames.tb_next
    return frames


def load_exception(data: bytes | None) -> BaseException | None:
    """The exception of `dump_failure`; None where it can't be loaded here."""
    try:
        found = None if data is None else cloudpickle.loads(data)
    except Exception:  # noqa: BLE001 - its module may be missing here; its text was kept
        return None
    return found if isinstance(found, BaseException) else None


def find_unpicklable(name: str, value: Any) -> tuple[str, Any]:
    """The innermost part of a value that can't be pickled, and how it is reached.

    Args:
        name: what the value is called.
        value: one that can't be pickled.

    Returns:
        Such as "train → model → ._lock", and that object.
    """
    seen = {id(value)}
    for _ in range(_MAX_DEPTH):
        for step, part in _parts(value):
            if id(part) not in seen and _pickling_error(part) is not None:
                seen.add(id(part))
                name, value = f"{name} → {step}", part
                break
        else:
            break
    return name, value


def _dump(value: Any, what: str, parts: Sequence[tuple[str, Any]]) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - an object's own methods may raise anything
        guilty = ((name, part) for name, part in parts if _pickling_error(part) is not None)
        name, part = find_unpicklable(*next(guilty, parts[0]))
        kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
        raise LaunchError(
            f"{what} can't be pickled: {name} is of type {kind}: {_pickling_error(part) or error}. "
            "HINT: make such an object within the function; pass and return what can be copied, "
            "such as numbers, arrays, and a model's get_weights()"
        ) from None
    return data


def _pickling_error(value: Any) -> Exception | None:
    try:
        cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - an object's own methods may raise anything
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value refers to, and is pickled with it."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield from (("self", value.__self__), (value.__func__.__name__, value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    else:
        own = getattr(value, "__dict__", {})
        yield from ((f".{name}", part) for name, part in own.items())
        names = getattr(type(value), "__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _parts_of_function(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of functions around it, global ones, and defaults."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield name, cell.cell_contents
    for name in _global_names(fn.__code__):
        if name in fn.__globals__:
            yield name, fn.__globals__[name]
    for part in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
        yield "a default", part


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Those of functions within it included."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _global_names(part)
