"""`horovod.spark.common.backend`: what runs an estimator's workers."""

from tfddl._src.horovod.spark_backend import Backend as Backend
from tfddl._src.horovod.spark_backend import SparkBackend as SparkBackend

__all__ = ["Backend", "SparkBackend"]
