"""Trains by tfddl.spark.KerasEstimator: ``MASTER FOLDER [PART…]``; prints JSON lines."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pyspark.errors import PySparkException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions

import tfddl.spark
from tfddl.errors import TfddlError

NUM_ROWS = 103


def report(part: str, value: object) -> None:
    print(json.dumps([part, value]), flush=True)


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except TfddlError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class Scaled(keras.layers.Layer):
    """A class of a script, which no worker can import."""

    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


def absolute(y: Any, predicted: Any) -> Any:
    return keras.ops.abs(y - predicted)


class Kill(keras.callbacks.Callback):
    """Kills the last rank at steps of the training, each once."""

    def __init__(self, folder: str, steps: list[int]) -> None:
        super().__init__()
        self.folder = folder
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        import tfddl

        done = int(self.model.optimizer.iterations.numpy())
        marker = Path(self.folder, f"killed at {done}")
        if done in self.steps and tfddl.rank() == tfddl.size() - 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((2, 2)), keras.layers.Flatten(), Scaled(), keras.layers.Dense(3, "tanh")]
        + [keras.layers.Dense(1)]
    )


def make_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(NUM_ROWS, 4)).astype("float32")
    return x, x.sum(axis=1), rng.uniform(0.5, 2, NUM_ROWS).astype("float32")


def make_frame(spark: SparkSession) -> DataFrame:
    """Vectors of both kinds, an array, and a text that isn't trained on."""
    rows = [
        (
            Vectors.dense(v) if i % 2 else Vectors.sparse(4, dict(enumerate(map(float, v)))),
            [float(n) for n in v],
            float(label),
            float(weight),
            i >= 90,
            f"row {i}",
        )
        for i, (v, label, weight) in enumerate(zip(*make_rows(), strict=True))
    ]
    return spark.createDataFrame(rows, ["vector", "array", "y", "weight", "late", "text"])


def in_one_process(epochs: int, *, weighted: bool = False, batch_size: int = 15) -> list[float]:
    """What plain Keras makes of the rows, in the order of `tfddl.shard_dataset` with seed 0."""
    from tfddl._src.sharding import GlobalPlan

    x, y, weight = make_rows()
    model = make_model()
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    plan = GlobalPlan(num_examples=NUM_ROWS, size=1, batch_size=batch_size, seed=0)
    for epoch in range(epochs):
        for step in range(plan.steps):
            i = plan.batch(epoch=epoch, step=step, rank=0).indices
            model.train_on_batch(x[i].reshape(-1, 2, 2), y[i], weight[i] if weighted else None)
    return weights_of(model)


def weights_of(model: keras.Model) -> list[float]:
    return [float(value) for weights in model.get_weights() for value in weights.ravel()]


def make_estimator(folder: str, **more: Any) -> tfddl.spark.KerasEstimator:
    given: dict[str, Any] = {
        "model": make_model(),
        "optimizer": keras.optimizers.Adam(0.01),
        "loss": "mse",
        "metrics": [absolute],
        "feature_cols": ["vector"],
        "label_cols": ["y"],
        "batch_size": 5,
        "epochs": 2,
        "num_proc": 3,
        "store": tfddl.spark.Store.create(folder),
        "verbose": 0,
    }
    return tfddl.spark.KerasEstimator(**{**given, **more})


def train_exactly(spark: SparkSession, folder: str) -> None:
    df = make_frame(spark)
    fitted = make_estimator(folder, run_id="exact").fit(df)
    report("exact", [weights_of(fitted.getModel()), in_one_process(2)])
    report("history", fitted.getHistory())
    report("again", make_estimator(folder, run_id="exact", epochs=1).fit(df).getHistory())
    report("left", sorted(str(p.relative_to(folder)) for p in Path(folder).glob("*/*/*")))
    predicted = fitted.setOutputCols(["found"]).transform(df)
    report("columns", predicted.columns)
    report("texts", [row["text"] for row in predicted.collect()])
    expected = fitted.getModel().predict(make_rows()[0].reshape(-1, 2, 2), verbose=0)
    report("predicted", [[row["found"] for row in predicted.collect()], expected[:, 0].tolist()])


def kill_workers(spark: SparkSession, folder: str) -> None:
    """A killed worker, its restart, another one, and a call that goes on where the first failed."""
    estimator = make_estimator(
        folder,
        run_id="killed",
        sample_weight_col="weight",
        callbacks=[Kill(folder, [4, 9])],
        save_every_steps=1,
        max_restarts=1,
    )
    report("failed", failure(lambda: estimator.fit(make_frame(spark))))
    report("kept", sorted(path.name for path in Path(folder).glob("intermediate*")))
    fitted = estimator.fit(make_frame(spark).orderBy("text"))  # Isn't asked for its rows.
    report("killed", [weights_of(fitted.getModel()), in_one_process(2, weighted=True)])
    report("removed", sorted(path.name for path in Path(folder).glob("intermediate*")))


