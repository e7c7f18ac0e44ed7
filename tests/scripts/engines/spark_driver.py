"""A Spark application with two executors, or local: ``MASTER FOLDER``; prints JSON lines."""

import json
import sys

from pyspark.sql import SparkSession

import tfddl.horovod.spark
import tfddl.spark
from tests.engine_training import environment, fail, import_horovod, train
from tfddl import horovod
from tfddl.errors import LaunchError


def report(part: str, value: object) -> None:
    print(json.dumps([part, value]), flush=True)


def failure(*args: object, **more: object) -> list[str]:
    try:
        tfddl.spark.run(*args, **more)  # type: ignore[arg-type]
    except LaunchError as error:
        return [str(error), repr(error.__cause__)]
    return ["no error"]


def main(master: str, folder: str) -> None:
    spark = SparkSession.builder.master(master).config("spark.ui.enabled", "false").getOrCreate()
    context = spark.sparkContext
    context.setLogLevel("OFF")
    names = ("TF_CONFIG", "TFDDL_RESTARTS", "GREETING")
    report("results", tfddl.spark.run(environment, names, num_proc=2, env={"GREETING": "hi"}))
    jobs = context._jsc.sc().statusStore().jobsList(None)
    report("description", jobs.head().description().get())
    report("horovod", horovod.spark.run(import_horovod, num_proc=2))
    report("too many", failure(environment, num_proc=3, start_timeout=1))
    report("one", tfddl.spark.run(train, (f"{folder}/one",), num_proc=1))
    killed = (f"{folder}/killed",)
    report("killed", tfddl.spark.run(train, killed, {"kill_at": 2}, num_proc=2, max_restarts=1))
    report("raised", failure(fail, (folder, "raised"), num_proc=2, max_restarts=1))
    report("end", failure(fail, (folder, "killed"), num_proc=2))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
