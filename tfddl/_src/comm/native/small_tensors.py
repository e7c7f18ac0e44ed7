"""Tensors that travel within the first messages of an operation, and what becomes of them.

Between few workers each message has one worker's tensors as they are. Between many, messages have
what several workers' tensors have become, see `first_messages`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.reductions import ReduceOp, accumulator_dtype, reduce
from tfddl._src.comm.native.tree import preorder

Result = TypeVar("Result")


class SmallTensors(abc.ABC, Generic[Result]):
    """One worker's tensors of one operation, and how those of all workers are put together.

    Attributes:
        inputs: this worker's.
        num_bytes: the most that any worker has; the same on all of them.
        most_bytes: of the longest message between many workers; the same on all of them.
    """

    def __init__(self, inputs: FusionBuffer, num_bytes: int, most_bytes: int) -> None:
        self.inputs, self.num_bytes, self.most_bytes = inputs, num_bytes, most_bytes

    def row(self) -> bytes:
        """This worker's tensors as they are."""
        return self.inputs.read(0, self.inputs.length).tobytes()

    @abc.abstractmethod
    def of_rows(self, rows: Sequence[np.ndarray]) -> Result:
        """The result, from the tensors of all workers in rank order."""

    @abc.abstractmethod
    def start(self) -> bytes:
        """What `merge` takes of this worker."""

    @abc.abstractmethod
    def merge(self, first: bytes, second: bytes) -> bytes:
        """Puts together what some workers have, and what others have; along the `tree`."""

    @abc.abstractmethod
    def of_merged(self, merged: bytes) -> Result:
        """The result, from what `merge` has made of all workers'."""


class ReducedTensors(SmallTensors[np.ndarray]):
    """The result is the reduction of all workers' tensors, shape (length,)."""

    def __init__(self, inputs: FusionBuffer, reduction: ReduceOp) -> None:
        """Refers to tensors.

        Args:
            inputs: this worker's; of the same lengths everywhere.
            reduction: how to reduce.
        """
        self._reduction = reduction
        # 16-bit floats are rounded once, at the end: until then they travel in 32 bits.
        self._dtype = accumulator_dtype(inputs.dtype)
        super().__init__(inputs, inputs.num_bytes, inputs.length * self._dtype.itemsize)

    def of_rows(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        return reduce(rows, self._reduction)

    def start(self) -> bytes:
        own = self.inputs.read(0, self.inputs.length)
        return own.astype(self._dtype, copy=False).tobytes()

    def merge(self, first: bytes, second: bytes) -> bytes:
        operands = [np.frombuffer(data, self._dtype) for data in (first, second)]
        return reduce(operands, self._reduction).tobytes()

    def of_merged(self, merged: bytes) -> np.ndarray:
        return np.frombuffer(merged, self._dtype).astype(self.inputs.dtype, copy=False)


class GatheredTensors(SmallTensors[list[np.ndarray]]):
    """The result is the tensors of each worker, in rank order."""

    def __init__(
        self, inputs: FusionBuffer, rank: int, lengths: Sequence[int], num_bytes: int
    ) -> None:
        """Refers to tensors.

        Args:
            inputs: this worker's.
            rank: index of this worker.
            lengths: number of elements that is wanted of each worker, all or 0; the same
                everywhere.
            num_bytes: the most that any worker has; the same everywhere.
        """
        super().__init__(inputs, num_bytes, sum(lengths) * inputs.dtype.itemsize)
        self._is_wanted, self._lengths = bool(lengths[rank]), lengths

    def of_rows(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(rows)

    def start(self) -> bytes:
        return self.row() if self._is_wanted else b""

    def merge(self, first: bytes, second: bytes) -> bytes:
        return first + second

    def of_merged(self, merged: bytes) -> list[np.ndarray]:
        elements = np.frombuffer(merged, self.inputs.dtype)
        places = preorder(len(self._lengths))
        ends = np.cumsum([self._lengths[place] for place in places])
        rows = np.split(elements, ends[:-1])
        return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda one: one[0])]
