"""The least that an engine does: two workers add up. ``spark`` or ``ray``; prints JSON lines."""

import json
import sys

import tfddl.ray
import tfddl.spark
from tests.engine_training import add_up


def with_spark() -> list[float]:
    from pyspark.sql import SparkSession

    master = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = master.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    results: list[float] = tfddl.spark.run(add_up, num_proc=2)
    session.stop()
    return results


def with_ray() -> list[float]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    executor = tfddl.ray.RayExecutor(num_workers=2, cpus_per_worker=1)
    executor.start()
    results: list[float] = executor.run(add_up)
    executor.shutdown()
    ray.shutdown()
    return results


if __name__ == "__main__":
    found = {"spark": with_spark, "ray": with_ray}[sys.argv[1]]()
    print(json.dumps(["results", found]), flush=True)
