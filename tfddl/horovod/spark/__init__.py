"""Horovod on Spark, as scripts import it: `run`. Estimators aren't here."""

from tfddl._src.horovod.run_on_spark import run as run

__all__ = ["run"]
