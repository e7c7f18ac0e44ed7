"""`horovod.spark.keras`: the estimator of Keras models."""

try:
    from tfddl._src.horovod.spark_estimator import KerasEstimator as KerasEstimator
    from tfddl._src.horovod.spark_estimator import KerasModel as KerasModel
except ImportError as error:
    raise ImportError(
        "horovod.spark.keras needs pyspark, pyarrow and pandas, and one can't be imported here. "
        f"HINT: pip install 'tfddl[spark]' ({error})"
    ) from None

__all__ = ["KerasEstimator", "KerasModel"]
