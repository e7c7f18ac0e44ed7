"""Sockets that carry whole messages: Unix's keep them whole, on TCP's a length goes before each."""

from __future__ import annotations

import abc
import socket
import struct
import threading

_LENGTH = struct.Struct("<I")
_ROOM = 2**17
"""Bytes that are taken from a socket at once; more than a message has."""

END_OF_MESSAGES = b""
"""What comes last from a worker that has ended."""


class _Reading(threading.local):
    """Where each thread receives, for all of its links: one buffer each would be 130 MB of 1000."""

    def __init__(self) -> None:
        self.buffer = bytearray(_ROOM)


_READING = _Reading()


class MessageSocket(abc.ABC):
    """A connected socket to another worker. Several threads may send, one at a time receives."""

    loss: str
    """What it means that nothing more comes, for people."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a socket."""
        connected.setblocking(False)
        self._socket = connected

    def fileno(self) -> int:
        """Of the socket; to wait for it."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket; the other one notices."""
        self._socket.close()

    @abc.abstractmethod
    def offer(self, message: bytes) -> bool:
        """Sends a message, if there is room for it.

        Returns:
            Whether there was; or nobody any more who would read it.

        Raises:
            OSError: it can't be sent, for another reason.
        """

    @abc.abstractmethod
    def flush(self) -> bool:
        """Sends what is left of messages that have been taken; returns whether all has gone."""

    @abc.abstractmethod
    def receive(self) -> list[bytes]:
        """The messages that have arrived; `END_OF_MESSAGES` is the last there will ever be."""


class SeqpacketSocket(MessageSocket):
    """A Unix socket, SOCK_SEQPACKET: a message goes whole or not at all."""

    loss = "has ended; its log says why"

    def __init__(self, connected: socket.socket, *, longest: int) -> None:
        """Takes over a socket.

        Args:
            connected: it.
            longest: bytes of the longest message.
        """
        super().__init__(connected)
        assert longest <= _ROOM

    def offer(self, message: bytes) -> bool:
        """See `MessageSocket.offer`."""
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return True

    def flush(self) -> bool:
        """See `MessageSocket.flush`."""
        return True

    def receive(self) -> list[bytes]:
        """See `MessageSocket.receive`."""
        try:
            count = self._socket.recv_into(_READING.buffer)
        except (BlockingIOError, ConnectionResetError):
            # Reset: it has ended without reading all of ours. What it said comes next, then an end.
            return []
        except OSError:
            return [END_OF_MESSAGES]
        return [bytes(memoryview(_READING.buffer)[:count])]


class StreamSocket(MessageSocket):
    """A TCP socket, on which each message follows its length."""

    loss = "has ended, or can't be reached any more; its log says which"

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a socket."""
        super().__init__(connected)
        self._unsent = bytearray()
        self._sending = threading.Lock()
        self._arrived = bytearray()

    def offer(self, message: bytes) -> bool:
        """See `MessageSocket.offer`."""
        with self._sending:
            if self._unsent and not self._send_rest():
                return False
            self._unsent += _LENGTH.pack(len(message)) + message
            self._send_rest()
            return True

    def flush(self) -> bool:
        """See `MessageSocket.flush`."""
        with self._sending:
            return self._send_rest()

    def _send_rest(self) -> bool:
        try:
            while self._unsent:
                count = self._socket.send(self._unsent)
                del self._unsent[:count]
        except BlockingIOError:
            return False
        except OSError:  # It has ended, or can't be reached: who waits for it notices.
            self._unsent.clear()
        return True

    def receive(self) -> list[bytes]:
        """See `MessageSocket.receive`."""
        try:
            count = self._socket.recv_into(_READING.buffer)
        except BlockingIOError:
            return []
        except OSError:  # Reset, or no sign of life for too long.
            count = 0
        if count == 0:
            return [END_OF_MESSAGES]
        self._arrived += memoryview(_READING.buffer)[:count]
        return self._take_whole()

    def _take_whole(self) -> list[bytes]:
        messages = []
        start = 0
        while len(self._arrived) - start >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(self._arrived, start)
            stop = start + _LENGTH.size + length
            if len(self._arrived) < stop:
                break
            messages.append(bytes(self._arrived[start + _LENGTH.size : stop]))
            start = stop
        del self._arrived[:start]
        return messages
