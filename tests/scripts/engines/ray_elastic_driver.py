"""A driver of Ray Train on a node that stays, and one that comes and goes: ``FOLDER``."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
import ray.train
from ray.cluster_utils import Cluster

import tfddl.ray
from tests.engine_training import train_alone, train_on_ray

TIMEOUT_S = 300
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def await_files(folder: str, names: list[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not all(Path(folder, name).exists() for name in names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{names} in {folder}: {sorted(Path(folder).iterdir())}")
        time.sleep(0.1)


def change_nodes(cluster: Cluster, folder: str) -> None:
    """Takes the second node away while two workers wait in a step, and adds one while one does."""
    await_files(folder, ["waits 0 0", "waits 0 1"])
    (node,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    cluster.remove_node(node, allow_graceful=False)
    await_files(folder, ["waits 1 0"])
    cluster.add_node(**NODE)


def main(folder: str) -> None:
    """Trains with one or two workers."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        ends = {0: ("wait", [0, 3]), 1: ("wait", [1, 2])}
        trainer = tfddl.ray.TfddlTrainer(
            train_on_ray,
            train_loop_config={"folder": folder, "rows": False, "ends": ends},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(1, 2), elastic_resize_monitor_interval_s=1
            ),
            run_config=ray.train.RunConfig(
                name="elastic",
                storage_path=f"{folder}/storage",
                failure_config=ray.train.FailureConfig(max_failures=3),
                worker_runtime_env={"env_vars": {"TMPDIR": folder}},
            ),
        )
        with ThreadPoolExecutor(1) as pool:  # Nodes can be added in the main thread only.
            training = pool.submit(trainer.fit)
            change_nodes(cluster, folder)
            result = training.result(timeout=TIMEOUT_S)
        starts = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("start *"))]
        print(json.dumps(["starts", starts]))
        print(json.dumps(["left", [p.name for p in Path(folder).glob("tfddl-ray-*")]]))
        print(json.dumps(["weights", result.return_value["weights"]]))
        print(json.dumps(["alone", ray.get(ray.remote(train_alone).remote())]))
        ray.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    # Ray may try the old number of workers first, which waits so long for the node that is lost.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # It takes one report each time.
    main(sys.argv[1])
