"""Horovod on Spark, as scripts import it: `run`; `horovod.spark.keras` has the estimator."""

from tfddl._src.horovod.run_on_spark import run as run

__all__ = ["run"]
