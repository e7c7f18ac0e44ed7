"""`tfddl.spark.run`: a function on the tasks of a barrier stage of Spark."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle

from tfddl._src import rendezvous
from tfddl._src.engines.spark_rank import (
    EngineJob,
    exchange_addresses,
    failure_of,
    find_failure,
    run_rank,
)
from tfddl._src.remote_call.pickling import Call, dump_call
from tfddl.errors import LaunchError

if TYPE_CHECKING:
    from pyspark import SparkContext

_LOG = logging.getLogger("tfddl")
_Result = TypeVar("_Result")

# For executors that are still starting; a local master has all that it will have.
_START_S = 60.0
_LOOK_S = 0.5
# A task whose peer has failed waits so long to be ended by Spark for it: the first failure that
# Spark hears of is the one that it reports.
_PEER_S = 5.0
_GPUS = "CUDA_VISIBLE_DEVICES"
# What `SparkContext.setJobGroup` sets.
_PROPERTIES = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")


def run(  # noqa: PLR0913 - Horovod's first arguments
    fn: Callable[..., _Result],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    spark_context: SparkContext | None = None,
    env: Mapping[str, str] | None = None,
    *,
    max_restarts: int = 0,
    start_timeout: float | None = None,
) -> list[_Result]:
    """Calls a function on the tasks of a Spark job, and returns the results in rank order.

    One barrier stage with one worker per task: all run at once, or none does. The worker is a new
    process beside its task, with the GPUs that Spark has given to it; the function calls
    `tfddl.init` there. Its output goes to the executor's log. A worker that fails ends the stage,
    which Spark doesn't start again by itself: ``max_restarts`` does, as a new job of Spark.

    Args:
        fn: The function. What it needs of TensorFlow it imports within.
        args: Its positional arguments, the same on all workers.
        kwargs: Its arguments by name.
        num_proc: The number of workers; None is one for each slot (``spark.task.cpus`` cores of an
            executor).
        spark_context: None is the active one.
        env: Environment variables for the workers, besides those of the executors. With
            CUDA_VISIBLE_DEVICES among them, Spark's GPUs don't count.
        max_restarts: How often all start again when a worker has failed or an executor is lost,
            with TFDDL_RESTARTS=1, 2, …; a training with `tfddl.callbacks.Checkpoint` goes on.
        start_timeout: Seconds that executors have to offer the slots (60), and then workers to call
            `tfddl.init`.

    Returns:
        The results, in rank order.

    Raises:
        LaunchError: There is no pyspark, no active SparkContext, or no slot for a worker; the
            function can't be pickled; executors have another version of tfddl; a worker failed in
            the last attempt: the message has its rank, host and traceback, and its exception is
            the cause, where it can be pickled.
    """
    return call_on_tasks(
        Call(fn, tuple(args), dict(kwargs or {})),
        num_proc=num_proc,
        spark_context=spark_context,
        env=env,
        max_restarts=max_restarts,
        start_timeout=start_timeout,
    )


def call_on_tasks(  # noqa: PLR0913 - what both signatures of `run` have
    call: Call,
    *,
    num_proc: int | None,
    spark_context: SparkContext | None = None,
    env: Mapping[str, str] | None,
    max_restarts: int = 0,
    start_timeout: float | None,
    as_horovod: bool = False,
) -> list[Any]:
    """Makes a call on the tasks of a barrier stage; see `run`."""
    if max_restarts < 0:
        raise LaunchError(f"max_restarts is {max_restarts}; it must be 0 or more")
    context = find_context(spark_context)
    data = dump_call(call)
    name = getattr(call.fn, "__name__", repr(call.fn))
    size = wait_for_slots(context, num_proc, start_timeout)
    restart = 0
    while True:
        job = EngineJob(
            name=f"tfddl-{secrets.token_hex(8)}",
            secret=secrets.token_hex(rendezvous.SECRET_BYTES),
            call=data,
            env=dict(env or {}),
            num_restarts=restart,
            start_timeout_s=start_timeout,
            as_horovod=as_horovod,
        )
        try:
            with _described(context, job.name, f"tfddl: {name} on {size} workers"):
                found = _run_job(context, job, size)
            return [cloudpickle.loads(found[rank]) for rank in range(size)]
        except LaunchError as error:
            if restart == max_restarts:
                raise
            restart += 1
            _LOG.warning("%s\nstarting again (%d of %d)", error, restart, max_restarts)
            wait_for_slots(context, size, start_timeout)  # An executor may be lost.


def _run_job(context: SparkContext, job: EngineJob, size: int) -> dict[int, bytes]:
    """The pickled result of each rank.

    Spark doesn't start a barrier stage again whose tasks return results, as it does others
    (DAGScheduler: "Could not recover from a failed barrier ResultStage").
    """
    ranks = context.parallelize(range(size), size).barrier().mapPartitions(_Task(job))
    try:
        return dict(ranks.collect())
    except Exception as error:
        if failure := find_failure(job, str(error)):
            raise failure from failure.__cause__
        lines = [line for line in str(error).splitlines() if not line.startswith("\tat ")]
        raise LaunchError("Spark has ended the job: " + "\n".join(lines)) from error


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the task of one rank does, in the Python of its executor."""

    job: EngineJob

    def __call__(self, _: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        rank = context.partitionId()
        hosts = [_host(info.address) for info in context.getTaskInfos()]
        gpus = context.resources().get("gpu")
        if _GPUS in self.job.env:  # Of whoever wants none of them, say.
            gpus = None
        ended = run_rank(
            self.job,
            rank=rank,
            addresses=exchange_addresses(rank, hosts, context.allGather),
            env={} if gpus is None else {_GPUS: ",".join(gpus.addresses)},
        )
        if ended.failure is not None:
            if ended.failure.blames_peer:
                time.sleep(_PEER_S)
            raise failure_of(self.job, ended.failure, host=hosts[rank])
        yield rank, ended.results[rank]


def _host(address: str) -> str:
    """Of "host:port"; the port, which is Spark's, may be missing."""
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdigit() else address


def find_context(given: SparkContext | None) -> SparkContext:
    """The context that was given, or the active one.

    Raises:
        LaunchError: There is no pyspark, or none is active.
    """
    try:
        from pyspark import SparkContext
    except ImportError as error:
        raise LaunchError(
            "tfddl.spark needs pyspark, which can't be imported here. HINT: pip install "
            f"'tfddl[spark]' ({error})"
        ) from None
    context = SparkContext._active_spark_context if given is None else given
    if context is None:
        raise LaunchError(
            "there is no active SparkContext in this process. HINT: "
            "SparkSession.builder.getOrCreate() first, or spark_context=…; Spark Connect has none, "
            "and runs no barrier stages of Python functions"
        )
    return context


def wait_for_slots(context: SparkContext, wanted: int | None, timeout_s: float | None) -> int:
    """The number of workers, once there are slots for them: Spark itself would wait for minutes.

    Args:
        context: Whose slots.
        wanted: The number of workers; None is one for each slot.
        timeout_s: How long executors may take to start; None is 60.

    Raises:
        LaunchError: There are fewer slots.
    """
    wait_s = _START_S if timeout_s is None else timeout_s
    if wanted is not None and wanted < 1:
        raise LaunchError(f"num_proc is {wanted}; it must be at least 1")
    if context.master.startswith("local") and not context.master.startswith("local-cluster"):
        wait_s = 0.0
    deadline = time.monotonic() + wait_s
    says_at = time.monotonic() + _PEER_S
    while (slots := _num_slots(context)) < (wanted or 1):
        if time.monotonic() >= deadline:
            cpus = context.getConf().get("spark.task.cpus", "1")
            raise LaunchError(
                f"{wanted or 1} workers were asked for, and {context.master} has {slots} slots of "
                f"spark.task.cpus={cpus}, after {wait_s:g} s. HINT: more executors or cores, or "
                "num_proc=None for as many workers as there are slots"
            )
        if time.monotonic() >= says_at:
            says_at = float("inf")
            _LOG.warning("waiting for executors: %d of %d slots are there", slots, wanted or 1)
        time.sleep(_LOOK_S)
    return wanted or slots


def _num_slots(context: SparkContext) -> int:
    """How many tasks can run at once.

    SparkContext.maxNumConcurrentTasks is what Spark compares a barrier stage with
    (DAGScheduler.checkBarrierStageWithNumSlots); it is in no public API of Python.
    """
    scala = context._jsc.sc()
    return int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))


@contextlib.contextmanager
def _described(context: SparkContext, group: str, text: str) -> Iterator[None]:
    """Jobs that start meanwhile have this description in Spark's UI, and end with this process."""
    before = {name: context.getLocalProperty(name) for name in _PROPERTIES}
    context.setJobGroup(group, text, interruptOnCancel=True)
    try:
        yield
    except BaseException:
        context.cancelJobGroup(group)
        raise
    finally:
        for name, value in before.items():
            context.setLocalProperty(name, value)
