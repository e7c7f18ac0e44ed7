"""Flags of the commands that several workers run as one job, and the life of such a job."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

import tfddl
from tfddl._src import startup_logs
from tfddl._src.launcher.environment import is_worker
from tfddl.segmentation.config import BETWEEN_HOSTS, COLLECTIVES, JobConfig

flags.DEFINE_enum(
    "collective",
    "auto",
    COLLECTIVES,
    "[runtime] What tensors travel through: ring (TensorFlow's, CPUs), nccl (TensorFlow's, GPUs), "
    "or auto: NCCL where there are GPUs, otherwise shared memory and --between_hosts.",
)
flags.DEFINE_enum(
    "between_hosts",
    "auto",
    BETWEEN_HOSTS,
    "[runtime] What tensors travel through between CPU hosts: tcp (on ports that the system "
    "chooses), ring (TensorFlow's, on the ports of TF_CONFIG), or auto: TCP where all workers can "
    "connect.",
)
flags.DEFINE_integer(
    "intra_op_threads",
    None,
    "[runtime] Threads within an operation. [default: the worker's number of cores]",
    lower_bound=1,
)
flags.DEFINE_integer(
    "inter_op_threads",
    None,
    "[runtime] Operations that run at the same time. [default: TensorFlow's]",
    lower_bound=1,
)


flags.DEFINE_bool(
    "verbose",
    False,
    "[runtime] Also show all that TensorFlow logs. With tfddlrun, its own --verbose does.",
)

Config = TypeVar("Config", bound=JobConfig)


def run_job(config: Config, load: Callable[[], Callable[[Config], Any]]) -> None:
    """Calls `tfddl.init` as a configuration says, then a function, then `tfddl.shutdown`.

    Args:
        config: The same on every rank.
        load: Imports TensorFlow, and returns what the workers do together.
    """
    with _filtered_stderr(verbose=config.verbose):
        work = load()
        tfddl.init(
            collective=config.collective,
            between_hosts=config.between_hosts,
            intra_op_threads=config.intra_op_threads,
            inter_op_threads=config.inter_op_threads,
        )
        work(config)
        tfddl.shutdown()


def _filtered_stderr(*, verbose: bool) -> contextlib.AbstractContextManager[None]:
    """Hides what TensorFlow logs at its start, where tfddlrun doesn't, and the user wants it."""
    if verbose or is_worker(os.environ) or not startup_logs.are_hidden(os.environ):
        return contextlib.nullcontext()
    return startup_logs.filtered_stderr()
