"""Spark ML's interface of a training: `KerasEstimator`, and `KerasModel`, which predicts.

* `estimator`, `model`: the two, with their parameters (`params`); `persistence` saves them.
* `store`: directories for data, checkpoints and logs that driver and executors reach.
* `dataset`: a DataFrame as Parquet files in the store, and what its columns are.
* `training`: what the workers do, started by `tfddl._src.engines.spark`.
* `pickling`: Keras objects as bytes.

Importing `params`, and what imports it, needs pyspark.
"""
