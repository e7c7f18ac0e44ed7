"""Decodes and scales a data set once, into .npy files that training reads rows of."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tfddl._src.parallel_map import map_in_order
from tfddl.errors import DataError
from tfddl.segmentation.config import PrepareConfig
from tfddl.segmentation.examples import Example, Examples, FileExamples, require_usable
from tfddl.segmentation.layout import IMAGES_NPY, MASKS_NPY, NAMES_JSON, Arrays, find_dataset
from tfddl.segmentation.progress_bar import ProgressBar

# New files appear in this order, after the old ones were removed in the opposite order. A crash in
# between leaves a set without images.npy or masks.npy, which readers refuse; never a mixture.
_FILES = (MASKS_NPY, IMAGES_NPY, NAMES_JSON)


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote.

    Attributes:
        directory: Of images.npy, masks.npy and names.json.
        num_examples: Rows of both arrays.
        num_bytes: Of both arrays.
        left_out: A line for each pair that could not be used.
    """

    directory: Path
    num_examples: int
    num_bytes: int
    left_out: tuple[str, ...]


def prepare(config: PrepareConfig) -> Prepared:
    """Writes `images.npy`, `masks.npy` and `names.json`.

    Several threads decode; rows are written in order, so that memory holds a few of them. The files
    appear under their names when all is written.

    Args:
        config: What to read, and where to write.

    Returns:
        What was written.

    Raises:
        DataError: Some images can't be used (all are read first, and all bad ones listed), there
            are arrays already, or they can't be written (a full disk). Nothing new is left.
    """
    directory = config.output_dir
    there = [name for name in _FILES if (directory / name).exists()]
    if there and not config.overwrite:
        raise DataError(
            f"{directory} has {' and '.join(there)} already. HINT: choose another --output_dir, or "
            "replace them with --overwrite."
        )
    found = find_dataset(config.input_dir)
    if isinstance(found, Arrays):
        raise DataError(f"{config.input_dir} has arrays already: there is nothing to prepare.")
    examples = FileExamples(found.directory, found.pairs, config.image_size, config.in_channels)
    require_usable(examples, found.problems, skip_bad=config.skip_bad)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _partial_files(directory) as partial:
            prepared = _write(examples, partial, found.problems, config=config)
            _publish(partial, directory)
    except OSError as error:
        raise DataError(f"{directory} can't be written: {error}") from error
    return prepared


def _write(
    examples: Examples, partial: dict[str, Path], problems: Sequence[str], *, config: PrepareConfig
) -> Prepared:
    """Writes the usable examples to the partial files, in order."""
    bad = list(problems)
    unusable: set[int] = set()
    with (
        _NpyWriter(partial[IMAGES_NPY], (*config.image_size, config.in_channels)) as images,
        _NpyWriter(partial[MASKS_NPY], (*config.image_size, 1)) as masks,
        contextlib.closing(
            map_in_order(_try_to_load(examples), range(len(examples)), num_threads=config.threads)
        ) as read,
        ProgressBar(len(examples), kind=config.progress) as progress,
    ):
        for index, example in enumerate(read):
            if isinstance(example, DataError):
                bad.append(str(example))
                unusable.add(index)
            elif config.skip_bad or not bad:
                images.append(example[0])
                masks.append(example[1])
            progress.show(index + 1)
        num_bytes = images.finish() + masks.finish()
    written = examples.without(unusable)
    require_usable(written, bad, skip_bad=config.skip_bad)
    names = json.dumps(written.names, indent=0, ensure_ascii=False)
    partial[NAMES_JSON].write_text(f"{names}\n", encoding="utf-8")
    return Prepared(config.output_dir, len(written), num_bytes, tuple(bad))


def _try_to_load(examples: Examples) -> Callable[[int], Example | DataError]:
    def load(index: int) -> Example | DataError:
        try:
            return examples.load(index)
        except DataError as error:
            return error

    return load


class _NpyWriter:
    """Writes a uint8 `.npy` file row by row.

    By write(2), not through a memory map: on a full disk that raises OSError, where a store to a
    mapping gets SIGBUS.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...]) -> None:
        self._path = path
        self._row_shape = row_shape
        self._num_rows = 0

    def __enter__(self) -> "_NpyWriter":
        self._file: BinaryIO = self._path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, row: NDArray[np.uint8]) -> None:
        """Writes the next row."""
        self._file.write(np.ascontiguousarray(row).data)
        self._num_rows += 1

    def finish(self) -> int:
        """Writes the final header and syncs the file to disk; returns the bytes of the rows."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        return end - self._start

    def _write_header(self) -> None:
        # The length stays the same: NumPy pads headers so that the first dimension may grow.
        description: dict[str, Any] = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (self._num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, description)
        self._start = self._file.tell()


@contextlib.contextmanager
def _partial_files(directory: Path) -> Iterator[dict[str, Path]]:
    """Hidden files to write to, which are gone at the end in any case.

    O_EXCL makes them a lock, too: a second process doesn't write to them.
    """
    partial = {name: directory / f".{name}.partial" for name in _FILES}
    with contextlib.ExitStack() as stack:
        for path in partial.values():
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                raise DataError(
                    f"{path} exists: another tfddl-prepare writes to {directory}, or one was "
                    "killed. HINT: if none is running, remove that file."
                ) from None
            stack.callback(path.unlink, missing_ok=True)
        yield partial


def _publish(partial: dict[str, Path], directory: Path) -> None:
    for name in reversed(_FILES):
        (directory / name).unlink(missing_ok=True)
    for name in _FILES:
        partial[name].replace(directory / name)
