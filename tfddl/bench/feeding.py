"""How fast `shard_dataset` feeds examples, beside tf.data pipelines written by hand.

Images of 128 x 128: JPEG in TFRecord files, JPEG files, and an array in a ``.npy`` file.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
from tfddl.bench.interleave import count_rounds
from tfddl.bench.results import Row
from tfddl.bench.session import Session

_TF_DATA, _SHARD, _LOAD = "tf.data", "shard_dataset", "shard_dataset, load="
_NUM_EXAMPLES, _SHAPE, _NUM_FILES = 2000, (128, 128, 3), 4
_SMOOTH = 16
_BATCH_SIZE, _SHUFFLED = 32, 500

Make = Callable[[], tf.data.Dataset]


def measure_feeding(session: Session) -> list[Row]:
    """Reads epochs in all ways in turns. All ranks, of one machine, must call it together.

    Returns:
        For each format and way the examples per second of all workers, and microseconds of CPU
        time per example; ratio: of the examples per second to those of tf.data.
    """
    size = tfddl.size()
    with ExitStack() as stack:
        made = None
        if tfddl.rank() == 0:
            made = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="tfddl-bench-", dir=session.config.file_dir)
            )
            _make_files(Path(made))
        directory = Path(tfddl.broadcast_object(made))
        batch_size = session.config.batch_size or _BATCH_SIZE
        cases = {key: make() for key, make in _cases(directory, batch_size).items()}
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in cases}
        for dataset in cases.values():  # Makes indices, and fills the page cache.
            _read(dataset)
        for _ in count_rounds(session.config.rounds, "feeding", session.say):
            with session.watching_load():
                for key, dataset in cases.items():
                    tfddl.barrier()
                    taken[key].append(_read(dataset))
        of_ranks = tfddl.allgather_object(taken)
        tfddl.barrier()  # Before rank 0 removes the files.
    rates = {}
    rows = []
    for kind, way in sorted(cases, key=lambda key: key[0]):
        # An epoch takes as long as the slowest rank.
        rounds = list(zip(*(ranks[kind, way] for ranks in of_ranks), strict=True))
        seconds = statistics.median(max(s for s, _ in ranks) for ranks in rounds)
        cpu_s = statistics.median(sum(cpu_s for _, cpu_s in ranks) for ranks in rounds)
        rates[kind, way] = _NUM_EXAMPLES / seconds
        values = {
            "examples_per_s": rates[kind, way],
            "cpu_us": 1e6 * cpu_s / _NUM_EXAMPLES,
            "ratio": rates[kind, way] / rates[kind, _TF_DATA],
        }
        rows.append(Row("feeding", {"format": kind, "by": way, "workers": size}, values))
    return rows


def _make_files(directory: Path) -> None:
    rng = np.random.default_rng(0)
    images = np.empty((_NUM_EXAMPLES, *_SHAPE), np.uint8)
    per_file = _NUM_EXAMPLES // _NUM_FILES
    for first in range(0, _NUM_EXAMPLES, per_file):
        with tf.io.TFRecordWriter(str(directory / f"{first:05}.tfrecord")) as writer:
            for i in range(first, first + per_file):
                # Smooth: JPEG of noise would be larger than the image.
                noise = rng.uniform(0, 255, (_SMOOTH, _SMOOTH, 3))
                images[i] = tf.image.resize(noise, _SHAPE[:2]).numpy()
                jpeg = tf.io.encode_jpeg(images[i]).numpy()
                (directory / f"{i:05}.jpg").write_bytes(jpeg)
                writer.write(jpeg)
    np.save(directory / "images.npy", images)


def _cases(directory: Path, batch_size: int) -> dict[tuple[str, str], Make]:
    """Datasets of batches, by format and way: tf.data's come first."""
    by_hand = _cases_by_hand(directory, batch_size)
    names, auto = _names(directory), tf.data.AUTOTUNE

    def shard(data: Any, **options: Any) -> tf.data.Dataset:
        return tfddl.shard_dataset(data, batch_size=batch_size, seed=1, **options)

    def in_graph(data: Any, function: Callable[[Any], tf.Tensor]) -> tf.data.Dataset:
        def of_batch(batch: tf.Tensor) -> tf.Tensor:
            return tf.map_fn(function, batch, fn_output_signature=tf.uint8)

        return shard(data).map(of_batch, num_parallel_calls=auto).prefetch(auto)

    sharded: dict[tuple[str, str], Make] = {
        ("TFRecord", _SHARD): lambda: in_graph(
            tfddl.open_tfrecords(f"{directory}/*.tfrecord"), _decode
        ),
        ("JPEG", _SHARD): lambda: in_graph(names, _read_image),
        ("JPEG", _LOAD): lambda: shard(list(names), load=_read_image),
        ("npy", _SHARD): lambda: shard(np.load(directory / "images.npy", mmap_mode="r")),
    }
    return by_hand | sharded


def _cases_by_hand(directory: Path, batch_size: int) -> dict[tuple[str, str], Make]:
    rank, size, auto = tfddl.rank(), tfddl.size(), tf.data.AUTOTUNE

    def records() -> tf.data.Dataset:
        # By files, as far as there are some for each worker; every worker reads all otherwise.
        files = tf.data.Dataset.list_files(f"{directory}/*.tfrecord", shuffle=False)
        by_files = size <= _NUM_FILES
        files = files.shard(size, rank) if by_files else files
        found = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=auto)
        found = (found if by_files else found.shard(size, rank)).shuffle(_SHUFFLED)
        return found.map(_decode, num_parallel_calls=auto).batch(batch_size).prefetch(auto)

    def files() -> tf.data.Dataset:
        names = tf.data.Dataset.from_tensor_slices(_names(directory)).shard(size, rank)
        found = names.shuffle(_NUM_EXAMPLES).map(_read_image, num_parallel_calls=auto)
        return found.batch(batch_size).prefetch(auto)

    def rows() -> tf.data.Dataset:
        images = np.load(directory / "images.npy", mmap_mode="r")[rank::size]
        found = tf.data.Dataset.range(len(images)).shuffle(len(images)).batch(batch_size)

        def take(indices: tf.Tensor) -> tf.Tensor:
            taken = tf.numpy_function(lambda i: images[i], [indices], tf.uint8, stateful=False)
            return tf.ensure_shape(taken, (None, *_SHAPE))

        return found.map(take, num_parallel_calls=auto).prefetch(auto)

    return {("TFRecord", _TF_DATA): records, ("JPEG", _TF_DATA): files, ("npy", _TF_DATA): rows}


def _names(directory: Path) -> np.ndarray:
    return np.array(sorted(map(str, directory.glob("*.jpg"))))


def _decode(jpeg: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.io.decode_jpeg(jpeg, channels=3), _SHAPE)


def _read_image(name: tf.Tensor) -> tf.Tensor:
    return _decode(tf.io.read_file(name))


def _read(dataset: tf.data.Dataset) -> tuple[float, float]:
    """Seconds of time, and of CPU time, of an epoch."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in dataset:
        pass
    return time.perf_counter() - began_s, time.process_time() - cpu_s
