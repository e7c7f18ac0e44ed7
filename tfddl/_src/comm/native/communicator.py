"""Collective operations.

Every operation begins with a word of each worker to each other: what it is about to do, and, if it
is little, the numbers themselves. So the workers compare before anything is moved, and pay nothing
extra for it: where they differ, each of them raises, and the next operation works.

What is larger is moved by a `Carrier`: through memory that the workers of a host share
(`segments`), or by streams between hosts (`streams`).

What little travels within the messages is added up by everyone, in the order of ranks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.diagnostics import describe_difference
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.messages import (
    MAX_PAYLOAD_BYTES,
    Message,
    OpSignature,
    Tag,
    stable_hash,
)
from tfddl._src.comm.native.operation import Operation, Sequencer
from tfddl._src.comm.native.reductions import ReduceOp, reduce, reduced
from tfddl._src.comm.native.shm import BufferPool, aligned_size
from tfddl.errors import (
    CommunicationError,
    DeadlockError,
    DisagreementError,
    PeerLostError,
    StalledError,
)

_HELLO, _TURN, _TEXT = 0, 2**32 - 2, 2**32 - 1


class Communicator:
    """Collective operations of some workers; each of them makes one alike.

    Every method must be called by all of these workers, with a `OpSignature` that is alike. Several
    threads may be in different calls at once, in any order; calls of one name meet in their order.

    All raise `DisagreementError` where calls or lengths differ (on every worker, and the next
    operation works), `PeerLostError`, `StalledError` and `DeadlockError`. After these, or
    anything else that has ended an operation in the middle, all that follow raise at once.
    """

    def __init__(self, network: Network, ranks: Sequence[int]) -> None:
        """Sits down with some workers; nothing is sent yet.

        Args:
            network: connects them.
            ranks: who takes part, ascending, this worker among them.
        """
        mesh = network.mesh
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(mesh.rank)
        self.size = len(self.ranks)
        self._mesh = mesh
        self._carrier = network.carrier(self.ranks)
        self.counters = self._carrier.counters
        self._others = [rank for rank in self.ranks if rank != mesh.rank]
        self._key = ",".join(map(str, self.ranks))
        self._occurrences: dict[str, int] = {}
        self._lock = threading.Lock()
        self._turns = Sequencer()
        self._next_turn = 0
        self._buffers = BufferPool()
        self._failure: BaseException | None = None

    def all_reduce(
        self,
        arrays: Sequence[np.ndarray],
        reduction: ReduceOp,
        call: OpSignature,
        *,
        scale: float | None = None,
    ) -> list[np.ndarray]:
        """Reduces elementwise.

        Args:
            arrays: flat, contiguous, of one dtype; the same lengths everywhere.
            reduction: how. Floats of 16 bits are reduced in 32, and rounded once.
            call: what it is.
            scale: what this worker's floats are multiplied with before; 0 makes zeros of anything.

        Returns:
            Arrays of the same lengths, bit for bit the same everywhere.
        """
        mine = FusionBuffer(arrays, scale=scale)
        self.counters.reduced += mine.num_bytes
        with self._begun(call, mine, results=mine.lengths) as session:
            results = FusionBuffer(session.results)
            if session.is_inline:
                results.put(0, reduced(session.rows(mine, self.ranks), reduction))
                self.counters.written += mine.num_bytes
            else:
                self._carrier.reduce(session, mine, results, reduction)
        return session.given

    def all_gather(self, array: np.ndarray, call: OpSignature) -> np.ndarray:
        """Collects equal lengths: a row of each worker, in rank order."""
        mine = FusionBuffer([array])
        with self._begun(call, mine, results=[self.size * mine.length]) as session:
            rows = session.results[0].reshape(self.size, mine.length)
            if session.is_inline:
                rows[:] = session.rows(mine, self.ranks)
            else:
                self._carrier.gather(session, array, rows)
        return session.given[0].reshape(self.size, mine.length)

    def broadcast(
        self, arrays: Sequence[np.ndarray], root: int, call: OpSignature
    ) -> list[np.ndarray]:
        """Gives everyone the arrays of one.

        Args:
            arrays: flat, of one dtype, the same lengths everywhere; only the root's values matter.
            root: whose, a number among these workers.
            call: what it is.

        Returns:
            The root's.
        """
        mine = FusionBuffer(arrays)
        with self._begun(call, mine, results=mine.lengths) as session:
            results = FusionBuffer(session.results)
            if session.is_inline:
                results.put(0, session.rows(mine, self.ranks)[root])
            else:
                self._carrier.broadcast(session, mine, results, root)
        return session.given

    def reduce_scatter(
        self, array: np.ndarray, lengths: Sequence[int], reduction: ReduceOp, call: OpSignature
    ) -> np.ndarray:
        """Reduces elementwise; each worker gets a part of its own.

        Args:
            array: flat, the same length everywhere.
            lengths: how many elements each worker gets; their sum is the array's length.
            reduction: how.
            call: what it is.

        Returns:
            This worker's part of the result.
        """
        mine = FusionBuffer([array])
        [result] = self._buffers.take(mine.dtype, [lengths[self.rank]])
        self.counters.reduced += mine.num_bytes
        self.counters.written += mine.num_bytes + result.nbytes
        with self._begun(call, mine) as session:
            if session.is_inline:
                start = sum(lengths[: self.rank])
                rows = session.rows(mine, self.ranks)
                reduce([row[start : start + len(result)] for row in rows], reduction, result)
                return result

            def take(at: int, shown: list[np.ndarray]) -> None:
                wanted = result[at : at + len(shown[0])]
                reduce([piece[: len(wanted)] for piece in shown], reduction, wanted)

            parts = np.split(array, np.cumsum(lengths)[:-1])
            expected = [len(result)] * self.size
            self._carrier.swap(session, parts, expected, max(lengths), take)
        return result

    def all_to_all(
        self, parts: Sequence[np.ndarray], lengths: np.ndarray, call: OpSignature
    ) -> np.ndarray:
        """Gives each worker a part of its own from each worker.

        Args:
            parts: this worker's, one for each, flat, of one dtype.
            lengths: row i, column j: how many elements worker i has for worker j.
            call: what it is.

        Returns:
            What each worker had for this one, one behind the other in rank order.
        """
        mine = FusionBuffer(parts)
        expected = lengths[:, self.rank].tolist()
        [joined] = self._buffers.take(mine.dtype, [sum(expected)])
        results = np.split(joined, np.cumsum(expected)[:-1])
        # The most that anyone has: all must decide alike how it travels.
        num_bytes = int(lengths.sum(axis=1).max()) * mine.dtype.itemsize
        with self._begun(call, mine, num_bytes=num_bytes) as session:
            if session.is_inline:
                starts = lengths[:, : self.rank].sum(axis=1).tolist()
                for result, row, start in zip(
                    results, session.rows(mine, self.ranks), starts, strict=True
                ):
                    result[:] = row[start : start + len(result)]
                return joined

            def take(at: int, shown: list[np.ndarray]) -> None:
                for result, piece in zip(results, shown, strict=True):
                    wanted = result[at : at + len(piece)]
                    wanted[:] = piece[: len(wanted)]

            self._carrier.swap(session, parts, expected, int(lengths.max()), take)
        return joined

    @contextlib.contextmanager
    def _begun(
        self,
        call: OpSignature,
        mine: FusionBuffer,
        *,
        num_bytes: int | None = None,
        results: Sequence[int] = (),
    ) -> Iterator[Operation]:
        """Meets the others, compares, and waits for its turn if something large is to be moved.

        Args:
            call: has to be alike everywhere.
            mine: goes along if it is small.
            num_bytes: has to be alike everywhere; that of ``mine`` by default.
            results: lengths of the arrays that come out alike everywhere.
        """
        self._mesh.raise_if_aborted()
        self._refuse_after_failure()
        num_bytes = mine.num_bytes if num_bytes is None else num_bytes
        try:
            # A warning that somebody has made an error would end one worker, and leave the others.
            with np.errstate(all="ignore"), self._met(call, mine, num_bytes, results) as session:
                yield session
        except DisagreementError:
            raise
        except BaseException as error:
            self._failure = error
            self._turns.wake()
            raise

    @contextlib.contextmanager
    def _met(
        self, call: OpSignature, mine: FusionBuffer, num_bytes: int, results: Sequence[int]
    ) -> Iterator[Operation]:
        is_inline = num_bytes <= MAX_PAYLOAD_BYTES
        if is_inline:
            payload = mine.take(0, mine.length).tobytes()
        else:
            payload = self._carrier.offer(self._turns.ended)
        tag = self._tag(call.name)
        self._mesh.send(self._others, tag, Message(call.digest, num_bytes, payload))
        heard = self._mesh.collect(tag, self._others, call)
        others = list(heard.values())
        if any(m.digest != call.digest or m.number != num_bytes for m in others):
            # Where the calls are alike, only the sizes can tell the difference.
            same = all(m.digest == call.digest for m in others)
            self._disagree(tag, call, num_bytes if same else None)
        session = Operation(call, tag, heard, self._exchange)
        if is_inline:
            session.results = [np.empty(length, mine.dtype) for length in results]
            session.given = session.results
            yield session
            return
        offers = [payload, *(message.payload for message in others)]
        turn, assigned = self._turn_of(session, aligned_size(mine.dtype, results), offers)
        with self._turns.wait_for(turn, unless=lambda: self._failure is not None):
            self._refuse_after_failure()
            if results:
                room = self._carrier.room(assigned, mine.dtype, results)
                session.results, session.given = room.written, room.given
            yield session

    def _refuse_after_failure(self) -> None:
        """Once an operation has failed in the middle, nobody knows how far the others have come."""
        failure = self._failure
        if failure is None:
            return
        known = (PeerLostError, DeadlockError, StalledError)
        kind = next((kind for kind in known if isinstance(failure, kind)), CommunicationError)
        raise kind(
            "these workers can't go on together, since an operation before has failed in the "
            f"middle: {str(failure) or type(failure).__name__}"
        )

    def _exchange(self, tag: Tag, number: int, call: OpSignature) -> dict[int, Message]:
        """Tells all others a number, and waits for theirs."""
        self._mesh.send(self._others, tag, Message(0, number, b""))
        return self._mesh.collect(tag, self._others, call)

    def _tag(self, name: str) -> Tag:
        with self._lock:
            occurrence = self._occurrences.get(name, 0)
            self._occurrences[name] = occurrence + 1
        return Tag(stable_hash(f"{self._key} {name}"), occurrence % 2**32, _HELLO)

    def _turn_of(self, session: Operation, room: int, offers: Sequence[bytes]) -> tuple[int, bytes]:
        """Large calls come one after the other; the first of the workers says in which order.

        Args:
            session: the call.
            room: bytes for results.
            offers: what each worker's `Carrier` has offered.

        Returns:
            The call's number, and what `Carrier.room` wants.
        """
        tag = session.tag._replace(step=_TURN)
        if self.rank == 0:
            with self._lock:
                turn = self._next_turn
                self._next_turn += 1
                assigned = self._carrier.assign(room, turn, offers) if room else b""
            self._mesh.send(self._others, tag, Message(0, turn, assigned))
            return turn, assigned
        first = self.ranks[0]
        message = self._mesh.collect(tag, [first], session.call)[first]
        return message.number, message.payload

    def _disagree(self, tag: Tag, call: OpSignature, num_bytes: int | None) -> NoReturn:
        """Tells what each worker is about to do; all of them have noticed."""
        tag = tag._replace(step=_TEXT)
        told = call.text if num_bytes is None else f"{call.text}\n{num_bytes} bytes"
        text = told.encode()[:MAX_PAYLOAD_BYTES]
        self._mesh.send(self._others, tag, Message(0, 0, text))
        heard = self._mesh.collect(tag, self._others, call)
        heard[self._mesh.rank] = Message(0, 0, text)
        raise DisagreementError(
            describe_difference(
                {
                    self._mesh.names[rank]: heard[rank].payload.decode(errors="replace")
                    for rank in self.ranks
                }
            )
        )
