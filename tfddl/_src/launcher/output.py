"""The workers' output on the console: whole lines with their rank; rank 0's progress bar intact."""

from __future__ import annotations

import codecs
import enum
import errno
import os
import re
import select
from collections.abc import Callable, Sequence

from tfddl._src.launcher.signals import Signals

_TOKENS = re.compile(r"[^\n\r\x08]+|\n|\r|\x08+")
_ESCAPES = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z])")
# To the first column; then erases to the end of the line (ECMA-48, EL).
_ERASE_LINE = "\r\x1b[K"
# Of the prefixes, by rank: cyan, yellow, green, magenta, blue, and their bright variants.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
# A program that never ends its line must not fill our memory: then it is cut here.
_LONGEST_LINE = 1 << 20
# Characters, escapes among them.
_WIDEST = 1 << 13
_POLL_MS = 200
_LONGEST_PAUSE_S = 600.0


class Stream(enum.Enum):
    """One of the two outputs of a worker, and where it is shown."""

    STDOUT = 1
    STDERR = 2


class LineAssembler:
    r"""Turns a stream of bytes into whole lines, of which "\r" and "\b" rewrite the last.

    Bytes that are not UTF-8 pass through unharmed (as surrogates).
    """

    def __init__(self, *, progress_s: float | None) -> None:
        """Begins with an empty line.

        Args:
            progress_s: a line that is rewritten in place is also given out in between, first after
                so many seconds, then after twice as many, and so on up to 600 s. None: only when
                it is finished.
        """
        # One by one: a string would be copied, all of it, whenever its end is rewritten.
        self._line: list[str] = []
        self._progress_s = self._pause_s = progress_s
        self._shown_s: float | None = None
        self._backspaces = 0
        self._returned = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, data: bytes, *, now_s: float) -> list[str]:
        """Takes what was read, and gives out the lines that it finished."""
        lines: list[str] = []
        for token in _TOKENS.findall(self._decoder.decode(data)):
            if token == "\n":
                lines.append(self._take())
            elif token == "\r":
                self._returned = True
            elif token[0] == "\b":
                self._backspaces += len(token)
            else:
                lines += self._rewind(now_s)
                self._line.extend(token)
                if len(self._line) > _LONGEST_LINE:
                    lines.append(self._take())
        return lines

    def pending(self) -> str:
        """What the unfinished last line shows now, as far as any terminal is wide."""
        return "".join(self._line[:_WIDEST])

    def finish(self) -> list[str]:
        """Gives out what is left at the end of the stream."""
        self._line.extend(self._decoder.decode(b"", final=True))
        return [self._take()] if self._line else []

    def _take(self) -> str:
        line = "".join(self._line)
        self._line.clear()
        self._returned, self._backspaces = False, 0
        self._shown_s, self._pause_s = None, self._progress_s
        return line

    def _rewind(self, now_s: float) -> list[str]:
        """Moves the cursor back, as new text is about to be written over the old."""
        returned, backspaces = self._returned, self._backspaces
        self._returned, self._backspaces = False, 0
        if not returned:
            if backspaces:
                del self._line[-backspaces:]
            return []
        shown = self._is_due(now_s) if self._line else False
        old = ["".join(self._line)] if shown else []
        self._line.clear()
        return old

    def _is_due(self, now_s: float) -> bool:
        """Whether it is time to give out a line that is rewritten."""
        if self._pause_s is None:
            return False
        if self._shown_s is None:
            self._shown_s = now_s
        if now_s - self._shown_s < self._pause_s:
            return False
        self._shown_s, self._pause_s = now_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True


