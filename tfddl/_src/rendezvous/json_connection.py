"""JSON objects over a connection."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from tfddl._src.cluster.parsing import parse_json
from tfddl.errors import ClusterError

ANSWER_S = 10.0
"""For the other side to take a message, or to answer: its process may be busy, or stopped."""

_LENGTH = struct.Struct("<I")
_LONGEST_MESSAGE = 2**26
"""Bytes; a thousand workers' facts are less than one million. Only workers of the job send any."""


class JsonConnection:
    """JSON objects over a connection, each after its length."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes over a connection."""
        self.connection = connection
        self._received = bytearray()
        self._is_over = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where it can't be sent, or isn't taken for long."""
        self.connection.settimeout(ANSWER_S)
        text = json.dumps(message).encode()
        self.connection.sendall(_LENGTH.pack(len(text)) + text)

    def receive(self, *, wait_s: float) -> list[dict[str, Any]] | None:
        """What has come by then, which may be nothing; None when there will be no more."""
        self.connection.settimeout(wait_s)
        try:
            data = self.connection.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        self._received += data
        messages = []
        while len(self._received) >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(self._received)
            if length > _LONGEST_MESSAGE:
                return None
            stop = _LENGTH.size + length
            if len(self._received) < stop:
                break
            text = bytes(self._received[_LENGTH.size : stop])
            del self._received[:stop]
            try:
                message = parse_json(text, what="a message", most_bytes=_LONGEST_MESSAGE)
            except ClusterError:
                return None
            if not isinstance(message, dict):
                return None
            messages.append(message)
        return messages if data else None
