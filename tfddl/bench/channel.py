"""Orders and answers as JSON, over a socket.

Not pickled: whoever unpickles runs what the other end likes, and hosts that are only measured need
not be trusted so far. A message is its length (32 bits, little-endian) and an object with the
fields of one of the classes in `tfddl.bench.orders`, named by "kind".
"""

import dataclasses
import enum
import json
import select
import socket
import struct
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from tfddl._src.cluster.parsing import parse_json
from tfddl.bench.orders import Answer, Order
from tfddl.errors import ClusterError

_LENGTH = struct.Struct("<I")
_LONGEST = 2**24
_REST_S = 60.0
"""For the rest of a message whose beginning has come."""

_KIND = "kind"
_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (*typing.get_args(Order), *typing.get_args(Answer))
}


class MessageError(OSError):
    """What came is no message."""


class Channel:
    """A connection that orders and answers go through; a context manager that closes it."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a stream.

        Args:
            connected: To the other end.
        """
        self._socket = connected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when something has come, or the other end has gone."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends it; the other end notices."""
        self._socket.close()

    def poll(self, timeout_s: float) -> bool:
        """Whether something has come, or the other end has gone; waits so long for it."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def send(self, message: Order | Answer) -> None:
        """Says something.

        Raises:
            OSError: The other end has gone.
        """
        data = encode(message)
        self._socket.settimeout(_REST_S)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def recv(self) -> Any:
        """Waits for what the other end says: an order, or an answer.

        Raises:
            EOFError: It has gone.
            MessageError: That is no message.
            OSError: It went amidst one.
        """
        self._socket.settimeout(None)
        first = self._socket.recv(_LENGTH.size)
        self._socket.settimeout(_REST_S)
        [length] = _LENGTH.unpack(first + self._take(_LENGTH.size - len(first)))
        if length > _LONGEST:
            raise MessageError(f"a message of {length} bytes; expected at most {_LONGEST}")
        return decode(self._take(length))

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            part = self._socket.recv(count - len(taken))
            if not part:
                raise EOFError
            taken += part
        return bytes(taken)


def encode(message: Order | Answer) -> bytes:
    """Writes a message."""
    fields = {_KIND: type(message).__name__, **dataclasses.asdict(message)}
    return json.dumps(fields, allow_nan=False).encode()


def decode(data: bytes) -> Order | Answer:
    """Reads a message.

    Raises:
        MessageError: That is none.
    """
    try:
        value = parse_json(data, what="a message", most_bytes=_LONGEST)
        kind = _KINDS[value.pop(_KIND)]
        message: Order | Answer = _built(kind, value)
    except (ClusterError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise MessageError(f"no message: {data[:200]!r}: {error}") from error
    return message


def _built(kind: type, fields: Mapping[str, Any]) -> Any:
    """An object of a dataclass, its fields checked by their annotations."""
    if not isinstance(fields, dict):
        raise TypeError(f"{fields!r} is no {kind.__name__}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], value) for name, value in fields.items()})


def _read(hint: Any, value: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(parts[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {name: _read(parts[1], item) for name, item in value.items()}
    if origin is None and not isinstance(hint, types.GenericAlias):
        if dataclasses.is_dataclass(hint):
            return _built(hint, value)  # type: ignore[arg-type]
        if issubclass(hint, enum.Enum):
            return hint(value)
        if hint is float and type(value) is int:
            return float(value)
        if type(value) is hint:
            return value
    raise TypeError(f"{value!r} is no {hint}")
