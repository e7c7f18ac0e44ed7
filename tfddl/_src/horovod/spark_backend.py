"""`horovod.spark.common.backend`: what runs an estimator's function on workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfddl._src.engines.spark import find_context, wait_for_slots
from tfddl._src.horovod import run_on_spark

_LOG = logging.getLogger("tfddl")


class Backend:
    """The base class of what runs a function on workers."""

    def run(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[Any]:
        """Calls a function on all workers; returns the results in rank order."""
        raise NotImplementedError

    def num_processes(self) -> int:
        """The number of workers."""
        raise NotImplementedError


class SparkBackend(Backend):
    """Runs functions by `horovod.spark.run`."""

    def __init__(
        self, num_proc: int | None = None, env: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        """Keeps the arguments.

        Args:
            num_proc: The number of workers; None is one for each slot.
            env: Environment variables for the workers.
            **kwargs: Others of `horovod.spark.run`. Output of workers is in the executors' logs:
                stdout and stderr have no effect, and a warning says so.
        """
        ignored = [name for name in ("stdout", "stderr") if kwargs.pop(name, None) is not None]
        if ignored:
            _LOG.warning(
                "SparkBackend(%s=…) has no effect: the workers' output is in the executors' logs",
                "=…, ".join(ignored),
            )
        self._num_proc = num_proc
        self._env = dict(env or {})
        self._kwargs = kwargs

    def run(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[Any]:
        """Calls a function on the tasks of a barrier stage.

        Raises:
            LaunchError: As of `tfddl.spark.run`.
        """
        return run_on_spark.run(
            fn,
            args=args,
            kwargs=kwargs,
            num_proc=self._num_proc,
            env={**self._env, **(env or {})},
            **self._kwargs,
        )

    def num_processes(self) -> int:
        """The number of workers, once there are slots for them.

        Raises:
            LaunchError: There are fewer slots.
        """
        timeout_s = self._kwargs.get("start_timeout")
        return wait_for_slots(find_context(None), self._num_proc, timeout_s)
