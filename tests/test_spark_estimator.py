"""`tfddl.spark.KerasEstimator`: what needs no Spark, and trainings where it is installed."""

import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import tfddl.spark
from tests.group import ROOT
from tests.test_engines import drive, needs_spark
from tfddl._src.callbacks import Checkpoint
from tfddl._src.estimator import pickling, training
from tfddl._src.estimator.best_model import BestModel
from tfddl._src.estimator.store import Store
from tfddl._src.estimator.training import row_shape
from tfddl.errors import LaunchError, UnsupportedError

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")


@pytest.mark.parametrize(
    ("kind", "path", "uri"),
    [
        ("FilesystemStore", "/mnt/shared/", "file:///mnt/shared"),
        ("FilesystemStore", "/mnt/my ä 20%", "file:///mnt/my ä 20%"),
        ("FilesystemStore", "gs://bucket/a", "gs://bucket/a"),
        ("HDFSStore", "hdfs://host:8020/user/me", "hdfs://host:8020/user/me"),
        ("DBFSLocalStore", "dbfs:/horovod", "file:///dbfs/horovod"),
        ("DBFSLocalStore", "/dbfs/horovod", "file:///dbfs/horovod"),
        ("DBFSLocalStore", "file:///dbfs/horovod", "file:///dbfs/horovod"),
    ],
)
def test_stores_of_paths(kind: str, path: str, uri: str) -> None:
    store = Store.create(path)
    assert type(store).__name__ == kind
    assert store.get_train_data_path("a") == f"{uri}/intermediate_train_data.a"
    assert store.get_val_data_path() == f"{uri}/intermediate_val_data"
    assert store.get_checkpoint_path("a") == f"{uri}/runs/a/checkpoints"
    assert store.get_logs_path("a") == f"{uri}/runs/a/logs"


def test_paths_of_stores_can_be_given_one_by_one() -> None:
    store = tfddl.spark.HDFSStore(
        train_path="/data/train", val_path="hdfs://a/val", save_runs=False
    )
    assert store.get_train_data_path() == "hdfs:///data/train"
    assert store.get_val_data_path() == "hdfs://a/val"
    with pytest.raises(UnsupportedError, match="HDFSStore has neither prefix_path nor runs_path"):
        store.get_runs_path()
    with pytest.raises(UnsupportedError, match="FilesystemStore has no option storage_options;"):
        Store.create("/a", storage_options={})
    with pytest.raises(UnsupportedError, match="'/a' isn't on DBFS"):
        tfddl.spark.DBFSLocalStore("/a")


@needs_pyarrow
def test_files_of_a_store(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "my ä 20% dir")
    file = f"{store.get_runs_path()}/a/note"
    assert not store.exists(file)
    store.write_text(file, "ä")
    assert store.read(file) == "ä".encode()
    store.remove([store.get_runs_path(), store.get_val_data_path()])
    assert [path.name for path in tmp_path.iterdir()] == ["my ä 20% dir"]
    assert list((tmp_path / "my ä 20% dir").iterdir()) == []
    with pytest.raises(UnsupportedError, match="pyarrow.fs can't open 'nowhere://a/runs/a'.*HINT"):
        store.exists("nowhere://a/runs/a")


