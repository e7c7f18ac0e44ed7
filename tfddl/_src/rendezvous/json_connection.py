"""JSON objects over a stream socket, each after its length in 4 bytes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from tfddl._src.cluster.parsing import parse_json
from tfddl.errors import ClusterError

ANSWER_S = 10.0
"""For the other end to take a message, or to answer: its process may be busy, or stopped."""

_LENGTH = struct.Struct("<I")
# Metadata of a thousand workers is less than one million bytes. Longer messages are refused before
# they are received: without a secret, a client may be any process of this user.
_MAX_MESSAGE_BYTES = 2**26


class JsonConnection:
    """JSON objects over a connected stream socket.

    Attributes:
        socket: the socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a socket."""
        self.socket = connected
        self._received = bytearray()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends an object.

        Raises:
            OSError: the connection is closed, or the other end doesn't read for `ANSWER_S`.
        """
        # Rank 0 answers all others in one thread: a client that doesn't read delays them, but for
        # no longer than this. As a rule the kernel's buffer takes a message at once.
        self.socket.settimeout(ANSWER_S)
        text = json.dumps(message).encode()
        self.socket.sendall(_LENGTH.pack(len(text)) + text)

    def receive(self, *, wait_s: float) -> list[dict[str, Any]] | None:
        """Waits for objects.

        Args:
            wait_s: how long.

        Returns:
            Those that have arrived, in order; [] if none has; None if the connection is closed, or
            what has arrived is no JSON object.
        """
        self.socket.settimeout(wait_s)
        try:
            data = self.socket.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        self._received += data
        # A message may arrive in parts, or several at once: TCP keeps no boundaries.
        messages = []
        while len(self._received) >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(self._received)
            if length > _MAX_MESSAGE_BYTES:
                return None
            stop = _LENGTH.size + length
            if len(self._received) < stop:
                break
            text = bytes(self._received[_LENGTH.size : stop])
            del self._received[:stop]
            try:
                message = parse_json(text, what="a message", most_bytes=_MAX_MESSAGE_BYTES)
            except ClusterError:
                return None
            if not isinstance(message, dict):
                return None
            messages.append(message)
        return messages if data else None
