"""Frames between tfddlrun and the agents of other hosts: a message, and some bytes.

A frame is two lengths (32 bits each, the higher bytes first), a JSON object, and bytes that are
passed on as they are. Text that isn't UTF-8 (arguments, paths) travels as surrogates, which JSON
writes as escapes.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HELLO = b"\0tfddl agent 1\n"
"""The first bytes of an agent: what comes before is output of a shell's start-up files."""

_LENGTHS = struct.Struct(">II")
# Far more than any message; commits travel in pieces of 4 MiB.
_LONGEST = 1 << 26

Message = dict[str, Any]


class FrameError(ValueError):
    """Bytes that are no frame."""


def pack(message: Message, data: bytes = b"") -> bytes:
    """The bytes of a frame: lengths, the message as JSON, the data."""
    text = json.dumps(message).encode("ascii")
    return _LENGTHS.pack(len(text), len(data)) + text + data


class Unpacker:
    """Takes bytes as they come, and gives out the frames that are whole.

    Attributes:
        preamble: what came before the hello, at most so much of it as a message can show; None
            once the hello has come.
    """

    def __init__(self, *, greeted: bool = True) -> None:
        """Begins with nothing.

        Args:
            greeted: whether frames come at once; otherwise the hello comes first.
        """
        self.preamble: bytes | None = None if greeted else b""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Message, bytes]]:
        """Takes what was read, and gives out the frames that it finished.

        Raises:
            FrameError: this is no stream of frames.
        """
        self._buffer += data
        if self.preamble is not None and not self._greet():
            return []
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def _greet(self) -> bool:
        before, hello, rest = bytes(self._buffer).partition(HELLO)
        if not hello:
            if len(self._buffer) > _LONGEST:
                raise FrameError(f"{_LONGEST} bytes of other output instead of an agent's greeting")
            self.preamble = before
            return False
        self.preamble, self._buffer = None, bytearray(rest)
        return True

    def _take(self) -> tuple[Message, bytes] | None:
        if len(self._buffer) < _LENGTHS.size:
            return None
        text_length, data_length = _LENGTHS.unpack_from(self._buffer)
        end = _LENGTHS.size + text_length + data_length
        # Checked before it is waited for: the bytes may be a shell's, not an agent's.
        if end > _LONGEST:
            raise FrameError(f"a frame of {end} bytes; it must be at most {_LONGEST}")
        if len(self._buffer) < end:
            return None
        text = bytes(self._buffer[_LENGTHS.size : _LENGTHS.size + text_length])
        data = bytes(self._buffer[_LENGTHS.size + text_length : end])
        del self._buffer[:end]
        try:
            message = json.loads(text)
        except ValueError as error:
            raise FrameError(f"no message: {text[:80]!r}") from error
        if not isinstance(message, dict):
            raise FrameError(f"no message: {text[:80]!r}")
        return message, data
