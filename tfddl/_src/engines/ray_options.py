"""What `tfddl.ray` asks of Ray: times, resources, bundles of a placement group."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType

from tfddl.errors import LaunchError


@dataclasses.dataclass(frozen=True)
class RaySettings:
    """Times, of `TfddlTrainer` and `RayExecutor`, whose `create_settings` makes one as Horovod's.

    Attributes:
        timeout_s: seconds that workers wait for each other in `tfddl.init()`.
        placement_group_timeout_s: seconds that Ray gets to find the resources.

    Raises:
        LaunchError: one isn't above 0.
    """

    timeout_s: float | None = None
    placement_group_timeout_s: float = 100.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise LaunchError(f"{name} is {value}; it must be above 0 seconds")


@dataclasses.dataclass(frozen=True)
class WorkerResources:
    """What Ray is asked for.

    Attributes:
        num_workers: how many workers.
        cpus_per_worker: Ray's CPUs of each.
        gpus_per_worker: its GPUs.
        per_host: workers of each host, on hosts that all differ; None where Ray may place them
            freely, as close together as it can.

    Raises:
        LaunchError: a number is out of its range.
    """

    num_workers: int
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    per_host: int | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1 or (self.per_host or 1) < 1:
            raise LaunchError(
                f"the number of workers is {self.num_workers}, {self.per_host or 'any number'} per "
                "host; it must be at least 1. HINT: num_workers, or num_hosts and "
                "num_workers_per_host"
            )
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise LaunchError(
                f"cpus_per_worker is {self.cpus_per_worker} and gpus_per_worker "
                f"{self.gpus_per_worker}; they must be 0 or more"
            )

    def of_worker(self) -> dict[str, float]:
        """Ray's resources for one worker."""
        wanted = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: number for name, number in wanted.items() if number}

    def bundles(self) -> list[dict[str, float]]:
        """Those that Ray places each on one host: of a worker, or of all workers of a host."""
        count = self.per_host or 1
        # Ray refuses an empty one; this much is no share of any CPU that could be missed.
        one = {name: number * count for name, number in self.of_worker().items()} or {"CPU": 0.001}
        return [one] * (self.num_workers // count)


def choose_bundles(
    there: Sequence[Mapping[str, float]], wanted: Sequence[Mapping[str, float]]
) -> list[int]:
    """The bundles of a placement group for so many workers, or hosts of workers.

    The last ones that are large enough: the first is that of the process which uses the group (Ray
    Tune's trainable), where it has one.

    Raises:
        LaunchError: there are too few.
    """
    enough = [
        index
        for index, bundle in enumerate(there)
        if all(bundle.get(name, 0) >= number for name, number in wanted[0].items())
    ]
    if len(enough) < len(wanted):
        raise LaunchError(
            f"the placement group of this process has {len(enough)} bundles with "
            f"{dict(wanted[0])}, and the workers need {len(wanted)}: {[dict(b) for b in there]}. "
            "HINT: a larger group, or use_current_placement_group=False"
        )
    return enough[-len(wanted) :]


def import_ray() -> ModuleType:
    try:
        importlib.import_module("ray.util.scheduling_strategies")
        return importlib.import_module("ray")
    except ImportError as error:
        raise LaunchError(
            "tfddl.ray needs ray, which can't be imported here. HINT: pip install 'tfddl[ray]' "
            f"({error})"
        ) from None


def import_ray_train() -> ModuleType:
    import_ray()
    try:
        importlib.import_module("ray.train.v2.api.data_parallel_trainer")
        return importlib.import_module("ray.train")
    except ImportError as error:
        raise LaunchError(
            "this needs Ray Train V2 and Ray Data, which can't be imported here. HINT: pip install "
            f"-U 'ray[train,data]' ({error})"
        ) from None
