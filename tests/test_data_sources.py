"""Examples that are loaded, augmented, or come from a tf.data.Dataset; what goes wrong then."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfddl
from tests.group import Groups
from tests.rank_shards import flat, in_epoch, shards, table
from tfddl._src.block_rows import BlockRows
from tfddl._src.data import ResumePoint, find_error
from tfddl._src.data.dataset_source import DatasetSource
from tfddl._src.data.examples import Examples
from tfddl._src.data.transforms import Transforms
from tfddl._src.sharding import BlockPlan, GlobalPlan
from tfddl.errors import DataError, UnsupportedError

KINDS = (GlobalPlan, BlockPlan)


@pytest.fixture
def _initialized() -> Any:
    tfddl.init()
    yield
    tfddl.shutdown()


def _files(directory: Path, n: int) -> list[Path]:
    paths = [directory / f"{i}.npy" for i in range(n)]
    for i, path in enumerate(paths):
        np.save(path, np.full((2, 3), i, "float32"))
    return paths


class Loader:
    """Loads files, and knows which."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __call__(self, path: Path, label: float) -> tuple[dict[str, Any], float]:
        self.loaded.append(int(path.stem))
        time.sleep(0.001 * (int(path.stem) % 3))  # They come out of order, but for the pool.
        return {"image": np.load(path), "name": path.name}, label


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_loaded_by_the_rank_that_trains_on_them(
    kind: type[GlobalPlan], tmp_path: Path
) -> None:
    n, size = 13, 3
    paths = _files(tmp_path, n)
    plan = kind(num_examples=n, size=size, batch_size=2, seed=1)
    seen = []
    for rank in range(size):
        loader = Loader()
        source = table(paths, np.arange(n) * 10.0, loaded=True)
        state, dataset = shards(plan, source, Transforms(load=loader))[rank]
        loader.loaded.clear()
        batches = in_epoch(state, dataset, 2)
        steps = [plan.batch(epoch=2, step=s, rank=rank).indices for s in range(plan.steps)]
        for (x, y), indices in zip(batches, steps, strict=True):
            assert x["image"].shape == (len(indices), 2, 3)
            assert x["image"][:, 0, 0].tolist() == indices.tolist()
            assert [name.decode() for name in x["name"]] == [f"{i}.npy" for i in indices]
            assert y.tolist() == [10.0 * i for i in indices]
        own = np.concatenate(steps).tolist()
        assert sorted(loader.loaded) == sorted(own), "others' examples were loaded"
        seen += own
    assert sorted(seen) == list(range(n))


