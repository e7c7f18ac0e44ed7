"""Arrow's arrays of numbers, lists and Spark ML's vectors as NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfddl.errors import DataError

NULL_HINT = "HINT: fill or drop them first, with fillna or dropna of a DataFrame."

# How VectorUDT of Spark ML is stored (pyspark.ml.linalg.VectorUDT.sqlType).
VECTOR_FIELDS = ("type", "size", "indices", "values")
_DENSE = 1


def to_numpy(values: Any, name: str, row_shape: tuple[int, ...] | None) -> np.ndarray:
    """The rows of an Arrow array.

    Args:
        values: A `pyarrow.Array`, of at least one row.
        name: What messages call the column.
        row_shape: That each row must have; None is that of the first.

    Returns:
        Of shape (rows, …).

    Raises:
        DataError: Nulls; rows of different shapes, or without values; a type that isn't here.
    """
    if _is_vector(values.type):
        rows = _vectors(values, name)
    elif _is_list(values.type):
        rows = _lists(values, name)
    else:
        rows = _numbers(values, name)
    if 0 in rows.shape:
        raise DataError(f"column {name!r} has empty lists; expected values in them.")
    if row_shape is not None and rows.shape[1:] != row_shape:
        raise _unequal(name, f"shape {rows.shape[1:]}", f"{row_shape}")
    return rows


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    names = tuple(kind.field(i).name for i in range(kind.num_fields))
    return types.is_struct(kind) and names == VECTOR_FIELDS


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _numbers(values: Any, name: str) -> np.ndarray:
    import pyarrow
    from pyarrow import types

    _check_nulls(values, name)
    kind = values.type
    if types.is_decimal(kind):
        values = values.cast(pyarrow.float64())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DataError(
            f"column {name!r} is of type {kind}; expected numbers, lists of numbers or vectors of "
            "Spark ML. HINT: encode it as numbers first, texts by StringIndexer for example."
        )
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _lists(values: Any, name: str) -> np.ndarray:
    _check_nulls(values, name)
    inner = values.flatten()  # Of this slice alone.
    lengths = _lengths(values)
    if (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise _unequal(name, f"{lengths[row]} elements", f"{lengths[0]}")
    if not lengths[0]:
        return np.empty((len(values), 0))
    rows = _lists(inner, name) if _is_list(inner.type) else _numbers(inner, name)
    return rows.reshape(len(values), int(lengths[0]), *rows.shape[1:])


def _vectors(values: Any, name: str) -> np.ndarray:
    """Dense ones have neither size nor indices."""
    _check_nulls(values, name)
    kinds, sizes, indices, numbers = values.flatten()
    _check_nulls(numbers, name)
    is_dense = kinds.to_numpy(zero_copy_only=False) == _DENSE
    counts = _lengths(numbers)
    lengths = np.where(is_dense, counts, np.asarray(sizes.fill_null(0)))
    if (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise _unequal(name, f"{lengths[row]} elements", f"{lengths[0]}")
    rows = np.zeros((len(values), int(lengths[0])))
    row_of = np.repeat(np.arange(len(values)), counts)
    dense = is_dense[row_of]
    column_of = np.empty(len(row_of), np.int64)
    # The place of each value within its own list.
    column_of[dense] = (np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts))[
        dense
    ]
    column_of[~dense] = np.asarray(indices.flatten())
    rows[row_of, column_of] = np.asarray(numbers.flatten())
    return rows


def _lengths(values: Any) -> np.ndarray:
    from pyarrow import compute

    return np.asarray(compute.list_value_length(values))


def _check_nulls(values: Any, name: str) -> None:
    if values.null_count:
        raise DataError(f"column {name!r} has {values.null_count} nulls. {NULL_HINT}")


def _unequal(name: str, got: str, expected: str) -> DataError:
    return DataError(
        f"column {name!r} has a row of {got}; expected {expected}, as in the first. HINT: all rows "
        "must have the same shape: pad or cut them."
    )
