"""`tfddl.ray.RayExecutor`: workers as actors of Ray, which keep their state between calls."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from tfddl._src.engines.ray_options import RaySettings, WorkerResources, choose_bundles, import_ray
from tfddl._src.engines.ray_placement import Probe, await_group, probe_host, worker_environments
from tfddl._src.engines.ray_worker import Worker
from tfddl._src.remote_call.pickling import Answer, Call, dump_call, dump_failure, load_exception
from tfddl.errors import LaunchError

# What the other ranks get to return, after one has failed; then all are ended.
_RETURN_S = 10.0


class RayExecutor:
    """Runs functions on workers that are actors of Ray, with Horovod's methods.

    `start` places the workers and starts their processes; each function then runs in all of them at
    once, and calls `tfddl.init` where it needs it (once is enough: processes, and what they hold,
    stay until `shutdown`). Ray shows their output in the driver, with the rank.

    Usage::

        executor = tfddl.ray.RayExecutor(num_workers=4)
        executor.start()
        results = executor.run(train, args=(3,))  # in the order of ranks
        executor.shutdown()
    """

    def __init__(  # noqa: PLR0913 - Horovod's signature
        self,
        settings: RaySettings | None = None,
        num_workers: int | None = None,
        num_hosts: int | None = None,
        num_workers_per_host: int = 1,
        cpus_per_worker: float = 1,
        use_gpu: bool = False,
        gpus_per_worker: float | None = None,
        use_current_placement_group: bool = True,
    ) -> None:
        """Starts nothing yet.

        Args:
            settings: Times.
            num_workers: Workers in all, placed as close together as Ray can (PACK).
            num_hosts: Instead, the number of hosts, which all differ (STRICT_SPREAD).
            num_workers_per_host: Then the workers of each.
            cpus_per_worker: Ray's CPUs of each worker.
            use_gpu: Whether each worker gets GPUs.
            gpus_per_worker: How many; None is 1.
            use_current_placement_group: Whether the bundles of the placement group are used that
                this process is in, such as that of a Ray Tune trial.

        Raises:
            LaunchError: A number is out of its range, or both or neither of num_workers and
                num_hosts are given; ray isn't installed.
        """
        total = num_workers if num_hosts is None else num_hosts * num_workers_per_host
        if total is None or (num_workers is not None and num_hosts is not None):
            raise LaunchError(
                f"num_workers is {num_workers} and num_hosts {num_hosts}; one of the two is "
                "expected. HINT: num_workers=4, or num_hosts=2 with num_workers_per_host=2"
            )
        gpus = (1 if gpus_per_worker is None else gpus_per_worker) if use_gpu else 0
        if gpus_per_worker and not use_gpu:
            raise LaunchError("gpus_per_worker is given, and use_gpu isn't. HINT: use_gpu=True")
        self._resources = WorkerResources(
            num_workers=total,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus,
            per_host=None if num_hosts is None else num_workers_per_host,
        )
        self._settings = settings or RaySettings()
        self._uses_current_group = use_current_placement_group
        self._ray = import_ray()
        self._own_group: Any = None
        self._actors: list[Any] = []
        self._hosts: list[str] = []

    @classmethod
    def create_settings(
        cls, timeout_s: float | None = None, *, placement_group_timeout_s: float = 100.0
    ) -> RaySettings:
        """The settings that the constructor takes."""
        return RaySettings(timeout_s, placement_group_timeout_s)

    def start(
        self,
        executable_cls: Callable[..., Any] | None = None,
        executable_args: Sequence[Any] | None = None,
        executable_kwargs: Mapping[str, Any] | None = None,
        extra_env_vars: Mapping[str, str] | None = None,
    ) -> None:
        """Places and starts the workers.

        Args:
            executable_cls: A class that each worker makes an object of, for `execute`.
            executable_args: Its positional arguments.
            executable_kwargs: Its arguments by name.
            extra_env_vars: Environment variables for the workers.

        Raises:
            LaunchError: Workers run already; Ray isn't initialized; it has not found the resources
                in time, with what there is; a host has another version of tfddl; an object can't
                be made or pickled.
        """
        if self._actors:
            raise LaunchError("the workers run already. HINT: shutdown() first")
        if not self._ray.is_initialized():
            raise LaunchError("Ray isn't initialized in this process. HINT: ray.init() first")
        try:
            self._start_actors(extra_env_vars or {})
            self._prepare_workers()
            if executable_cls is not None:
                make = Call(
                    executable_cls, tuple(executable_args or ()), dict(executable_kwargs or {})
                )
                self._call_all("make", make)
        except BaseException:
            self.shutdown()
            raise

    def run(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Calls a function on all workers, and returns the results in rank order.

        Raises:
            LaunchError: `start` wasn't called; function or result can't be pickled; a worker
                failed: the message has its rank, host and traceback, and its exception is the
                cause. Workers that don't return within 10 s after that are ended, all of them.
        """
        return self._call_all("call", Call(fn, tuple(args or ()), dict(kwargs or {})))

    def run_remote(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Calls a function on all workers without waiting: an ObjectRef per rank, for `ray.get`.

        Raises:
            LaunchError: `start` wasn't called, or the function can't be pickled.
        """
        data = dump_call(Call(fn, tuple(args or ()), dict(kwargs or {})))
        return [actor.call_plainly.remote(data) for actor in self._running()]

    def execute(self, fn: Callable[[Any], Any]) -> list[Any]:
        """Calls a function with each worker's object (`start`), and returns the results.

        Raises:
            LaunchError: As `run`.
        """
        return self._call_all("execute", Call(fn, (), {}))

    def execute_single(self, fn: Callable[[Any], Any]) -> Any:
        """Calls a function with the object of rank 0, and returns its result.

        Raises:
            LaunchError: As `run`.
        """
        return self._call_all("execute", Call(fn, (), {}), count=1)[0]

    def shutdown(self) -> None:
        """Ends the workers, and gives their resources back to Ray. Twice does nothing."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._hosts = [], []
        if self._own_group is not None:
            self._ray.util.remove_placement_group(self._own_group)
            self._own_group = None

    def _prepare_workers(self) -> None:
        """What workers do before anything of the user is loaded there."""

    def _running(self) -> list[Any]:
        if not self._actors:
            raise LaunchError("no workers run. HINT: start() first; after a failure again")
        return self._actors

    def _start_actors(self, extra: Mapping[str, str]) -> None:
        """Asks each place for its address, then starts an actor there that knows all of them."""
        group, indices = self._place()
        bundles = [index for index in indices for _ in range(self._resources.per_host or 1)]
        found = self._probe_all(group, bundles)
        # Ranks of a host follow each other.
        places = sorted(
            zip(found, bundles, strict=True),
            key=lambda place: [probe.host for probe in found].index(place[0].host),
        )
        self._hosts = [probe.host for probe, _ in places]
        environments = worker_environments(
            [probe for probe, _ in places], timeout_s=self._settings.timeout_s, extra=extra
        )
        for rank, (_, bundle) in enumerate(places):
            variables = environments[rank]
            options = self._options(group, bundle)
            actor = self._ray.remote(Worker).options(**options, runtime_env={"env_vars": variables})
            self._actors.append(actor.remote(rank))

    def _probe_all(self, group: Any, bundles: Sequence[int]) -> list[Probe]:
        probe, wait_s = self._ray.remote(probe_host), self._settings.placement_group_timeout_s
        found = [probe.options(**self._options(group, b)).remote(len(bundles)) for b in bundles]
        try:
            return list(self._ray.get(found, timeout=wait_s))
        except self._ray.exceptions.RayError as error:
            for ref in found:
                self._ray.cancel(ref, force=True)
            raise LaunchError(
                f"Ray can't start workers where it has placed them, within {wait_s:g} s: {error}. "
                "HINT: every node needs tfddl"
            ) from error

    def _options(self, group: Any, bundle: int) -> dict[str, Any]:
        strategies = self._ray.util.scheduling_strategies
        return {
            "num_cpus": self._resources.cpus_per_worker,
            "num_gpus": self._resources.gpus_per_worker,
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=bundle
            ),
        }

    def _place(self) -> tuple[Any, list[int]]:
        """A placement group, once Ray has the resources, and its bundles for the workers.

        Raises:
            LaunchError: it hasn't, within the time; the group that this process is in is too small.
        """
        bundles = self._resources.bundles()
        current = self._ray.util.get_current_placement_group() if self._uses_current_group else None
        if current is not None:
            return current, choose_bundles(current.bundle_specs, bundles)
        return self._make_group(bundles), list(range(len(bundles)))

    def _make_group(self, bundles: list[dict[str, float]]) -> Any:
        strategy = "PACK" if self._resources.per_host is None else "STRICT_SPREAD"
        group = self._own_group = self._ray.util.placement_group(bundles, strategy=strategy)
        await_group(group, bundles, strategy, wait_s=self._settings.placement_group_timeout_s)
        return group

    def _call_all(self, method: str, call: Call, *, count: int | None = None) -> list[Any]:
        data = dump_call(call)
        actors = self._running()[:count]
        try:
            answers, is_stuck = self._gather(actors, method, data)
        except BaseException:  # Ctrl-C: what still runs would be in the way of the next call.
            self.shutdown()
            raise
        failed = {rank: answer for rank, answer in answers.items() if answer.result is None}
        if failed:
            self._raise_first(failed, is_stuck=is_stuck)
        return [cloudpickle.loads(answers[rank].result) for rank in range(len(actors))]

    def _gather(
        self, actors: Sequence[Any], method: str, data: bytes
    ) -> tuple[dict[int, Answer], bool]:
        """The answers by rank, and whether ranks still run so long after one has failed."""
        ranks = {getattr(actor, method).remote(data): rank for rank, actor in enumerate(actors)}
        answers: dict[int, Answer] = {}
        waiting, deadline = list(ranks), math.inf
        while waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            timeout = None if left_s == math.inf else left_s
            done, waiting = self._ray.wait(waiting, num_returns=1, timeout=timeout)
            for ref in done:
                answers[ranks[ref]] = self._answer(ref, ranks[ref])
                if answers[ranks[ref]].result is None:
                    deadline = min(deadline, time.monotonic() + _RETURN_S)
        return answers, bool(waiting)

    def _answer(self, ref: Any, rank: int) -> Answer:
        try:
            answer: Answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            # An actor that was killed says nothing; what Ray knows of it is the reason.
            return dataclasses.replace(dump_failure(error), error=f"{error}\n", at_s=0.0)
        return answer

    def _raise_first(self, failed: Mapping[int, Answer], *, is_stuck: bool) -> None:
        """Raises the root cause; ends workers whose processes are no longer of use."""
        # Ranks that blame a peer come last, whenever they did; clocks of hosts can't be compared.
        rank = min(failed, key=lambda rank: (failed[rank].blames_peer, failed[rank].at_s))
        host = self._hosts[rank]
        text = f"rank {rank} on {host} failed:\n{failed[rank].error}"
        if is_stuck or any(answer.at_s == 0.0 for answer in failed.values()):
            self.shutdown()
            text += "All workers were ended. HINT: start() starts them again"
        raise LaunchError(text) from load_exception(failed[rank].exception)
