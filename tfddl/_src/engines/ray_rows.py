"""Datasets of Ray Data whose rows every worker reads by their numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfddl._src.block_rows import BlockRows
from tfddl._src.engines.ray_options import import_ray
from tfddl.errors import DataError

# How long one block may take to come from another node, or to be made again by Ray.
_FETCH_S = 300.0
# Blocks that a worker keeps: those of numbers are mapped from the node's object store, where what a
# process uses can't be spilled to the disk.
_KEPT_BLOCKS = 16

Column = tuple[tuple[int, ...], np.dtype]
"""The shape of a row, and the dtype."""


class DatasetRows:
    """The rows of a dataset that `tfddl.ray.TfddlTrainer` was given, in each of its workers.

    `ray.train.get_dataset_shard` returns it, on all ranks the same. Its columns are what
    `tfddl.shard_dataset` takes as arrays, which gives each rank its own rows, and all ranks the
    same number of steps::

        rows = ray.train.get_dataset_shard("train")
        data = tfddl.shard_dataset(rows["x"], rows["y"], batch_size=32, seed=1)

    The blocks stay in Ray's object store, on one or several nodes, and are fetched when a row of
    them is read.
    """

    def __init__(
        self, name: str, refs: Sequence[Any], counts: Sequence[int], columns: Mapping[str, Column]
    ) -> None:
        self._name = name
        self._refs = tuple(refs)
        self._counts = tuple(counts)
        self._columns = dict(columns)
        self._block = functools.lru_cache(_KEPT_BLOCKS)(self._fetch)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetRows, (self._name, self._refs, self._counts, self._columns)

    def __len__(self) -> int:
        return sum(self._counts)

    def __repr__(self) -> str:
        return f"DatasetRows({self._name!r}: {len(self)} rows of {', '.join(self._columns)})"

    def __getitem__(self, column: str) -> BlockRows:
        """A column, of shape (rows, …).

        Raises:
            DataError: There is no such column; later, where a row is read: Ray has lost it.
        """
        if column not in self._columns:
            raise DataError(
                f"the dataset {self._name!r} has no column {column!r}; it has "
                f"{', '.join(map(repr, self._columns))}"
            )
        return BlockRows(
            lambda block: self._block(block)[column], self._counts, *self._columns[column]
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # What pickle, copy and others look for.
            raise AttributeError(name)
        raise AttributeError(
            f"the dataset {self._name!r} has no {name}: it isn't an iterator of Ray Data. HINT: "
            "tfddl.shard_dataset(rows[column], rows[column], batch_size=…), which uses each row "
            "once; or TfddlTrainer(dataset_config=ray.train.DataConfig()) for Ray's iterators, "
            "which leave out rows where the number of workers doesn't divide them"
        )

    def _fetch(self, block: int) -> dict[str, np.ndarray]:
        ray = import_ray()
        try:
            return _as_columns(ray.get(self._refs[block], timeout=_FETCH_S))
        except ray.exceptions.RayError as error:
            raise DataError(
                f"block {block} of the dataset {self._name!r} can't be had from Ray within "
                f"{_FETCH_S:g} s: {error}. HINT: where a node was lost, Ray makes its blocks again "
                "if CPUs are free that no worker has"
            ) from error


def read_rows(name: str, dataset: Any) -> DatasetRows:
    """Runs a `ray.data.Dataset`, or what makes one, and keeps its blocks in Ray's object store.

    Raises:
        DataError: it has no rows; blocks differ in their columns; a column can't be an array.
    """
    ray = import_ray()
    if callable(dataset):
        dataset = dataset()
    options = dataset.context.execution_options
    before = options.preserve_order
    # Rows are known by their numbers: a job that starts again must find them in the same places.
    options.preserve_order = True
    try:
        refs = dataset.to_numpy_refs()
    finally:
        options.preserve_order = before
    describe = ray.remote(num_cpus=0)(_describe)
    found = ray.get([describe.remote(ref) for ref in refs])
    return DatasetRows(name, refs, [count for count, _ in found], _one_table(name, found))


def _as_columns(block: Any) -> dict[str, np.ndarray]:
    return block if isinstance(block, dict) else {"data": block}


def _describe(block: Any) -> tuple[int, dict[str, Column | str]]:
    """The rows of a block, and its columns; of one that is no array, what it holds instead."""
    columns: dict[str, Column | str] = {}
    count = 0
    for name, values in _as_columns(block).items():
        count = len(values)
        kinds = {type(value) for value in values} if values.dtype == object else set()
        wrong = sorted(kind.__name__ for kind in kinds - {str, bytes})
        columns[name] = ", ".join(wrong) or (values.shape[1:], values.dtype)
    return count, columns


def _one_table(
    name: str, found: Sequence[tuple[int, Mapping[str, Column | str]]]
) -> dict[str, Column]:
    """The columns that all blocks with rows have."""
    filled = [(block, columns) for block, (count, columns) in enumerate(found) if count]
    if not filled:
        raise DataError(f"the dataset {name!r} has no rows; expected at least one")
    table: dict[str, Column] = {}
    for column, kind in filled[0][1].items():
        for block, columns in filled:
            other = columns.get(column, "nothing")
            if isinstance(other, str):
                raise DataError(
                    f"column {column!r} of the dataset {name!r} has {other} in block {block}; "
                    "expected numbers, strings, or arrays of one shape. HINT: map_batches that "
                    "makes them, or drop_columns"
                )
            if other != kind:
                raise DataError(
                    f"column {column!r} of the dataset {name!r} has rows of shape and dtype {kind} "
                    f"in block {filled[0][0]}, and {other} in block {block}; expected the same in "
                    "all. HINT: map_batches that makes them alike"
                )
            table[column] = other
    return table