class Console:
    """Writes lines with their rank; on a terminal the unfinished line of rank 0 stays the last.

    Where there is no terminal, colours are left out.
    A write waits for a slow reader, but not once a signal has come that ends the job. What a full
    disk doesn't take is dropped: a job that has trained for days isn't ended for its log.

    Attributes:
        broken: why nobody can read any more what is written, or None.
        while_waiting: called several times a second as long as a slow reader is waited for.
    """

    def __init__(
        self,
        signals: Signals,
        *,
        stdout_fd: int = 1,
        stderr_fd: int = 2,
        has_colours: bool = True,
    ) -> None:
        self.broken: OSError | None = None
        self.while_waiting: Callable[[], None] | None = None
        self._has_colours = has_colours
        self._signals = signals
        self._fds = {Stream.STDOUT: stdout_fd, Stream.STDERR: stderr_fd}
        self._terminals = {stream: os.isatty(fd) for stream, fd in self._fds.items()}
        self._given_up = False
        self._has_lost = False
        # Where the last line isn't finished; of these, where it never will be: the disk was full.
        self._unfinished: set[Stream] = set()
        self._cut: set[Stream] = set()
        self._live = ""
        self._live_owner: Stream | None = None

    def shows_live(self, rank: int, stream: Stream) -> bool:
        """Whether the unfinished line of this stream is shown as it grows."""
        return rank == 0 and self._terminals[stream]

    def show(self, rank: int, stream: Stream, *, lines: Sequence[str], pending: str) -> None:
        """Shows what came from one stream of one worker.

        Args:
            rank: whose stream.
            stream: which stream.
            lines: the finished lines, without their ends.
            pending: the unfinished line after them.
        """
        name = self._name(rank)
        text = "".join(f"{name} {line}\n" for line in lines)
        if not self.shows_live(rank, stream):
            self._write(stream, text)
            return
        live = self._fit(f"{name} {pending}", stream) if pending else ""
        if live or self._live_owner is stream:
            erase = _ERASE_LINE if self._live else ""
            self._live, self._live_owner = live, stream if live else None
            self._put(stream, erase + text + live)
        else:
            self._write(stream, text)

    def say(self, text: str) -> None:
        """Writes lines of tfddlrun's own to stderr."""
        self._write(Stream.STDERR, "".join(f"tfddlrun: {line}\n" for line in text.splitlines()))

    def report_loss(self, what: str, error: OSError) -> None:
        """Says, the first time, that output is lost.

        Args:
            what: where it was to be written.
            error: why that failed.
        """
        if not self._has_lost:
            self._has_lost = True  # before: stderr may be what is full
            self.say(
                f"can't write {what}: {error.strerror}. Output of workers that can't be written "
                "is dropped, and the job goes on"
            )

    def _name(self, rank: int) -> str:
        """The rank in its colour, which `_put` takes out where there is no terminal."""
        if not self._has_colours:
            return f"[{rank}]"
        return f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m[{rank}]\x1b[0m"

    def _write(self, stream: Stream, text: str) -> None:
        if text and self._live and self._terminals[stream]:
            text = _ERASE_LINE + text + self._live
        self._put(stream, text)

    def _fit(self, text: str, stream: Stream) -> str:
        """Cuts to the width of the terminal: a line that wraps can't be erased any more."""
        try:
            columns = os.get_terminal_size(self._fds[stream]).columns - 1
        except OSError:
            return text
        if columns <= 0:
            return text
        pieces = []
        for piece in _ESCAPES.split(text):
            is_escape = piece.startswith("\x1b[")
            pieces.append(piece if is_escape else piece[:columns])
            columns -= 0 if is_escape else len(pieces[-1])
        return "".join(pieces)

    def _put(self, stream: Stream, text: str) -> None:
        if not self._terminals[stream]:
            text = _ESCAPES.sub("", text)
        if text and stream in self._cut:
            text = f"\n{text}"
        data = memoryview(text.encode("utf-8", "surrogateescape"))
        fd = self._fds[stream]
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.register(self._signals.fileno(), select.POLLIN)
        while data and self.broken is None:
            ready = [number for number, _ in poll.poll(0 if self._given_up else _POLL_MS)]
            if self._signals.fileno() in ready:
                self._signals.read()
            if fd in ready:
                # What fits a pipe that polls as writable: the write doesn't block.
                written = self._write_some(stream, data[: select.PIPE_BUF])
                if written is None:
                    return
                data = data[written:]
            elif self._signals.have_ended_job:
                self._given_up = True
                return
            elif self.while_waiting is not None:
                self.while_waiting()

    def _write_some(self, stream: Stream, data: memoryview) -> int | None:
        """Writes what can be written; None where what is left has to be dropped."""
        try:
            written = os.write(self._fds[stream], data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # EIO of a terminal: it was closed.
            if error.errno == errno.EPIPE or self._terminals[stream]:
                self.broken = error
                return 0
            self._cut |= self._unfinished & {stream}
            self.report_loss(f"to {stream.name.lower()}", error)
            return None
        if written:
            self._cut.discard(stream)
            self._unfinished.add(stream)
            if data[written - 1] == ord("\n"):
                self._unfinished.discard(stream)
        return written
