"""Columns of Parquet files: decoded exactly, a row group when it is asked for, errors by name."""

import decimal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfddl
from tests.rank_shards import in_epoch, shards, table
from tfddl._src.data.parquet import ParquetTable
from tfddl._src.sharding import BlockPlan, GlobalPlan
from tfddl.errors import DataError

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")


def _write(path: Path, columns: dict[str, Any], *, rows: int = 7) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def _vectors(rows: list[Any], size: int) -> Any:
    """As Spark writes its vectors: a list is a dense one, a dictionary a sparse one."""
    import pyarrow

    stored = [
        {"type": 0, "size": size, "indices": list(row), "values": list(row.values())}
        if isinstance(row, dict)
        else {"type": 1, "size": None, "indices": None, "values": row}
        for row in rows
    ]
    fields = [
        ("type", pyarrow.int8()),
        ("size", pyarrow.int32()),
        ("indices", pyarrow.list_(pyarrow.int32())),
        ("values", pyarrow.list_(pyarrow.float64())),
    ]
    return pyarrow.array(stored, pyarrow.struct(fields))


def test_pyarrow_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"HINT: pip install 'tfddl\[parquet\]'"):
        tfddl.open_parquet("somewhere")


@needs_pyarrow
def test_every_kind_of_column(tmp_path: Path) -> None:
    n = 23
    matrices = np.arange(n * 6.0).reshape(n, 2, 3)
    money = [decimal.Decimal(i) / 4 for i in range(n)]
    file = _write(
        tmp_path / "a.parquet",
        {
            "byte": np.arange(n, dtype="uint8"),
            "flag": np.arange(n) % 3 == 0,
            "half": np.arange(n, dtype="float16"),
            "money": money,
            "matrix": matrices.tolist(),
            "vector": _vectors([[i, 2.0] if i % 2 else {1: float(i)} for i in range(n)], 2),
        },
    )
    columns = tfddl.open_parquet(file)
    order = np.random.default_rng(1).permutation(n)
    expected = {
        "byte": order.astype("uint8"),
        "flag": order % 3 == 0,
        "half": order.astype("float16"),
        "money": order / 4,
        "matrix": matrices[order],
        "vector": np.where(order[:, None] % 2, np.stack([order, np.full(n, 2.0)], 1), 0.0),
    }
    expected["vector"][order % 2 == 0, 1] = order[order % 2 == 0]
    assert list(columns) == list(expected)
    for name, values in expected.items():
        column = columns[name]
        assert (column.shape, column.dtype) == (values.shape, values.dtype), name
        assert np.array_equal(column[order], values), name
        assert np.array_equal(np.asarray(column)[order], values), name
    images = columns["matrix"].astype("float32").reshape(3, 2, 1)
    assert (images.shape, images.dtype) == ((n, 3, 2, 1), np.dtype("float32"))
    assert np.array_equal(images[-1], matrices[-1].reshape(3, 2, 1))
    assert np.array_equal(images[4:6], matrices[4:6].reshape(2, 3, 2, 1))
    with pytest.raises(DataError, match=r"'matrix' has 6 values in a row, of shape \(2, 3\); they"):
        columns["matrix"].reshape(5)
    with pytest.raises(IndexError, match="23 isn't within the 23 rows"):
        columns["byte"][23]


