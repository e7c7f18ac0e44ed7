"""`tfddl.ray.TfddlTrainer`: Ray Train's workers, with tfddl between them. Imports ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tfddl import __version__
from tfddl._src.engines.ray_options import RaySettings
from tfddl._src.engines.ray_placement import await_group, probe_host, worker_environments
from tfddl._src.engines.ray_rows import DatasetRows, read_rows
from tfddl._src.remote_call.pickling import Call, dump_call
from tfddl.errors import LaunchError


class TfddlTrainer(DataParallelTrainer):
    """Ray Train's trainer whose workers are a job of tfddl.

    The function runs in each worker, and calls `tfddl.init` there; in it are `ray.train.report`,
    `ray.train.get_context` and the rest of Ray Train. Ray places the workers, starts all of them
    again after a failure (`FailureConfig`), and with others where nodes come and go
    (``num_workers=(1, 4)``); with `tfddl.ray.ReportCheckpoint` the training then resumes within
    the epoch. Needs Ray Train V2, which is the default from ray 2.51 on.

    Usage::

        def train(config):
            tfddl.init()
            rows = ray.train.get_dataset_shard("train")
            data = tfddl.shard_dataset(rows["x"], rows["y"], batch_size=32, seed=1)
            ...
            model.fit(data, callbacks=[tfddl.ray.ReportCheckpoint(save_every_steps=100)])

        trainer = tfddl.ray.TfddlTrainer(
            train,
            scaling_config=ray.train.ScalingConfig(num_workers=4),
            run_config=ray.train.RunConfig(
                storage_path="s3://bucket/runs",
                failure_config=ray.train.FailureConfig(max_failures=3),
            ),
            datasets={"train": ray.data.read_parquet("s3://bucket/train")},
        )
        result = trainer.fit()
    """

    def __init__(  # noqa: PLR0913 - the arguments of Ray's trainers
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        settings: RaySettings | None = None,
        scaling_config: ScalingConfig | None = None,
        dataset_config: DataConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            train_loop_per_worker: The function; what it needs of TensorFlow it imports within.
            train_loop_config: Its argument, if it takes one.
            settings: Times.
            scaling_config: How many workers, and what each gets.
            dataset_config: How Ray's own iterators divide the datasets. None: nobody divides them
                before `tfddl.shard_dataset` does; the function gets `DatasetRows`.
            run_config: Where results are stored, and what is done about failures.
            datasets: Ray datasets by name.

        Raises:
            LaunchError: Function or config can't be pickled; the message says which object. The
                number of workers is 0, which is Ray's mode without workers.
        """
        _check_pickling(train_loop_per_worker, train_loop_config or {})
        self._settings = settings or RaySettings()
        self._given: dict[str, Any] = dict(datasets or {})
        self._keeps_rows = dataset_config is None
        super().__init__(
            train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=TfddlConfig(self._settings.timeout_s),
            scaling_config=scaling_config,
            dataset_config=_WholeDatasets() if dataset_config is None else dataset_config,
            run_config=run_config,
            datasets=self._given,
        )
        if self.scaling_config.min_workers < 1:
            raise LaunchError(
                f"num_workers is {self.scaling_config.num_workers}; it must be at least 1. HINT: "
                "one worker, num_workers=1, is one process of Ray"
            )

    def fit(self) -> Any:
        """Trains, and returns Ray's `Result`.

        Returns:
            A `ray.train.Result`: ``metrics`` and ``checkpoint`` are those of the last report with a
            checkpoint, ``return_value`` what the function returned on rank 0.

        Raises:
            LaunchError: Ray hasn't the resources within ``placement_group_timeout_s``, with what is
                free.
            DataError: A dataset has no rows, or rows that are no arrays.
            ray.train.WorkerGroupError: Workers failed more often than `FailureConfig` allows; with
                their tracebacks by rank.
            ray.train.ControllerError: Nodes have other versions of tfddl, or none.
        """
        self._await_resources()
        if self._keeps_rows:
            # Before there are workers, which may have all CPUs.
            self.datasets = {
                name: read_rows(name, dataset) for name, dataset in self._given.items()
            }
        try:
            return super().fit()
        finally:
            self.datasets = self._given  # Ray may free the rows.

    def _await_resources(self) -> None:
        """Asks for the workers' resources and gives them back: Ray Train alone waits for ever."""
        scaling = self.scaling_config
        wanted = {"CPU": scaling.num_cpus_per_worker, "GPU": scaling.num_gpus_per_worker}
        wanted = {**wanted, **scaling.additional_resources_per_worker}
        # Ray refuses an empty bundle; this much is no share of any CPU that could be missed.
        one = {name: number for name, number in wanted.items() if number} or {"CPU": 0.001}
        bundles, strategy = [one] * scaling.min_workers, scaling.placement_strategy
        group = ray.util.placement_group(bundles, strategy=strategy)
        try:
            await_group(group, bundles, strategy, wait_s=self._settings.placement_group_timeout_s)
        finally:
            ray.util.remove_placement_group(group)


@dataclasses.dataclass
class TfddlConfig(BackendConfig):
    """What Ray Train's controller needs to make a job of its workers.

    Attributes:
        timeout_s: seconds that workers wait for each other in `tfddl.init()`; None leaves it to
            them.
        version: the driver's version of tfddl.
    """

    timeout_s: float | None = None
    version: str = __version__

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that Ray Train makes, once for each `fit`."""
        return TfddlBackend


class TfddlBackend(Backend):
    """Tells the workers of each start who they are.

    Unlike Ray's backend for TensorFlow it leaves TF_USE_LEGACY_KERAS alone.
    """

    # An attribute of the class: Ray makes one object of it in the driver, and copies that.
    _num_starts = 0

    def on_start(self, worker_group: Any, backend_config: TfddlConfig) -> None:
        """Gives each worker its environment. In Ray Train's controller, after each start.

        Raises:
            LaunchError: a node has another version of tfddl, or none. Ray doesn't try that again.
        """
        count = len(worker_group)
        try:
            probes = worker_group.execute(probe_host, count)
        except ray.exceptions.RayTaskError as error:
            raise LaunchError(
                f"tfddl can't be used where Ray has started workers: {error}. HINT: every node "
                "needs tfddl"
            ) from error
        environments = worker_environments(
            probes,
            timeout_s=backend_config.timeout_s,
            extra={},
            num_restarts=self._num_starts,
            version=backend_config.version,
        )
        self._num_starts += 1
        ray.get(
            [
                worker_group.execute_single_async(rank, _enter_job, variables)
                for rank, variables in enumerate(environments)
            ]
        )


class _WholeDatasets(DataConfig):
    """Gives all workers the same `DatasetRows`."""

    def __init__(self) -> None:
        super().__init__(datasets_to_split=[])

    def configure(
        self, datasets: dict[str, DatasetRows], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DatasetRows]]:
        return [dict(datasets) for _ in range(world_size)]


def _enter_job(variables: Mapping[str, str]) -> None:
    # Ray has started this process before anybody could know its peers' addresses: its environment
    # can't be given to it any more, and `tfddl.init` reads nothing else.
    os.environ.update(variables)


def _check_pickling(fn: Callable[..., Any], config: dict[str, Any]) -> None:
    try:
        ray.cloudpickle.dumps((fn, config))
    except Exception:
        dump_call(Call(fn, (config,), {}))  # Raises an error that names the object.
        raise
