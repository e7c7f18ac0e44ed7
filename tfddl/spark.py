"""Functions on the tasks of Spark: ``pip install '.[spark]'`` in a checkout.

Usage::

    import tfddl.spark

    results = tfddl.spark.run(train, args=(3,), num_proc=4)  # in the order of ranks
"""

from tfddl._src.engines.spark import run as run

__all__ = ["run"]