@needs_pyarrow
def test_rows_are_in_the_order_of_the_files_names(tmp_path: Path) -> None:
    (tmp_path / "data" / "later").mkdir(parents=True)
    for name, start in (("b", 5), ("later/a", 10), ("a", 0)):
        _write(tmp_path / "data" / f"{name}.parquet", {"x": np.arange(start, start + 5)}, rows=2)
    for name in ("_SUCCESS", ".a.parquet.crc", "_temporary/0/a.parquet", "later/_delta_log/a"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("not Parquet")
    assert tfddl.open_parquet(tmp_path / "data")["x"][:].tolist() == list(range(15))
    listed = [tmp_path / "data" / f"{name}.parquet" for name in ("b", "a")]
    assert tfddl.open_parquet(listed)["x"][:].tolist() == [*range(5, 10), *range(5)]
    assert len(tfddl.open_parquet(f"file://{tmp_path}/data")["x"]) == 15


@needs_pyarrow
@pytest.mark.parametrize("kind", [GlobalPlan, BlockPlan])
def test_workers_get_what_arrays_would_give_them(kind: Any, tmp_path: Path) -> None:
    n = 103
    x, y = np.random.default_rng(1).normal(size=(n, 3)), np.arange(n, dtype="int32")
    columns = tfddl.open_parquet(_write(tmp_path / "a.parquet", {"x": x.tolist(), "y": y}))
    plan = kind(num_examples=n, size=3, batch_size=5, seed=2)
    read = shards(plan, table(columns["x"], columns["y"]))
    for (_, of_arrays), (state, of_files) in zip(shards(plan, table(x, y)), read, strict=True):
        expected = list(of_arrays.as_numpy_iterator())
        for got, batch in zip(in_epoch(state, of_files, 0), expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(got, batch, strict=True))


@needs_pyarrow
def test_a_row_group_is_decoded_once_and_only_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = ParquetTable.read

    def count(self: ParquetTable, group: Any, name: str, num_rows: int) -> Iterator[Any]:
        read.append((group.start, name))
        return original(self, group, name, num_rows)

    columns = tfddl.open_parquet(_write(tmp_path / "a.parquet", {"x": range(40), "y": range(40)}))
    monkeypatch.setattr(ParquetTable, "read", count)
    plan = BlockPlan(num_examples=40, size=4, batch_size=2, seed=1)
    source = table(columns["x"], columns["y"])
    _, (state, dataset), *_ = shards(plan, source)
    read.clear()
    for epoch in range(3):
        in_epoch(state, dataset, epoch)
    assert {start for start, _ in read} <= {7, 14}  # Of rows 10 to 19.
    assert len(read) == len(set(read))
    assert not [path for path in tmp_path.iterdir() if path.name != "a.parquet"]


@pytest.mark.long
@needs_pyarrow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A column of 320 MB in one row group, read in random order."""
    script = f"""
import resource, sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
from tfddl._src.data.parquet import open_parquet
file = "{tmp_path}/a.parquet"
if sys.argv[1:]:  # In a process of its own: what writing takes isn't counted.
    values = pa.array(np.random.default_rng(0).integers(2**40, size=40_000_000).astype(float))
    values = pa.FixedSizeListArray.from_arrays(values, 1000)
    table = pa.table({{"x": values}})
    options = dict(use_dictionary=False, compression="none")
    pq.write_table(table, file, row_group_size=40_000, **options)
    sys.exit()
assert pq.read_metadata(file).num_row_groups == 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
column = open_parquet(file, cache_dir="{tmp_path}")["x"].astype("float64")
numbers = np.random.default_rng(1).permutation(len(column))
total = sum(int(column[part].astype(int).sum()) for part in np.split(numbers, 1000))
written = np.random.default_rng(0)
assert total == sum(int(written.integers(2**40, size=10**6).sum()) for _ in range(40)), total
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for arguments in (["write"], []):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000  # KiB


@needs_pyarrow
@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["a", "b"], "column 'x' is of type string; expected numbers, lists of numbers or vectors"),
        ([1.0, None], "column 'x' has 1 nulls in .*a.parquet.* HINT: fill or drop them first"),
        ([[1.0], None], "column 'x' has 1 nulls.* HINT: fill or drop them first"),
        ([[1.0], [None]], "column 'x' has 1 nulls"),
        ([[1.0, 2.0], [1.0]], "column 'x' has a row of 1 elements; expected 2, as in the first"),
        ([[], []], "column 'x' has empty lists"),
        ([{"a": 1}, {"a": 2}], "column 'x' is of type struct<a: int64>"),
    ],
)
def test_what_can_t_be_read_is_named(tmp_path: Path, values: list[Any], text: str) -> None:
    file = _write(tmp_path / "a.parquet", {"x": values})
    with pytest.raises(DataError, match=text):
        tfddl.open_parquet(file)["x"][:]


@needs_pyarrow
def test_vectors_of_different_lengths_and_other_files(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"x": _vectors([[1.0, 2.0], {0: 1.0}], 3)})
    with pytest.raises(DataError, match="column 'x' has a row of 3 elements; expected 2, .*a.parq"):
        tfddl.open_parquet(tmp_path / "a.parquet")["x"][:]
    with pytest.raises(DataError, match=r"no column 'z'; the files have x \(struct<"):
        tfddl.open_parquet(tmp_path / "a.parquet", ["z"])
    (tmp_path / "b.parquet").write_text("PAR1 not")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        tfddl.open_parquet(tmp_path / "b.parquet")
    _write(tmp_path / "b.parquet", {"y": [1]})
    with pytest.raises(DataError, match=r"b.parquet has the columns y \(int64\), but .*a.parquet"):
        tfddl.open_parquet(tmp_path)
    with pytest.raises(DataError, match="can't be read as Parquet"):
        tfddl.open_parquet(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet files in "):
        tfddl.open_parquet(tmp_path / "empty")
