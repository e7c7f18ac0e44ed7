"""A Ray driver with two CPUs: ``FOLDER``; prints JSON lines."""

import json
import os
import sys
from typing import Any

import ray

import tfddl.horovod.ray
import tfddl.ray
from tests.engine_training import environment, fail, import_horovod, train
from tfddl import horovod
from tfddl.errors import LaunchError


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value


def report(part: str, value: object) -> None:
    print(json.dumps([part, value]), flush=True)


def failure(call: Any, *args: Any) -> list[str]:
    try:
        call(*args)
    except LaunchError as error:
        return [str(error), repr(error.__cause__)]
    return ["no error"]


def main(folder: str) -> None:
    executor = tfddl.ray.RayExecutor(num_workers=2, cpus_per_worker=1)
    report("too early", failure(executor.start))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    report("not started", failure(executor.run, environment))
    executor.start(Counter, [3], extra_env_vars={"GREETING": "hi"})
    report("results", executor.run(environment, ["TF_CONFIG", "GREETING"]))
    report("remote", ray.get(executor.run_remote(environment, kwargs={})))
    pids = executor.run(os.getpid)
    report(
        "state", [executor.execute(lambda it: it.add(2)), executor.execute(lambda it: it.add(1))]
    )
    report("single", [executor.execute_single(lambda it: it.add(1)), executor.execute(vars)])
    report("error", failure(executor.run, int, ["x"]))
    report("same processes", executor.run(os.getpid) == pids)
    report("two", executor.run(train, [f"{folder}/two"]))
    executor.shutdown()
    settings = tfddl.ray.RayExecutor.create_settings(placement_group_timeout_s=1)
    report("too many", failure(tfddl.ray.RayExecutor(settings, num_workers=3).start))
    executor.start()
    report("killed", failure(lambda: executor.run(train, [f"{folder}/killed"], {"kill_at": 2})))
    report("after", failure(executor.run, environment))
    executor.start(extra_env_vars={"TFDDL_RESTARTS": "1"})
    report("resumed", executor.run(train, [f"{folder}/killed"], {"kill_at": 2}))
    report("raised", failure(executor.run, fail, [folder, "raised"]))
    executor = horovod.ray.RayExecutor(horovod.ray.RayExecutor.create_settings(), num_workers=2)
    executor.start()
    report("horovod", executor.run(import_horovod))
    executor.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