def test_what_isn_t_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tfddl._src.estimator.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    text = r"KerasEstimator needs pyspark, pyarrow and pandas, .*pip install 'tfddl\[spark\]'"
    with pytest.raises(LaunchError, match=text):
        tfddl.spark.KerasEstimator()


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ((784,), (28, 28, 1), (28, 28, 1)),
        ((), (1,), (1,)),
        ((12,), (None, 3), (4, 3)),
        ((2, 3), (None, None), (2, 3)),
        ((4,), (4,), (4,)),
    ],
)
def test_rows_get_the_shape_of_an_input(
    stored: tuple[int, ...], wanted: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    assert row_shape(stored, wanted) == expected


# Keras' own, where it saves variables of TensorFlow 2.21 with NumPy 2.4.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
def test_keras_objects_travel_with_a_script_s_own_classes() -> None:
    class Scaled(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return 2.0 * inputs

    class Absolute(keras.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.abs(y_true - y_pred)

    model = keras.Sequential([keras.Input((2,)), Scaled(), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    parts = {
        "model": model,
        "optimizer": keras.optimizers.Adam(schedule, weight_decay=0.5),
        "losses": [Absolute(name="own"), "mse"],
        "metrics": {"y": keras.metrics.AUC(num_thresholds=7)},
        "callbacks": [keras.callbacks.EarlyStopping(patience=3)],
    }
    found = pickling.loads(pickling.dumps(parts))
    x = np.ones((3, 2), "float32")
    assert np.array_equal(found["model"](x), model(x))
    assert found["optimizer"].get_config() == parts["optimizer"].get_config()
    assert float(found["losses"][0](np.ones(2), np.zeros(2))) == 1
    assert found["losses"][0].name == "own"
    assert found["metrics"]["y"].num_thresholds == 7
    assert found["callbacks"][0].patience == 3


def test_what_can_t_be_pickled_is_named() -> None:
    callback = keras.callbacks.LambdaCallback(lock=threading.Lock())
    text = "callbacks → .0. → .lock can't be pickled for the workers: it is of type _thread.lock"
    with pytest.raises(LaunchError, match=text):
        pickling.dumps({"loss": "mse", "callbacks": [callback]})


def test_only_stores_that_tensorflow_reaches_get_checkpoints_and_logs() -> None:
    tfddl.init()
    try:
        assert training._is_writable("file:///a/runs/b")
        assert not training._is_writable("nowhere://a/runs/b")
    finally:
        tfddl.shutdown()
    board = keras.callbacks.TensorBoard("mine")
    given: Any = SimpleNamespace(
        callbacks=[board], logs="file:///a b/logs", checkpoints="file:///a b/c", save_every_steps=1
    )
    found = training._callbacks(given, None, True)
    assert [type(callback) for callback in found] == [keras.callbacks.TensorBoard, Checkpoint]
    assert board.log_dir == "/a b/logs"
    assert str(found[1].store.directory) == "/a b/c"
    assert training._callbacks(given, None, False) == []
    given.callbacks = []
    assert len(training._callbacks(given, None, True)) == 2


class _Saves(keras.callbacks.ModelCheckpoint):
    """Saves a text."""

    def write(self, text: str) -> None:
        Path(self.filepath).write_text(text)


def test_the_best_model_outlives_a_start_in_the_store(tmp_path: Path) -> None:
    stored = f"{tmp_path}/store"
    (tmp_path / "a").mkdir()
    callback = _Saves("x.keras")
    BestModel(callback, f"{tmp_path}/a", stored=stored, resumes=False).on_epoch_end(0)
    best = BestModel(callback, f"{tmp_path}/a", stored=stored, resumes=True)
    callback.write("first")
    best.on_train_batch_end(0)
    assert Path(stored, "best.keras").read_text() == "first"
    callback.write("second")
    os.utime(best.path, ns=(1, 1))
    best.on_epoch_end(0)
    for name, resumes in (("b", True), ("c", False), ("d", True)):
        (tmp_path / name).mkdir()
        found = BestModel(callback, f"{tmp_path}/{name}", stored=stored, resumes=resumes).path
        assert found == Path(callback.filepath)
        assert (found.read_text() if found.exists() else None) == (
            "second" if name == "b" else None
        )
    assert list(Path(stored).iterdir()) == []


def _close(found: list[list[float]], tolerance: float) -> bool:
    return found[0] == pytest.approx(found[1], abs=tolerance)


def _drive(tmp_path: Path, part: str) -> dict[str, Any]:
    return drive("spark_estimator_driver.py", "local[3]", str(tmp_path), part, cwd=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_three_tasks_train_as_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "my ä 20% dir"
    folder.mkdir()
    found = _drive(folder, "exact")
    assert _close(found["exact"], 2e-6)
    assert {name: len(values) for name, values in found["history"].items()} == {
        "absolute": 2,
        "loss": 2,
    }
    assert len(found["again"]["loss"]) == 1  # It isn't the end of the first one.
    assert found["again"]["loss"][0] == pytest.approx(found["history"]["loss"][0])
    assert found["left"] == ["runs/exact/logs"]
    assert found["columns"] == ["vector", "array", "y", "weight", "late", "text", "found"]
    assert found["texts"] == [f"row {i}" for i in range(103)]
    assert _close(found["predicted"], 1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    found = _drive(tmp_path, "killed")
    assert re.search(r"LaunchError: rank 2 on .* failed: killed by SIGKILL", found["failed"])
    assert {path.name for path in (tmp_path / "killed").glob("killed at*")} == {
        "killed at 4",
        "killed at 9",
    }
    assert found["kept"] == ["intermediate_train_data.killed"]
    assert _close(found["killed"], 2e-6)
    assert found["removed"] == []


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_models_are_saved_and_loaded(tmp_path: Path) -> None:
    found = _drive(tmp_path, "saved")
    assert {"loss", "val_loss"} <= set(found["validated"])
    assert found["loaded"][0] == found["loaded"][1]
    assert found["optimizer"] == pytest.approx([18, 0.01])  # 90 rows: 9 steps of 10.
    assert found["types"] == ["double", "vector"]
    assert found["row"][0] == pytest.approx(found["expected"][0][0], abs=1e-5)
    assert found["row"][1] == pytest.approx(found["expected"][1], abs=1e-5)
    assert "DataError: column 'array' has nulls. HINT: fill or drop them" in found["nulls within"]
    assert found["estimator"] == [True, 2, ["array", "vector"]]


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_parquet_files_and_bad_input(tmp_path: Path) -> None:
    found = drive(
        "spark_estimator_driver.py", "local[3]", str(tmp_path), "parquet", "bad", cwd=tmp_path
    )
    assert found["parquet"] == [1, 4 * 2 + 2 + 2 + 1]
    assert "DataError: there is no column 'vectors'; the DataFrame has 'vector'" in found["missing"]
    assert "DataError: column 'text' is of type string; expected numbers" in found["text"]
    assert "LaunchError: 4 workers were asked for, and local[3] has 3 slots" in found["too many"]
    assert "KerasEstimator needs model, feature_cols. HINT" in found["nothing"]
    assert re.search("LaunchError: callbacks.*lock can't be pickled for the workers", found["lock"])
    assert "validation is 1.5; expected a part of the rows" in found["part"]
    assert "has 2 rows, fewer than 3 workers" in found["few"]
    assert re.search(r"column 'y' has \d+ nulls in .*HINT: fill or drop them", found["nulls"])
    assert "the model has 1 inputs, and there are 2 feature_cols: vector, array" in found["inputs"]
    assert found["left behind"] == []


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_a_script_of_horovod_s_runs_unedited(tmp_path: Path) -> None:
    script = ROOT / "tests/scripts/horovod/spark_keras_estimator.py"
    start = (
        "import runpy, sys, tfddl.horovod; tfddl.horovod.install(keras2=True); "
        f"sys.argv[:] = [{str(script)!r}, {str(tmp_path)!r}]; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names, rate, right = done.stdout.splitlines()[-3:]
    assert names.startswith("['accuracy', 'hits', 'loss'] [0.")
    assert rate == "learning rate 0.02"
    assert int(right.split()[1]) > 120
    assert right.split()[2] == "vector"
    assert "SparkBackend(stdout=…, stderr=…) has no effect" in done.stderr
