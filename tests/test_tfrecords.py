"""Records of TFRecord files by number: the index, what is read, errors that name the file."""

import contextlib
import fcntl
import gzip
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfddl
from tests.rank_shards import in_epoch, shards, table
from tfddl._src.data import record_index
from tfddl._src.data.record_index import find_lengths
from tfddl._src.sharding import BlockPlan, GlobalPlan
from tfddl.errors import DataError


@pytest.fixture(autouse=True)
def _initialized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tfddl.init()
    yield
    tfddl.shutdown()


def _write(path: Path, records: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def _records(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [b"%d:" % i + rng.randbytes(rng.choice([0, 1, 50, 3000])) for i in range(count)]


def _index(file: Path) -> Path:
    return file.with_name(file.name + record_index.SUFFIX)


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    """Where no file may be read through."""
    with mock.patch.object(record_index, "_read_lengths", side_effect=AssertionError):
        yield


def test_records_by_number(tmp_path: Path) -> None:
    contents = [_records(5), [], _records(40, seed=1), [b"", b"last"]]
    for i, records in enumerate(contents):
        _write(tmp_path / f"part-{i}.tfrecord", records)
    everything = [record for records in contents for record in records]
    found = tfddl.open_tfrecords(f"{tmp_path}/part-*.tfrecord")
    assert (len(found), found.shape) == (47, (47,))
    assert [found[i] for i in range(47)] == everything
    order = np.random.default_rng(1).integers(-47, 47, 200)
    assert found[order].tolist() == [everything[i] for i in order]
    assert found[3:9].tolist() == everything[3:9]
    assert found[[[0, -1], [5, 5]]].tolist() == [[everything[0], b"last"], [everything[5]] * 2]
    with mock.patch("tfddl._src.data.tfrecords._RUN_BYTES", 3000):
        assert found[:].tolist() == everything
    assert pickle.loads(pickle.dumps(found))[[7]].tolist() == everything[7:8]
    listed = [tmp_path / "part-3.tfrecord", tmp_path / "part-0.tfrecord"]
    assert tfddl.open_tfrecords(listed)[:].tolist() == contents[3] + contents[0]
    (tmp_path / "_SUCCESS").touch()
    with _unread():
        assert tfddl.open_tfrecords(tmp_path)[:].tolist() == everything


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    for i in range(70):
        _write(tmp_path / f"{i:02}", [b"%d" % i])
    found = tfddl.open_tfrecords(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert found[:].tolist() == [b"%d" % i for i in range(70)]
    assert len(os.listdir("/proc/self/fd")) == before + 64
    del found
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_indexed_again_when_it_has_changed(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.tfrecord", [b"one", b"two"])
    before = tfddl.open_tfrecords(file)
    with _unread():
        assert len(tfddl.open_tfrecords(file)) == 2
    _write(file, [b"fourteen", b"x", b"y"])
    os.utime(file, ns=(1, 1))
    assert tfddl.open_tfrecords(file)[:].tolist() == [b"fourteen", b"x", b"y"]
    with pytest.raises(DataError, match="a.tfrecord has no record of 3 bytes from byte 19 on; exp"):
        before[1]
    _index(file).write_bytes(b"damaged")
    assert len(tfddl.open_tfrecords(file)) == 3
    with _unread():
        assert len(tfddl.open_tfrecords(file)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, _index(file).name]


def test_where_an_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    file = _write(tmp_path / "data" / "a.tfrecord", [b"one"])
    chosen = tmp_path / "chosen"
    assert len(tfddl.open_tfrecords(file, index_dir=chosen)) == 1
    assert [path.name[:10] for path in chosen.iterdir()] == ["a.tfrecord"]
    assert not _index(file).exists()
    # Root may write to any directory: that of this file can't be written to.
    real = record_index._places
    monkeypatch.setattr(
        record_index, "_places", lambda *given: ["/proc/none/index", real(*given)[-1]]
    )
    for _ in range(2):
        assert len(tfddl.open_tfrecords(file)) == 1
    assert len(list((tmp_path / "cache/tfddl/tfrecords").iterdir())) == 1
    with _unread():
        assert len(tfddl.open_tfrecords(file)) == 1
    monkeypatch.setattr(record_index, "_places", lambda *given: ["/proc/none/index"])
    with mock.patch.object(record_index, "_LOG") as log:
        assert len(tfddl.open_tfrecords(file)) == 1
    assert "HINT: tfddl.open_tfrecords(…, index_dir=…)" in log.warning.call_args.args[0]


def test_what_another_process_reads_is_left_to_it(tmp_path: Path) -> None:
    files = [str(_write(tmp_path / name, [name.encode()])) for name in ("a", "b", "c")]
    read: list[str] = []
    real = record_index._read_lengths

    def reading(file: str, *, size: int) -> np.ndarray:
        read.append(Path(file).name)
        if len(read) == 2:  # Meanwhile another process has found those of "b".
            find_lengths([files[1]], str(tmp_path / "index"), begin=0, num_threads=0)
            fcntl.flock(held, fcntl.LOCK_UN)
        return real(file, size=size)

    with open(files[1], "rb") as held, mock.patch.object(record_index, "_read_lengths", reading):
        fcntl.flock(held, fcntl.LOCK_EX)
        with mock.patch.object(record_index, "_WAIT_S", 0.2):
            # Held by one that doesn't end: done here, in the end.
            find_lengths(files[1:2], str(tmp_path / "other"), begin=0, num_threads=0)
        assert read == ["b"]
        read.clear()
        fcntl.flock(held, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_UN)
        lengths = find_lengths(files, str(tmp_path / "index"), begin=2, num_threads=0)
    assert read[0] == "c"
    assert [own.tolist() for own in lengths] == [[1], [1], [1]]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            lambda whole: whole[:-3],
            "has a truncated record at byte 20; expected a whole TFRecord file",
        ),
        (lambda whole: whole[:-6] + b"X" + whole[-5:], "has a corrupted record at byte 32"),
        (lambda whole: b"X" + whole[1:], "has a corrupted record at byte 0"),
        (lambda whole: b"no records here, but some text", "has a corrupted record at byte 0"),
        (gzip.compress, "is compressed, so that its records can't be read by number"),
        (lambda whole: b"", "has no records; expected at least one"),
    ],
)
def test_what_is_no_record_file_is_named(content: object, text: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.tfrecord", [b"abcd", b"efgh"])
    assert callable(content)
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(DataError, match=f"a.tfrecord.*{text}"):
        tfddl.open_tfrecords(file)
    assert len(list(tmp_path.iterdir())) <= 2


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.tfrecord.*No such file"):
        tfddl.open_tfrecords(tmp_path / "none.tfrecord")
    for path in (tmp_path, tmp_path / "*.tfrecord"):
        with pytest.raises(DataError, match="there are no files in .*; expected TFRecord files"):
            tfddl.open_tfrecords(path)
    tfddl.shutdown()
    with pytest.raises(tfddl.errors.NotInitializedError):
        tfddl.open_tfrecords(tmp_path)
    tfddl.init()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [GlobalPlan, BlockPlan])
def test_each_record_goes_to_one_rank(
    kind: type[GlobalPlan] | type[BlockPlan], size: int, tmp_path: Path
) -> None:
    for i in range(3):
        _write(tmp_path / f"{i}", [b"%d" % (10 * i + j) for j in range(10)])
    source = table(tfddl.open_tfrecords(tmp_path))
    plan = kind(num_examples=30, size=size, batch_size=4, seed=3)
    of_ranks = [in_epoch(state, data, 1) for state, data in shards(plan, source)]
    found = sorted(int(record) for batches in of_ranks for batch in batches for record in batch)
    assert found == list(range(30))
    assert len({len(batches) for batches in of_ranks}) == 1
    expected = plan.batch(epoch=1, step=0, rank=size - 1).indices.tolist()
    assert [int(record) for record in of_ranks[-1][0]] == expected


def test_batches_are_parsed_in_the_graph_and_examples_by_load(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(23, 3)).astype("float32")
    serialized = [tf.io.serialize_tensor(value).numpy() for value in values]
    records = tfddl.open_tfrecords(_write(tmp_path / "a.tfrecord", serialized))
    labels = np.arange(23)

    def parse(record: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.parse_tensor(record, tf.float32), (3,))

    parsed = tfddl.shard_dataset(records, labels, batch_size=5, seed=1).map(
        lambda batch, y: (tf.map_fn(parse, batch, fn_output_signature=tf.float32), y)
    )
    loaded = tfddl.shard_dataset(
        records, labels, batch_size=5, seed=1, load=lambda record, y: (parse(record), y)
    )
    for (x, y), (own_x, own_y) in zip(parsed, loaded, strict=True):
        np.testing.assert_array_equal(x, values[y])
        np.testing.assert_array_equal(own_x, x)
        np.testing.assert_array_equal(own_y, y)


def test_an_example_that_can_not_be_loaded_names_its_record(tmp_path: Path) -> None:
    def load(record: bytes) -> np.ndarray:
        return np.array([int(record)], np.float32)

    records = tfddl.open_tfrecords(_write(tmp_path / "a.tfrecord", [b"1", b"2", b"no"]))
    data = tfddl.shard_dataset(records, batch_size=1, load=load)
    with pytest.raises(tf.errors.OpError, match="example 2 .*a.tfrecord, from byte 34 on"):
        list(data)