def test_whatever_can_be_indexed_can_be_loaded(tmp_path: Path) -> None:
    """Lists of lists, ranges, dictionaries of parts, memory maps, all at once."""
    np.save(tmp_path / "map.npy", np.arange(12.0).reshape(6, 2))
    x = {"list": [[i, i] for i in range(6)], "map": np.load(tmp_path / "map.npy", mmap_mode="r")}

    def load(x: Any, y: int, weight: float) -> Any:
        return (np.asarray(x["list"]), x["map"]), y, weight

    plan = BlockPlan(num_examples=6, size=1, batch_size=4)
    source = table(x, range(6), tf.ones(6), loaded=True)
    ((_, dataset),) = shards(plan, source, Transforms(load=load))
    (x0, y0, weight), _ = dataset.as_numpy_iterator()
    assert x0[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert x0[1].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (y0.tolist(), weight.tolist()) == ([0, 1, 2], [1, 1, 1])


def test_augmentation_depends_on_seed_epoch_and_example_only() -> None:
    n = 12
    source = table(np.arange(n)[:, None], np.zeros(n))
    found: dict[tuple[int, int, int], set[float]] = {}

    def augment(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Any:
        return np.append(x, rng.random()), y

    for kind, size, batch_size, seed in itertools.product(KINDS, (1, 2, 3), (2, 5), (3, 4)):
        plan = kind(num_examples=n, size=size, batch_size=batch_size, seed=seed)
        transforms = Transforms(augment=augment, seed=seed)
        for rank, epoch in itertools.product(range(size), range(2)):
            examples = Examples(
                source, transforms, rank=rank, num_threads=2, first=np.array([rank])
            )
            steps = [plan.batch(epoch=epoch, step=s, rank=rank) for s in range(plan.steps)]
            wanted = [batch.indices for batch in steps if batch.count]
            for x, _ in examples.batches(wanted, epoch=epoch):
                for number, drawn in x:
                    found.setdefault((seed, epoch, int(number)), set()).add(drawn)
    assert len(found) == 2 * 2 * n
    assert all(len(drawn) == 1 for drawn in found.values()), "it depends on the workers"
    assert len(set.union(*found.values())) == 2 * 2 * n, "seeds, epochs or examples are alike"


def test_augmentation_comes_after_loading_and_may_change_the_shape() -> None:
    def augment(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        start = rng.integers(3)
        return x[start : start + 2].astype("float32")

    transforms = Transforms(load=lambda i: np.arange(i, i + 4, dtype="uint8"), augment=augment)
    plan = GlobalPlan(num_examples=5, size=1, batch_size=5)
    ((_, dataset),) = shards(plan, table(list(range(5)), loaded=True), transforms)
    (batch,) = dataset.as_numpy_iterator()
    assert (batch.shape, batch.dtype) == ((5, 2), np.float32)
    assert set(np.diff(batch).ravel()) == {1.0}


def _load_with(problem: Callable[[], Any]) -> Callable[[Path], Any]:
    def load(path: Path) -> Any:
        return problem() if path.stem == "5" else (np.zeros((2, 3), "float32"), 1.0)

    return load


def _boom() -> None:
    raise ZeroDivisionError("so big")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (_boom, "load raised ZeroDivisionError: so big"),
        (
            lambda: (np.zeros((3, 3), "float32"), 1.0),
            r"x has shape \(3, 3\) and dtype float32; expected \(2, 3\) and float32, as in the fir",
        ),
        (lambda: (np.zeros((2, 3)), 1.0), r"x has shape \(2, 3\) and dtype float64"),
        (lambda: np.zeros((2, 3), "float32"), "it consists of x; expected x, y, as in the first"),
        (lambda: (None, 1.0), "x is a NoneType; expected an array of numbers"),
        (lambda: ([[1], [2, 3]], 1.0), "x can't be converted to an array"),
    ],
)
def test_a_later_example_that_is_wrong_is_named(
    tmp_path: Path, problem: Callable[[], Any], message: str
) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(8)]
    plan = BlockPlan(num_examples=8, size=2, batch_size=2)
    source = table(paths, loaded=True)
    _, (_, dataset) = shards(plan, source, Transforms(load=_load_with(problem)))
    message = rf"rank 1: example 5 \(x: {tmp_path}/5.npy\): {message}"
    mapped = dataset.map(lambda *parts: parts).shuffle(2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(mapped)
    failure = find_error(mapped)
    assert isinstance(failure, DataError)
    with pytest.raises(ValueError, match=f"^{message}"):
        raise failure
    assert find_error(dataset.take(1)) is failure
    assert find_error(tf.data.Dataset.range(3)) is None


def test_a_rank_keeps_step_until_the_others_know_what_is_wrong(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(8)]
    plan = GlobalPlan(num_examples=8, size=1, batch_size=2)
    source = table(paths, loaded=True)
    ((state, dataset),) = shards(plan, source, Transforms(load=_load_with(_boom)))
    state.reports_failures = True
    assert [len(x) for x, _ in dataset.as_numpy_iterator()] == [2, 2, 1, 1]
    assert "example 5" in str(find_error(dataset))


@pytest.mark.usefixtures("_initialized")
def test_a_first_example_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    paths = _files(tmp_path, 4)
    paths[0].unlink()
    with pytest.raises(DataError, match=r"rank 0: example 0 \(x: .*/0.npy\): load raised FileNotF"):
        tfddl.shard_dataset(paths, batch_size=2, load=np.load)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    with pytest.raises(DataError, match=r"example 0 \(x: .*/1.npy\): load raised ValueError"):
        tfddl.shard_dataset(paths[1:], batch_size=2, load=np.load)


@pytest.mark.parametrize("load", [None, lambda x, y: (x + 1, y)])
@pytest.mark.usefixtures("_initialized")
def test_rows_in_blocks_are_read_like_those_of_an_array(load: Any) -> None:
    x = np.arange(26, dtype="float32").reshape(13, 2)
    y = np.arange(13)
    counts = (4, 0, 9)

    def in_blocks(whole: np.ndarray) -> BlockRows:
        blocks = np.split(whole, np.cumsum(counts)[:-1])
        return BlockRows(blocks.__getitem__, counts, whole.shape[1:], whole.dtype)

    arrays = tfddl.shard_dataset(x, y, batch_size=3, seed=1, load=load)
    blocks = tfddl.shard_dataset(in_blocks(x), in_blocks(y), batch_size=3, seed=1, load=load)
    assert blocks.element_spec == arrays.element_spec
    for ours, theirs in zip(blocks, arrays, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.usefixtures("_initialized")
def test_a_map_that_is_cut_short_is_named_before_and_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 100)))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = tfddl.shard_dataset(x, batch_size=5)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(DataError, match="x is mapped from .*x.npy, which has 10000 bytes; exp"):
        tfddl.shard_dataset(x, batch_size=5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="rank 0: x is mapped from .* cut sho"):
        list(dataset)
    assert "cut short" in str(find_error(dataset))


