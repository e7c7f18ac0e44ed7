"""Sockets that carry whole messages between two workers: SOCK_SEQPACKET on a host, TCP between."""

from __future__ import annotations

import abc
import fcntl
import socket
import struct
import termios
import threading

_LENGTH = struct.Struct("<I")
_INT = struct.Struct("i")
# Bytes taken from a socket by one system call; more than the longest message has.
_RECEIVE_BYTES = 2**17

END_OF_MESSAGES = b""
"""The last message that `MessageSocket.receive` ever returns: the other worker has ended."""


class _ReceiveBuffer(threading.local):
    """Each thread's buffer, for all of its sockets: one per socket would be 130 MB of 1000."""

    def __init__(self) -> None:
        self.data = bytearray(_RECEIVE_BYTES)


_BUFFER = _ReceiveBuffer()


class MessageSocket(abc.ABC):
    """A connected, non-blocking socket. Several threads may send; one at a time may receive."""

    loss: str
    """What it means that the other end is gone, as errors say it after "rank 3"."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a socket."""
        connected.setblocking(False)
        self._socket = connected

    def fileno(self) -> int:
        """The descriptor, for `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket; the other end gets `END_OF_MESSAGES`."""
        self._socket.close()

    @abc.abstractmethod
    def offer(self, message: bytes) -> bool:
        """Takes a message for sending, if there is space for it.

        Returns:
            False if it wasn't taken. True, too, if the other end is gone: whoever waits for its
            messages notices.

        Raises:
            OSError: it can't be sent for another reason.
        """

    @abc.abstractmethod
    def flush(self) -> bool:
        """Sends the rest of messages that were taken; returns whether nothing is left."""

    @property
    def is_unacknowledged(self) -> bool:
        """Whether something was sent whose arrival the other host hasn't confirmed."""
        return False

    @abc.abstractmethod
    def receive(self) -> list[bytes]:
        """The messages that have arrived, in order; `END_OF_MESSAGES` is the last one ever."""


class SeqpacketSocket(MessageSocket):
    """A Unix socket of type SOCK_SEQPACKET: the kernel keeps messages whole and in order.

    References:
        unix(7), "SOCK_SEQPACKET": connection-oriented, preserves message boundaries.
    """

    loss = "has ended; its log says why"

    def __init__(self, connected: socket.socket, *, max_bytes: int) -> None:
        """Takes over a socket.

        Args:
            connected: the socket.
            max_bytes: length of the longest message. It must fit the receive buffer, since the
                kernel discards the rest of a message that doesn't.
        """
        super().__init__(connected)
        # Nor may it be longer than SO_SNDBUF - 32 (EMSGSIZE, unix_dgram_sendmsg in the kernel's
        # net/unix/af_unix.c): by default net.core.wmem_default, 208 KiB.
        assert max_bytes <= _RECEIVE_BYTES

    def offer(self, message: bytes) -> bool:
        try:
            self._socket.send(message)
        except BlockingIOError:  # The receiver's queue is full; nothing of it was sent.
            return False
        except ConnectionError:
            return True
        return True

    def flush(self) -> bool:
        return True

    def receive(self) -> list[bytes]:
        try:
            count = self._socket.recv_into(_BUFFER.data)
        except (BlockingIOError, ConnectionResetError):
            # A peer that ends with messages of ours unread resets the connection. Linux reports
            # that once, and then still delivers what the peer had sent, and the end.
            return []
        except OSError:
            return [END_OF_MESSAGES]
        # At the end recv gives 0 bytes, which is `END_OF_MESSAGES`: no message is empty, as each
        # has a header.
        return [bytes(memoryview(_BUFFER.data)[:count])]


class StreamSocket(MessageSocket):
    """A TCP socket, on which each message follows its length in 4 bytes."""

    loss = "has ended, or can't be reached any more; its log says which"

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a socket."""
        super().__init__(connected)
        self._unsent = bytearray()
        self._sending = threading.Lock()
        self._arrived = bytearray()

    def offer(self, message: bytes) -> bool:
        with self._sending:
            # A message is taken whole even if the system takes only a part of it, so that no
            # other thread's message gets in between. At most one waits in this way.
            if self._unsent and not self._send_rest():
                return False
            self._unsent += _LENGTH.pack(len(message)) + message
            self._send_rest()
            return True

    def flush(self) -> bool:
        with self._sending:
            return self._send_rest()

    @property
    def is_unacknowledged(self) -> bool:
        # tcp(7), SIOCOUTQ, which is TIOCOUTQ; 0 where the process at the other end reads nothing,
        # as long as its buffer has space.
        try:
            queued = fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0" * _INT.size)
        except (OSError, ValueError):  # It is closed.
            return False
        return bool(_INT.unpack(queued)[0])

    def _send_rest(self) -> bool:
        try:
            while self._unsent:
                count = self._socket.send(self._unsent)
                del self._unsent[:count]
        except BlockingIOError:
            return False
        except OSError:  # The other end is gone: whoever waits for its messages notices.
            self._unsent.clear()
        return True

    def receive(self) -> list[bytes]:
        try:
            count = self._socket.recv_into(_BUFFER.data)
        except BlockingIOError:
            return []
        except OSError:  # Reset, or keepalive probes weren't answered.
            count = 0
        if count == 0:
            return [END_OF_MESSAGES]
        self._arrived += memoryview(_BUFFER.data)[:count]
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
