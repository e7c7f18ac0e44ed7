"""Arrays that all workers of a host show to each other in shared memory.

Some arrays are too large for a message, but so small that every worker has read those of all others
sooner than it has agreed with them on output memory, and on who reduces which part. They are
*posted*: each worker writes its own to a slot of its memory, and all tell each other in one small
all-gather where that is.

A slot is written again once all who read it have said so, with a later post. So it doesn't matter
in which order threads of the workers come to their operations; where no slot is free, there is one
more.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES, OpSignature
from tfddl._src.comm.native.shm import SharedMemory
from tfddl.errors import CommunicationError, DisagreementError

_TOTAL_BYTES = 2**22
"""Of all workers' arrays together, which each worker reads: with more it would take longer than the
messages that it saves."""

_MIN_SLOT_BYTES = 2**16

SLOTS_PER_WORKER = 2
"""How many slots take turns where one operation comes after the other. Each worker has mapped those
of all, and each mapping has a descriptor (Python's mmap keeps a copy)."""

_PLACE_WORDS = 3
"""Number, offset, size."""

_TOLD = 2
"""How many posts of each other worker a post says to be read: more than there are new ones, so that
those are told, too, that couldn't be at first."""


def max_posted_bytes(size: int) -> int:
    """How large arrays of one worker may be that so many workers show each other; 0 for none."""
    # Where they are has to fit into a message, when it is gathered along the tree.
    gathered = size * (_PLACE_WORDS + _TOLD * size) * np.dtype(np.int64).itemsize
    return _TOTAL_BYTES // size if gathered <= MAX_PAYLOAD_BYTES else 0


class SizedSignature(OpSignature):
    """A signature with the size of what is posted: it has to be alike on all workers, too."""

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(cls, signature: OpSignature, num_bytes: int) -> SizedSignature:
        """Made once for an operation that is repeated, as its digest takes long."""
        return cls(signature.name, f"{signature.text}\n{num_bytes} bytes")

    def __str__(self) -> str:
        return str(OpSignature(self.name, self.text.rpartition("\n")[0]))


@dataclass
class _Slot:
    offset: int
    memory: np.ndarray


@dataclass
class _Post:
    """What is in a slot until all have read it."""

    slot: _Slot
    told: list[list[int]]
    """By worker: which of its posts this one says to have read."""

    readers: set[int] | None = None
    """Who reads it, as indices of workers; None until that is known."""

    read_by: set[int] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        return self.readers is not None and self.readers <= self.read_by


class PostedArrays:
    """The posts of some workers of a host. Thread-safe.

    Attributes:
        max_bytes: of one worker's arrays.
    """

    def __init__(self, size: int, rank: int, memory: SharedMemory) -> None:
        """Has no slots yet.

        Args:
            size: number of workers.
            rank: index of this worker among them.
            memory: this worker's, in the file of all.
        """
        self.max_bytes = max_posted_bytes(size)
        self._rank, self._memory = rank, memory
        self._lock = threading.Lock()
        self._free: list[_Slot] = []
        self._posts: dict[int, _Post] = {}
        self._number = 0
        self._unsaid: list[list[int]] = [[] for _ in range(size)]
        """By worker: the numbers of its posts that this one has read, and not told yet."""
        self._mapped: dict[int, np.ndarray] = {}

    @contextmanager
    def posted(self, inputs: FusionBuffer) -> Iterator[np.ndarray]:
        """Writes this worker's arrays to a slot, scaled.

        Yields:
            What `read` needs of this worker: int64, of one length on all workers, its first number
            above 0. If the body raises a `DisagreementError`, no worker reads the post.
        """
        try:
            slot = self._take_slot(inputs.num_bytes)
        except OSError as error:  # Told to all workers, so that all of them raise.
            slot = _Slot(error.errno or errno.ENOMEM, np.empty(0, np.uint8))
        else:
            inputs.copy_to(range(inputs.length), slot.memory[: inputs.num_bytes].view(inputs.dtype))
        with self._lock:
            self._number += 1
            number = self._number
            post = self._posts[number] = _Post(slot, [unsaid[:_TOLD] for unsaid in self._unsaid])
            self._unsaid = [unsaid[_TOLD:] for unsaid in self._unsaid]
        words = [number, slot.offset, slot.memory.nbytes]
        for told in post.told:
            words += told + [0] * (_TOLD - len(told))
        try:
            yield np.array(words, np.int64)
        except DisagreementError:
            # All raise it. After any other error others may read the post later: it stays.
            with self._lock:
                self._note_readers(post, [])
            raise
        finally:
            with self._lock:
                for over in [n for n, one in self._posts.items() if one.is_over]:
                    slot = self._posts.pop(over).slot
                    self._free += [slot] if slot.memory.nbytes else []

    def check_memory(self, gathered: np.ndarray, inputs: FusionBuffer) -> None:
        """Checks that all workers had memory for what they post; comes before `read`.

        Args:
            gathered: as of `read`.
            inputs: as of `read`.

        Raises:
            CommunicationError: one hadn't; on all workers, and none reads anything, so that the
                next operation works.
        """
        places = gathered[:, :_PLACE_WORDS].tolist()
        for number, offset, size in places:
            if number and not size:
                with self._lock:
                    self._note_readers(self._posts[places[self._rank][0]], [])
                raise CommunicationError(
                    f"the host has no memory for arrays of {inputs.num_bytes} bytes: "
                    f"{os.strerror(offset)}. HINT: fewer workers on this host, or a larger limit "
                    "of its container"
                )

    @contextmanager
    def read(self, gathered: np.ndarray, inputs: FusionBuffer) -> Iterator[list[np.ndarray]]:
        """What all workers have posted.

        Args:
            gathered: what `posted` has yielded on each worker, in their order; zeros of a worker
                that takes no part.
            inputs: what was posted here; of the same dtype and length on all workers.

        Yields:
            The arrays of each worker as one, in their order, not to be written to, and only within
            the body; zeros of a worker that takes no part.
        """
        places = gathered[:, :_PLACE_WORDS].tolist()
        told = gathered[:, _PLACE_WORDS:].reshape(len(places), len(places), _TOLD)
        others = [i for i, (number, *_) in enumerate(places) if number and i != self._rank]
        with self._lock:
            own = self._posts[places[self._rank][0]]
            memory = {i: self._map(*places[i][1:]) for i in others}
            memory[self._rank] = own.slot.memory
            for i in others:
                for number in told[i, self._rank].tolist():
                    if number:
                        self._posts[number].read_by.add(i)
            # This worker, too: the others may say that they have read it before it has itself.
            self._note_readers(own, [*others, self._rank])
        absent = None if len(memory) == len(places) else np.zeros(inputs.num_bytes, np.uint8)
        rows = [memory.get(i, absent) for i in range(len(places))]
        yield [row[: inputs.num_bytes].view(inputs.dtype) for row in rows if row is not None]
        with self._lock:
            own.read_by.add(self._rank)
            for i in others:
                self._unsaid[i].append(places[i][0])

    def _note_readers(self, post: _Post, readers: Sequence[int]) -> None:
        """The others haven't heard what it was to tell them: the next one does."""
        post.readers = set(readers)
        for i, unsaid in enumerate(self._unsaid):
            if i not in post.readers:
                self._unsaid[i] = post.told[i] + unsaid

    def _take_slot(self, num_bytes: int) -> _Slot:
        with self._lock:
            fitting = [slot for slot in self._free if slot.memory.nbytes >= num_bytes]
            if fitting:
                slot = min(fitting, key=lambda slot: slot.memory.nbytes)
                self._free.remove(slot)
                return slot
        size = max(_MIN_SLOT_BYTES, 1 << (num_bytes - 1).bit_length())
        return _Slot(*self._memory.allocate(size))

    def _map(self, offset: int, size: int) -> np.ndarray:
        if offset not in self._mapped:
            self._mapped[offset] = self._memory.file.map_shared(offset, size)
        return self._mapped[offset]