def save_and_load(spark: SparkSession, folder: str) -> None:
    """Two inputs and outputs, validation by a column, within a Pipeline; saved and loaded."""
    df = make_frame(spark)
    inputs = {"array": keras.Input((2, 2)), "vector": keras.Input((4,))}
    both = keras.layers.concatenate([keras.layers.Flatten()(inputs["array"]), inputs["vector"]])
    outputs = [keras.layers.Dense(1)(both), keras.layers.Dense(4)(Scaled()(both))]
    estimator = make_estimator(
        folder,
        model=keras.Model(list(inputs.values()), outputs),
        feature_cols=list(inputs),
        label_cols=["y", "vector"],
        metrics=None,
        validation="late",
        num_proc=2,
    )
    pipeline = Pipeline(stages=[estimator]).fit(df)
    (fitted,) = pipeline.stages
    report("validated", sorted(fitted.getHistory()))
    pipeline.write().overwrite().save(f"{folder}/pipeline")
    (loaded,) = PipelineModel.load(f"{folder}/pipeline").stages
    report("loaded", [weights_of(loaded.getModel()), weights_of(fitted.getModel())])
    report("optimizer", [float(v) for v in loaded.getModel().optimizer.variables[:2]])
    rows = loaded.transform(df).select("y__output", "vector__output")
    report("types", [field.dataType.simpleString() for field in rows.schema.fields])
    report("row", [rows.first()[0], list(map(float, rows.first()[1]))])
    x = make_rows()[0][:1]
    expected = fitted.getModel().predict([x.reshape(-1, 2, 2), x], verbose=0)
    report("expected", [values[0].tolist() for values in expected])
    nulls = df.withColumn("array", functions.transform("array", lambda v: functions.nullif(v, v)))
    try:
        loaded.transform(nulls).collect()
        report("nulls within", "no error")
    except PySparkException as error:
        report("nulls within", str(error))
    estimator.save(f"{folder}/estimator")
    read = type(estimator).load(f"{folder}/estimator")
    report("estimator", [read.uid == estimator.uid, read.getEpochs(), read.getFeatureCols()])


def read_parquet(spark: SparkSession, folder: str) -> None:
    make_frame(spark).drop("text").write.parquet(f"{folder}/data")
    model = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(1)])  # Isn't built.
    store = tfddl.spark.Store.create(folder, train_path=f"{folder}/data", save_runs=False)
    given = {"model": model, "store": store, "num_proc": 1, "validation": None, "metrics": None}
    estimator = make_estimator(folder, **given, random_seed=3)
    fitted = estimator.fit_on_parquet({estimator.getParam("epochs"): 1})
    report("parquet", [len(fitted.getHistory()["loss"]), len(weights_of(fitted.getModel()))])


def give_bad_input(spark: SparkSession, folder: str) -> None:
    df = make_frame(spark)

    def fit(**more: Any) -> str:
        return failure(lambda: make_estimator(folder, **more).fit(df))

    report("missing", fit(feature_cols=["vectors"]))
    report("text", fit(label_cols=["text"]))
    report("too many", fit(num_proc=4, start_timeout=1))
    report("nothing", fit(model=None, feature_cols=None))
    report("lock", fit(callbacks=[keras.callbacks.LambdaCallback(lock=threading.Lock())]))
    report("part", fit(validation=1.5))
    report("few", failure(lambda: make_estimator(folder).fit(df.limit(2))))
    nulls = df.withColumn("y", functions.when(df.late, None).otherwise(df.y))
    report("nulls", failure(lambda: make_estimator(folder, run_id="nulls").fit(nulls)))
    report("inputs", fit(feature_cols=["vector", "array"], num_proc=1))
    report("left behind", sorted(path.name for path in Path(folder).glob("intermediate*")))


PARTS = {
    "exact": train_exactly,
    "killed": kill_workers,
    "saved": save_and_load,
    "parquet": read_parquet,
    "bad": give_bad_input,
}


def main(master: str, folder: str, *parts: str) -> None:
    spark = SparkSession.builder.master(master).config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    for part in parts or PARTS:
        directory = Path(folder, part)
        directory.mkdir()
        PARTS[part](spark, str(directory))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
