"""A driver of Ray Train with four CPUs: ``FOLDER``; prints JSON lines."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

import tfddl.ray
from tests.engine_training import columns, train_alone, train_on_ray
from tfddl.errors import TfddlError


def report(part: str, value: object) -> None:
    print(json.dumps([part, value]), flush=True)


def failure(call: Any, *args: Any, **kwargs: Any) -> list[str]:
    try:
        call(*args, **kwargs)
    except (TfddlError, ray.train.TrainingFailedError) as error:
        return [type(error).__name__, str(error)]
    return ["", "no error"]


def make_trainer(folder: str, name: str, num_workers: Any, **more: Any) -> Any:
    """A trainer of `train_on_ray` on the examples as a Ray dataset of several blocks."""
    found = columns()
    rows = [{"x": x, "y": y} for x, y in zip(found["x"], found["y"], strict=True)]
    Path(folder, name).mkdir()
    config = {"folder": f"{folder}/{name}", "rows": True, "ends": more.pop("ends", {})}
    options = {
        "train_loop_config": config,
        "scaling_config": ray.train.ScalingConfig(num_workers=num_workers),
        "run_config": ray.train.RunConfig(
            name=name,
            storage_path=f"{folder}/storage",
            failure_config=ray.train.FailureConfig(max_failures=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=more.pop("callbacks", None),
        ),
        "datasets": {"train": ray.data.from_items(rows, override_num_blocks=5)},
        **more,
    }
    return tfddl.ray.TfddlTrainer(options.pop("train_loop", train_on_ray), **options)


def read_starts(folder: str, name: str) -> list[Any]:
    return [json.loads(p.read_text()) for p in sorted(Path(folder, name).glob("start *"))]


def use_ray_s_iterator(config: dict[str, Any]) -> None:
    ray.train.get_dataset_shard("train").iter_batches()


def fail_on_rank_1() -> None:
    if ray.train.get_context().get_world_rank() == 1:
        raise KeyError("of rank 1")


def search(folder: str) -> list[Any]:
    """Two trials of Ray Tune, each with its own workers."""

    def trial(config: dict[str, Any]) -> None:
        name = f"trial-{config['number']}"
        make_trainer(folder, name, config["number"], callbacks=[TuneReportCallback()]).fit()

    tuner = ray.tune.Tuner(
        trial,
        param_space={"number": ray.tune.grid_search([1, 2])},
        tune_config=ray.tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=1),
        run_config=ray.tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
    )
    found = tuner.fit()
    return [
        [result.metrics["loss"], result.metrics["epoch"], str(result.error)] for result in found
    ]


def main(folder: str, parts: set[str]) -> None:
    """Runs some parts, or all."""

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20
    )

    def wants(part: str) -> bool:
        return not parts or part in parts

    if wants("alone"):
        report("alone", ray.get(ray.remote(train_alone).remote()))
    if wants("killed"):
        ends = {0: ("SIGKILL", [0, 4]), 1: ("ray.kill", [1, 3])}
        result = make_trainer(folder, "killed", 3, ends=ends).fit()
        report("killed", result.return_value)
        report("metrics", result.metrics)
        report("starts", read_starts(folder, "killed"))
        report("kept", [len(result.best_checkpoints), str(result.error)])
        with result.checkpoint.as_directory() as directory:
            report("files", sorted(path.name for path in Path(directory).iterdir()))
    if wants("bad"):
        lock = {"lock": threading.Lock()}
        report("unpicklable", failure(make_trainer, folder, "lock", 1, train_loop_config=lock))
        settings = tfddl.ray.RaySettings(placement_group_timeout_s=1)
        trainer = make_trainer(folder, "many", 5, settings=settings)
        report("too many", failure(trainer.fit))
        trainer = make_trainer(folder, "version", 1)
        trainer.backend_config.version = "0.0.1"
        report("version", failure(trainer.fit))
        never = ray.train.RunConfig(storage_path=f"{folder}/storage")
        trainer = make_trainer(folder, "raised", 2, train_loop=fail_on_rank_1, run_config=never)
        report("raised", failure(trainer.fit))
        trainer = make_trainer(
            folder, "iterator", 1, train_loop=use_ray_s_iterator, run_config=never
        )
        report("iterator", failure(trainer.fit))
    if wants("legacy"):
        from ray.train.tensorflow import TensorflowTrainer

        Path(folder, "legacy").mkdir()
        theirs = TensorflowTrainer(
            train_on_ray,
            train_loop_config={"folder": f"{folder}/legacy", "rows": False, "ends": {}},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=f"{folder}/storage"),
        )
        report("legacy", theirs.fit().return_value)
    if wants("tune"):
        report("tune", search(folder))
    ray.shutdown()


if __name__ == "__main__":
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # It takes one report each time.
    main(sys.argv[1], set(sys.argv[2:]))
