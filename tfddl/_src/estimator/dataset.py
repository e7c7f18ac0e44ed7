"""A DataFrame as Parquet files in a store, and what its columns are."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfddl._src.data.parquet import ParquetTable
from tfddl._src.data.parquet_values import VECTOR_FIELDS
from tfddl._src.estimator.store import local_path
from tfddl.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

# Not a name that a user's column has.
_SPLIT = "tfddl_is_validation"


@dataclass(frozen=True)
class Columns:
    """The columns of a training.

    Attributes:
        features: one for each input of the model.
        labels: one for each output.
        sample_weight: the weight of each row, if there is one.
        label_shapes: of a row of each label; empty is as they are stored.
    """

    features: tuple[str, ...]
    labels: tuple[str, ...]
    sample_weight: str | None = None
    label_shapes: tuple[tuple[int, ...] | None, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of all, each once."""
        weight = [] if self.sample_weight is None else [self.sample_weight]
        return list(dict.fromkeys([*self.features, *self.labels, *weight]))


@dataclass(frozen=True)
class Dataset:
    """Parquet files that all workers reach.

    Attributes:
        columns: of both.
        train: a directory's URI.
        validation: the same, if there is validation data.
    """

    columns: Columns
    train: str
    validation: str | None

    def check(self, num_workers: int) -> tuple[str, ...]:
        """Reads the footers: whether all columns are there, and rows for all workers.

        Returns:
            What the labels are: "vector", "array", or Spark's name of a type of numbers.

        Raises:
            DataError: They aren't.
        """
        paths = [path for path in (self.train, self.validation) if path is not None]
        tables = [ParquetTable.open(local_path(path)) for path in paths]
        for table in tables:
            for name in self.columns.names:
                table.check_column(name)
            if table.num_rows < num_workers:
                raise DataError(
                    f"{posixpath.dirname(table.files[0])} has {table.num_rows} rows, fewer than "
                    f"{num_workers} workers. HINT: fewer workers by num_proc, or more rows"
                )
        return tuple(_label_kind(tables[0].types[name]) for name in self.columns.labels)


@dataclass(frozen=True)
class Split:
    """Which rows are for validation.

    Attributes:
        by: the part of the rows that are drawn, or the column that says which; None is none.
        seed: of the draw.
    """

    by: float | str | None
    seed: int


def write(df: DataFrame, columns: Columns, path: str, split: Split) -> Dataset:
    """Writes a DataFrame's columns to a directory, which is replaced, in one pass over it.

    Raises:
        DataError: A column is missing, or of a type that can't be trained on; the split is by
            neither a part nor a column.
    """
    _check(df, columns, split.by)
    if split.by is None:
        df.select(*columns.names).write.mode("overwrite").parquet(path)
        return describe(columns, path, split)
    from pyspark.sql import functions

    is_drawn = (
        functions.coalesce(functions.col(split.by).cast("boolean"), functions.lit(False))
        if isinstance(split.by, str)
        else functions.rand(split.seed) < split.by
    )
    # One pass, in which each row is drawn once: a second one could draw, or compute, others.
    found = df.select(*columns.names, is_drawn.alias(_SPLIT))
    found.write.mode("overwrite").partitionBy(_SPLIT).parquet(path)
    return describe(columns, path, split)


def describe(columns: Columns, path: str, split: Split) -> Dataset:
    """The dataset that `write` has written to a directory."""
    if split.by is None:
        return Dataset(columns, path, None)
    return Dataset(columns, f"{path}/{_SPLIT}=false", f"{path}/{_SPLIT}=true")


def _check(df: DataFrame, columns: Columns, split: float | str | None) -> None:
    types = {field.name: field.dataType for field in df.schema.fields}
    _check_names([*columns.names, *([split] if isinstance(split, str) else [])], types)
    if not isinstance(split, str | None) and not 0 < split < 1:
        raise DataError(
            f"validation is {split}; expected a part of the rows between 0 and 1, or the name "
            "of a column that is true for validation"
        )
    for name in columns.names:
        if not _is_numeric(types[name]):
            raise DataError(
                f"column {name!r} is of type {types[name].simpleString()}; expected numbers, "
                "arrays of numbers or vectors of Spark ML. HINT: encode it as numbers first, texts "
                "by StringIndexer for example"
            )


def _check_names(names: Sequence[str], there: Iterable[str]) -> None:
    missing = [name for name in names if name not in set(there)]
    if missing:
        raise DataError(
            f"there is no column {', '.join(map(repr, missing))}; the DataFrame has "
            f"{', '.join(map(repr, there))}"
        )


def _is_numeric(kind: DataType) -> bool:
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import ArrayType, BooleanType, NumericType

    if isinstance(kind, ArrayType):
        return _is_numeric(kind.elementType) and not isinstance(kind.elementType, VectorUDT)
    return isinstance(kind, NumericType | BooleanType | VectorUDT)


def _label_kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_struct(kind):
        is_vector = tuple(kind.field(i).name for i in range(kind.num_fields)) == VECTOR_FIELDS
        return "vector" if is_vector else "array"
    if types.is_float32(kind):
        return "float"
    if types.is_integer(kind):
        return {8: "tinyint", 16: "smallint", 32: "int"}.get(kind.bit_width, "bigint")
    return "double" if types.is_primitive(kind) or types.is_decimal(kind) else "array"
