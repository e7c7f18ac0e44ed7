"""The life of a job in this process: `init`, who am I, `shutdown`."""

import os
from enum import StrEnum
from typing import TypeVar

import tensorflow as tf

from tfddl._src import runtime
from tfddl._src.cluster import detect, read_cores, read_secret, read_start_timeout
from tfddl._src.comm import Between, Collective
from tfddl._src.heartbeat import ProgressPage
from tfddl._src.launcher.exposure import TRUSTED_NETWORK
from tfddl.errors import StartError

T = TypeVar("T", bound=StrEnum)

_CIRCLE_TIMEOUT_S = 600.0


def init(  # noqa: PLR0913 - the settings of a job, all by name
    *,
    collective: str = "auto",
    between_hosts: str = "auto",
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
    pieces: int | None = None,
    timeout_s: float | None = 600.0,
    start_timeout_s: float | None = None,
    stall_warning_s: float = 60.0,
) -> None:
    """Starts tfddl. All ranks must call it.

    Reads who takes part from what started the process (see `cluster.detection`: TF_CONFIG,
    torchrun, MPI, SageMaker, Slurm, Kubeflow); a script that was started by itself is a job of one
    worker. Meets the other workers, compares with them, sets the numbers of threads, lets GPU
    memory grow, and gives each local rank a GPU of its own. Called again with the same settings it
    does nothing.

    Call it first in a script. After operations of TensorFlow numbers of threads can't be set any
    more, which is logged once; and its collectives, RING and NCCL, can't start.

    Only these start TensorFlow's server, and `strategy`: it listens on all network interfaces and
    obeys whoever reaches it. Let only the hosts of the job reach the ports of TF_CONFIG then.

    Args:
        collective: By what all workers speak to each other: "ring" (TensorFlow's for CPUs), "nccl"
            (TensorFlow's for GPUs), or "auto": NCCL where there are GPUs, otherwise shared memory
            within a host, and `between_hosts`.
        between_hosts: By what CPU hosts speak to each other: "tcp", streams of tfddl's own, on
            ports that the system chooses; "ring", TensorFlow's collectives, on the ports of
            TF_CONFIG; or "auto": TCP where all workers can reach those of the other hosts,
            otherwise RING, and a warning.
        intra_op_threads: Threads within an operation; None is this worker's share of the cores:
            TFDDL_CORES, which `tfddlrun` sets, or its part of those that the process may use.
        inter_op_threads: Operations at the same time; None leaves it to TensorFlow for one
            worker on a host, and is as many as within an operation for several. Graphs with
            collectives that run at once, in threads, need one for each of them.
        pieces: In how many pieces at once TensorFlow's collectives send what is large, 1 to 16;
            the same on all ranks. None is measured at the start between two hosts, for most of a
            second, otherwise 8; and 1 for NCCL. On three hosts or more another number may round
            sums differently: so it isn't measured there, and a restart computes the same. `python
            -m tfddl.bench.between` measures them all.
        timeout_s: After how many seconds an operation fails for which not all ranks have come; 0
            waits for ever. None waits for ever for a rank that is busy, and 600 s where ranks wait
            for each other in different operations. Where nothing but the operations that they
            wait in could ever come to them, which is a deadlock, these fail within seconds, with
            any timeout.
        start_timeout_s: After how many seconds this gives up waiting for the other workers; None is
            ``timeout_s``. TFDDL_START_TIMEOUT in the environment (`tfddlrun --start-timeout`) comes
            first.
        stall_warning_s: After how many seconds, and again each time, a rank that waits in an
            operation warns of those that haven't come to it; 0 is never.

    Raises:
        ClusterError: TF_CONFIG, or what else tells who takes part, is wrong, or speaks of others
            without saying where they are; or TFDDL_CORES, TFDDL_START_TIMEOUT, TFDDL_SECRET.
        StartError: A TensorFlow operation ran before, and its collectives are needed; a word that
            isn't one of those above; ``between_hosts="tcp"`` where workers can't be reached; NCCL
            without a GPU, or on a GPU that another rank has; more workers on a host than GPUs; a
            port taken; too few file descriptors; workers that don't come in time; a number out of
            range; other settings than in an earlier call; or any of these on another rank.
        DisagreementError: The ranks were told of different clusters, or of different `collective`,
            `between_hosts` or `pieces`; two processes claim one rank; or only some hosts have GPUs.
        StalledError: Ranks that have come don't get as far as this one in time.
        PeerLostError: One of them has ended meanwhile.
    """
    from tfddl._src import keras_hooks

    options = runtime.Options(
        collective=_choice("collective", collective, Collective),
        between_hosts=_choice("between_hosts", between_hosts, Between),
        intra_op_threads=intra_op_threads,
        inter_op_threads=inter_op_threads,
        pieces=pieces,
        timeout_s=timeout_s or 0.0,
        deadlock_timeout_s=_CIRCLE_TIMEOUT_S if timeout_s is None else timeout_s,
        start_timeout_s=read_start_timeout(os.environ) or start_timeout_s,
        stall_warning_s=stall_warning_s,
        trusts_network=bool(os.environ.get(TRUSTED_NETWORK)),
        cores=read_cores(os.environ),
    )
    runtime.start(
        detect(os.environ),
        options,
        ProgressPage.from_environment(os.environ),
        secret=read_secret(os.environ),
    )
    keras_hooks.install()
    if rank() == 0:
        keras_hooks.warn_of_keras_2(os.environ)


def _choice(name: str, word: str, kind: type[T]) -> T | None:
    """What a word stands for; None for "auto"."""
    choices: dict[str, T | None] = {"auto": None, **{choice.value: choice for choice in kind}}
    if word not in choices:
        raise StartError(f"{name} is {word!r}; it must be one of {', '.join(choices)}.")
    return choices[word]


def shutdown() -> None:
    """Ends the use of tfddl in this process; `init` with the same settings takes it up again.

    Connections, and TensorFlow's server if it was started, live until the process ends.
    """
    runtime.stop()


def is_initialized() -> bool:
    """Whether `init` has been called, and `shutdown` not since."""
    return runtime.is_started()


def rank() -> int:
    """The number of this worker, 0 <= rank < size.

    Raises:
        NotInitializedError: `init` has not been called. (So do all of the functions below.)
    """
    return runtime.current().cluster.rank


def size() -> int:
    """The number of workers."""
    return runtime.current().cluster.size


def local_rank() -> int:
    """The number of this worker among those of its host."""
    return runtime.current().cluster.local_rank


def local_size() -> int:
    """The number of workers of this host."""
    return runtime.current().cluster.local_size


def cross_rank() -> int:
    """The number of this host among those that have a worker of this local rank."""
    return runtime.current().cluster.cross_rank


def cross_size() -> int:
    """The number of hosts that have a worker of this local rank."""
    return runtime.current().cluster.cross_size


def strategy() -> tf.distribute.Strategy:
    """The `tf.distribute.MultiWorkerMirroredStrategy` of the job; for one worker, the default one.

    A Keras model made and compiled under its ``scope()``, with a plain Keras optimizer, trains with
    an ordinary `fit`, as one compiled with `tfddl.DistributedOptimizer` does outside of it.

    The first call starts TensorFlow's server: all ranks must make it together, right after `init`.

    Raises:
        StartError: Operations of TensorFlow have run before, on some rank; or a port is taken.
        StalledError: Other ranks don't call it in time.
    """
    return runtime.current().strategy()
