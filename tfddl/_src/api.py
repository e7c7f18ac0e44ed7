"""`init`, `shutdown`, ranks and sizes of this process, and the strategy."""

import os
from enum import StrEnum
from typing import TypeVar

import tensorflow as tf

from tfddl._src import runtime
from tfddl._src.cluster import detect, read_cores, read_secret, read_start_timeout
from tfddl._src.comm.process_group import InterHostTransport, Transport
from tfddl._src.heartbeat import ProgressPage
from tfddl._src.launcher.exposure import TRUSTED_NETWORK
from tfddl._src.virtual_workers import check_virtual_workers
from tfddl.errors import StartError

T = TypeVar("T", bound=StrEnum)

_DEADLOCK_TIMEOUT_S = 600.0


def init(  # noqa: PLR0913 - the settings of a job, all by name
    *,
    collective: str = "auto",
    between_hosts: str = "auto",
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
    timeout_s: float | None = 600.0,
    start_timeout_s: float | None = None,
    stall_warning_s: float = 60.0,
) -> None:
    """Starts tfddl. All ranks must call it.

    Reads the cluster from the environment that the launcher or engine has made (TF_CONFIG,
    torchrun, MPI, SageMaker, Slurm, Kubeflow); a script that was started by itself is a job of one
    worker. Connects to the other workers, compares options with them, sets the numbers of threads,
    lets GPU memory grow, and gives each local rank a GPU of its own. Called again with the same
    options it does nothing.

    Call it first in a script. After TensorFlow operations, numbers of threads can't be set any
    more, which is logged once, and TensorFlow's collectives (RING and NCCL) can't start.

    TensorFlow's server starts only for these and for `strategy`. It listens on all network
    interfaces and runs what any client sends: let only the hosts of the job reach the ports of
    TF_CONFIG.

    Args:
        collective: What tensors travel through: "ring" (TensorFlow's for CPUs), "nccl"
            (TensorFlow's for GPUs), or "auto": NCCL where there are GPUs, otherwise shared memory
            within a host, and `between_hosts`.
        between_hosts: What tensors travel through between CPU hosts: "tcp", tfddl's own
            connections, on ports that the system chooses; "ring", TensorFlow's collectives, on the
            ports of TF_CONFIG; or "auto": TCP where all workers can connect to those of the other
            hosts, otherwise RING, with a warning.
        intra_op_threads: Threads within an operation. None is this worker's number of cores:
            TFDDL_CORES, which `tfddlrun` sets, or the usable cores divided by the local size.
        inter_op_threads: Operations that run at the same time. None leaves it to TensorFlow for
            one worker on a host, and equals ``intra_op_threads`` for several. Graphs with
            collectives that run concurrently, in threads, need one each.
        timeout_s: Seconds after which an operation fails that not all ranks have called; 0 is
            never. None is never for a rank that is busy, and 600 s where ranks wait for each other
            in different operations. A certain deadlock, where no other thread could call what is
            missing, fails within seconds, whatever the timeout.
        start_timeout_s: Seconds after which this stops waiting for the other workers; None is
            ``timeout_s``. TFDDL_START_TIMEOUT in the environment (`tfddlrun --start-timeout`)
            takes precedence.
        stall_warning_s: Seconds after which, and again each time, a rank that waits in an
            operation logs which ranks haven't called it; 0 is never.

    Raises:
        ClusterError: TF_CONFIG, or the variables of another engine, are invalid, or name other
            workers without their addresses; or TFDDL_CORES, TFDDL_START_TIMEOUT or TFDDL_SECRET is
            invalid.
        StartError: TensorFlow's collectives are needed after a TensorFlow operation; an option has
            none of the values above; ``between_hosts="tcp"`` where workers can't connect; NCCL
            without a GPU, or on a GPU that another rank has; more workers on a host than GPUs; a
            port is taken; too few file descriptors; workers that don't connect in time; a number
            is out of range; other options than in an earlier call; or any of these on another
            rank.
        DisagreementError: The ranks have different clusters, or different `collective` or
            `between_hosts`; two processes claim one rank; or only some hosts have GPUs.
        StalledError: Connected ranks don't get as far as this one in time.
        PeerLostError: One of them has ended meanwhile.
    """
    # Here, since it imports Keras: `import tfddl; tfddl.rank` needs none of it.
    from tfddl._src import keras_hooks

    options = runtime.Options(
        collective=_choice("collective", collective, Transport),
        between_hosts=_choice("between_hosts", between_hosts, InterHostTransport),
        intra_op_threads=intra_op_threads,
        inter_op_threads=inter_op_threads,
        timeout_s=timeout_s or 0.0,
        deadlock_timeout_s=_DEADLOCK_TIMEOUT_S if timeout_s is None else timeout_s,
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
    # After the runtime: a start that fails leaves Keras as it was.
    keras_hooks.install()
    if rank() == 0:
        keras_hooks.warn_of_keras_2(os.environ)


def _choice(name: str, value: str, kind: type[T]) -> T | None:
    """The member of an enum with a value; None for "auto"."""
    choices: dict[str, T | None] = {"auto": None, **{choice.value: choice for choice in kind}}
    if value not in choices:
        raise StartError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
    return choices[value]


def shutdown() -> None:
    """Stops tfddl in this process; `init` with the same options starts it again.

    Connections, and TensorFlow's server if it was started, stay until the process ends.
    """
    runtime.stop()


def is_initialized() -> bool:
    """Whether `init` has been called, without `shutdown` since."""
    return runtime.is_started()


def rank() -> int:
    """The rank of this worker, 0 <= rank < size.

    Raises:
        NotInitializedError: `init` has not been called; so do the functions below.
    """
    return runtime.current().cluster.rank


def size() -> int:
    """The number of workers."""
    return runtime.current().cluster.size


def local_rank() -> int:
    """The rank of this worker among the workers of its host."""
    return runtime.current().cluster.local_rank


def local_size() -> int:
    """The number of workers on this host."""
    return runtime.current().cluster.local_size


def cross_rank() -> int:
    """The rank of this host among the hosts that have a worker of this local rank."""
    return runtime.current().cluster.cross_rank


def cross_size() -> int:
    """The number of hosts that have a worker of this local rank."""
    return runtime.current().cluster.cross_size


def strategy(*, virtual_workers: int | None = None) -> tf.distribute.Strategy:
    """The `tf.distribute.MultiWorkerMirroredStrategy` of the job; for one worker, the default one.

    A Keras model built and compiled under its ``scope()``, with a plain Keras optimizer, trains
    with an ordinary `fit`, as one compiled with `tfddl.DistributedOptimizer` does without it.

    The first call starts TensorFlow's server: all ranks must call it together, right after `init`.

    Args:
        virtual_workers: With it, models that are compiled under the scope train in the same bits on
            any number of workers up to this one, as with ``DistributedOptimizer(…,
            virtual_workers=…)``. No server is started then, and nothing but the scope is the
            strategy's: `fit` runs the steps.

    Raises:
        StartError: TensorFlow operations have run before, on some rank; or a port is taken.
        StalledError: Other ranks don't call it in time.
        UnsupportedError: ``virtual_workers`` is less than the number of workers.
    """
    current = runtime.current()
    if virtual_workers is None:
        return current.strategy()
    # Here, since it imports Keras, as in `init`.
    from tfddl._src.keras_hooks.virtual_strategy import VirtualStrategy

    check_virtual_workers(virtual_workers, current.cluster.size)
    return VirtualStrategy(virtual_workers, current.process_group.device)