@pytest.mark.parametrize(
    ("x", "load", "message"),
    [
        (["a", "b"], None, "x has dtype <U1"),
        ("ab", len, "x is a str; expected, with load=…, arrays or what has"),
        ({1, 2}, len, "x is a set; expected, with load"),
        ({"a": [1], "b": [1, 2]}, len, r"x\['a'\] has 1, x\['b'\] has 2"),
        ([], len, "x has no examples"),
        (iter("ab"), None, "x is a str_.*iterator; expected arrays.*with load="),
    ],
)
@pytest.mark.usefixtures("_initialized")
def test_what_can_not_be_loaded(x: Any, load: Any, message: str) -> None:
    if x == ["a", "b"]:  # Strings are data like any other.
        (batch,) = tfddl.shard_dataset(x, batch_size=2).as_numpy_iterator()
        assert batch.tolist() == [b"a", b"b"]
        return
    with pytest.raises(DataError, match=message):
        tfddl.shard_dataset(x, batch_size=1, load=load)


def _sparse(i: tf.Tensor) -> tf.SparseTensor:
    return tf.sparse.from_dense([i])


def _squares(n: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(n).map(lambda i: (i, {"square": i * i}), num_parallel_calls=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_is_shared_out_in_its_order(kind: type[GlobalPlan]) -> None:
    n = 11
    for size in (1, 3):
        plan = kind(num_examples=n, size=size, batch_size=2)
        for rank, (_, dataset) in enumerate(shards(plan, DatasetSource(_squares(n)))):
            assert dataset.element_spec[1]["square"].shape.as_list() == [None]
            for step, (x, y) in enumerate(dataset.as_numpy_iterator()):
                batch = plan.batch(epoch=0, step=step, rank=rank)
                assert x.tolist() == batch.indices.tolist()
                assert y["square"].tolist() == [i * i for i in batch.indices]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_is_taken_up_with_other_workers(kind: type[GlobalPlan]) -> None:
    n = 17
    begun = kind(num_examples=n, size=3, batch_size=2)
    position = begun.position(epoch=1, steps=2)
    left = set(range(n))
    for rank, step in itertools.product(range(3), range(2)):
        left -= set(begun.batch(epoch=1, step=step, rank=rank).indices.tolist())
    seen = []
    source = DatasetSource(tf.data.Dataset.range(n))
    for state, dataset in shards(kind(num_examples=n, size=2, batch_size=2), source):
        state.resume = ResumePoint(dataset.tfddl_shard, position)
        state.epoch = 1
        seen += flat(list(state.resume.rest_of(dataset).as_numpy_iterator()))
    assert sorted(seen) == sorted(left)


def test_a_dataset_is_read_no_further_than_the_rank_s_part() -> None:
    made: list[int] = []

    def note(i: np.ndarray) -> np.ndarray:
        made.append(int(i))
        return i

    dataset = tf.data.Dataset.range(12).map(
        lambda i: tf.ensure_shape(tf.numpy_function(note, [i], tf.int64), ())
    )
    plan = BlockPlan(num_examples=12, size=3, batch_size=2)
    _, (_, mine), _ = shards(plan, DatasetSource(dataset))
    made.clear()
    assert flat(list(mine)) == [4, 5, 6, 7]
    assert made == list(range(8))


def test_a_dataset_can_be_loaded_and_augmented() -> None:
    transforms = Transforms(
        load=lambda i, y: (np.full(2, i), y["square"] + 1),
        augment=lambda rng, x, y: (x + rng.integers(1, 2), y),
    )
    plan = GlobalPlan(num_examples=4, size=1, batch_size=4)
    ((_, dataset),) = shards(plan, DatasetSource(_squares(4)), transforms)
    ((x, y),) = dataset.as_numpy_iterator()
    assert (x[:, 0].tolist(), y.tolist()) == ([1, 2, 3, 4], [1, 2, 5, 10])


def test_a_dataset_that_fails_says_where() -> None:
    def check(i: tf.Tensor) -> tf.Tensor:
        return tf.debugging.check_numerics(tf.where(i == 5, np.nan, 0.0), "five")

    plan = GlobalPlan(num_examples=8, size=2, batch_size=2)
    failing = tf.data.Dataset.range(8).map(check)
    short = tf.data.Dataset.range(8).filter(lambda i: i != 3)
    for dataset, message in (
        (failing, "rank 0: example 5 of the dataset can't be read: .*five"),
        (
            short.apply(tf.data.experimental.assert_cardinality(8)),
            "rank .: .*(ended before|expected to contain 8)",
        ),
    ):
        batches = itertools.chain.from_iterable(
            mine for _, mine in shards(plan, DatasetSource(dataset))
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            list(batches)


@pytest.mark.parametrize(
    ("dataset", "arguments", "error", "message"),
    [
        (lambda d: d.repeat(), {}, DataError, r"infinite dataset.*dataset.take\(n\)"),
        (lambda d: d.filter(lambda _: True), {}, DataError, r"assert_cardinality\(n\)"),
        (lambda d: d.take(0), {}, DataError, "x has no examples"),
        (lambda d: d.take(1), {"y": [1]}, DataError, r"tf.data.Dataset.zip\(\(x, y\)\)"),
        (lambda d: d, {"seed": 1}, UnsupportedError, "can only be read from its beginning"),
        (lambda d: d.map(_sparse), {}, DataError, "x is a dataset with SparseTensorSpec"),
        (lambda d: d.shuffle(3), {}, DataError, r"order changes \(ShuffleDataset\)"),
        (lambda d: d.shuffle(3, seed=1).map(lambda i: i), {}, DataError, "reshuffle_each_itera"),
        (
            lambda d: d.map(lambda i: i, num_parallel_calls=2, deterministic=False),
            {},
            DataError,
            r"order changes \(ParallelMapDataset\)",
        ),
        (
            lambda d: d.shuffle(3, reshuffle_each_iteration=False),
            {},
            DataError,
            "shuffle it the same way",
        ),
    ],
)
@pytest.mark.usefixtures("_initialized")
def test_datasets_that_can_not_be_sharded(
    dataset: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tfddl.shard_dataset(dataset(tf.data.Dataset.range(5)), batch_size=2, **arguments)


@pytest.mark.usefixtures("_initialized")
def test_a_dataset_that_shuffles_alike_each_time_is_taken() -> None:
    dataset = tf.data.Dataset.range(9).shuffle(9, seed=3, reshuffle_each_iteration=False)
    expected = [int(i) for i in dataset]
    assert expected != sorted(expected)
    mine = tfddl.shard_dataset(dataset, batch_size=4)
    assert flat(list(mine)) == flat(list(mine)) == expected


def test_padding_examples_of_datasets_and_files() -> None:
    plan = GlobalPlan(num_examples=4, size=3, batch_size=1)
    loaded = table(list(range(4)), loaded=True)
    for source, transforms in (
        (DatasetSource(_squares(4)), Transforms()),
        (loaded, Transforms(load=lambda i: (np.int64(i), {"square": i * i}))),
    ):
        ranks = shards(plan, source, transforms)
        weights = [[float(w[0]) for _, _, w in dataset] for _, dataset in ranks]
        assert weights == [[1, 1], [1, 1], [0, 0]]


def test_workers_train_on_every_example_once(groups: Groups) -> None:
    of_ranks = groups(2).run("tests.cases.data_sources:seen_in", epochs=2)
    for kind in of_ranks[0]:
        # 23 examples in batches of up to 8 are 3 steps, of 12 and 11 in blocks as well.
        assert [len(found[kind]) for found in of_ranks] == [6, 6]
        for steps in (slice(0, 3), slice(3, 6)):
            seen = [i for found in of_ranks for batch in found[kind][steps] for i in batch]
            assert sorted(seen) == list(range(23)), kind
    first = of_ranks[0]
    assert first["files"][:3] != first["files"][3:]
    blocks = [{i for batch in found["block of a dataset"] for i in batch} for found in of_ranks]
    assert blocks == [set(range(12)), set(range(12, 23))]


class _Squares:
    """As `grain.MapDataset`: examples by their number, and no array."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([index]), np.array(index**2)


@pytest.mark.usefixtures("_initialized")
def test_what_returns_examples_needs_no_load() -> None:
    batches = list(tfddl.shard_dataset(_Squares(), batch_size=3, seed=1))
    assert sorted(int(i) for x, _ in batches for [i] in x) == list(range(7))
    for x, y in batches:
        np.testing.assert_array_equal(np.square(x)[:, 0], y)

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

    with pytest.raises(UnsupportedError, match="x is a Batches, a PyDataset, which returns batch"):
        tfddl.shard_dataset(Batches(), batch_size=3)
