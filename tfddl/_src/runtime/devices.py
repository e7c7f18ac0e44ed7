"""TensorFlow's threads, GPUs and strategy, which can be set up only once."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.cluster import Cluster, PartialCluster
from tfddl._src.comm.process_group import Transport
from tfddl._src.runtime.gpu_discovery import gpu_identity
from tfddl._src.runtime.options import Options
from tfddl.errors import StartError

_VISIBLE = "CUDA_VISIBLE_DEVICES"

_LOG = logging.getLogger("tfddl")

TOO_LATE = (
    "Operations of TensorFlow have run before, and devices and collectives can't be set up "
    "afterwards. HINT: move tfddl.init() to the top of the script, before any model, tensor or "
    "dataset is made"
)


def choose_transport(
    asked: Transport | None, *, num_gpus: int, local_size: int, visible: str | None = None
) -> Transport:
    """NCCL where there are GPUs, RING on CPUs, or as asked.

    A single GPU may be each worker's own: schedulers show each task no other (Slurm's
    ``--gpus-per-task=1``, Ray, Spark, device plugins). Whether it is the same one for two workers
    is found when they join the job: see `tfddl._src.runtime.gpu_discovery.check_gpu_sharing`.

    Args:
        asked: What the user wants, if anything.
        num_gpus: How many GPUs this process sees.
        local_size: How many workers run on this host.
        visible: The value of CUDA_VISIBLE_DEVICES, for messages.

    Raises:
        StartError: NCCL without a GPU, or more workers on this host than GPUs, of which there is
            more than one.
    """
    if asked is Transport.NCCL and not num_gpus:
        raise StartError(
            'collective="nccl" needs GPUs, but TensorFlow sees none on this host. Use "auto" or '
            '"ring" for CPUs; for GPUs install tensorflow[and-cuda] and check nvidia-smi.'
        )
    if 1 < num_gpus < local_size:
        shown = "isn't set" if visible is None else f"is {visible!r}"
        raise StartError(
            f"{local_size} workers run on this host, but TensorFlow sees {num_gpus} GPUs "
            f"({_VISIBLE} {shown}); every worker needs one of its own. HINT: start at most "
            f'{num_gpus} workers here, or set {_VISIBLE}="" to train on CPUs.'
        )
    return asked or (Transport.NCCL if num_gpus else Transport.RING)


def resolve_transport(cluster: Cluster | PartialCluster, options: Options) -> Transport:
    """Which of TensorFlow's collectives this worker would use.

    Raises:
        StartError: See `choose_transport`.
    """
    return choose_transport(
        options.collective,
        num_gpus=len(tf.config.list_physical_devices("GPU")),
        local_size=cluster.local_size or 1,
        visible=os.environ.get(_VISIBLE),
    )


def gpu_of(cluster: Cluster | PartialCluster, num_gpus: int) -> int | None:
    """Which of the GPUs that this process sees is this worker's; None if that isn't known yet."""
    return cluster.local_rank if num_gpus > 1 else 0


def identity_of_gpu(cluster: Cluster | PartialCluster) -> str | None:
    """What tells this worker's GPU from the others of its host, for `check_gpu_sharing`.

    It starts nothing that `tfddl.init()` couldn't change afterwards.

    Returns:
        See `gpu_identity`; None where there is no GPU, or the local rank isn't known.
    """
    gpus = tf.config.list_physical_devices("GPU")
    index = gpu_of(cluster, len(gpus))
    return gpu_identity(index) if gpus and index is not None else None


def operations_have_run() -> bool:
    """Whether TensorFlow has run an operation in this process, after which its servers can't start.

    TensorFlow has no function that tells; but numbers of threads can't be changed then, either.
    """
    # Context.intra_op_parallelism_threads (tensorflow/python/eager/context.py) raises once the
    # context is initialized, but takes the number that it has at any time: hence + 1.
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads + 1)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        return True
    return False


def _warn_of_idle(cluster: Cluster, num_gpus: int) -> None:
    if cluster.local_size > 1 or num_gpus < 2:
        return
    script = sys.argv[0] if sys.argv[0].endswith(".py") else "script.py"
    more = f"tfddlrun -np {num_gpus} python {script}"
    if cluster.size > 1:
        more = f"{num_gpus} workers per host (tfddlrun -H host:{num_gpus},… python {script})"
    _LOG.warning(
        "this host has %d GPUs, but only one worker, which uses one; the others are idle. "
        "HINT: %s uses them all.",
        num_gpus,
        more,
    )


def set_up_threads(cluster: Cluster, options: Options, num_cores: int) -> None:
    """Sets the numbers of TensorFlow's threads, or says that it is too late for that."""
    intra, inter = options.intra_op_threads, options.inter_op_threads
    if intra is None and cluster.local_size > 1:
        intra = num_cores
    if inter is None and cluster.local_size > 1:
        inter = intra  # More than there are cores make each other slower.
    threading = tf.config.threading
    refused = [
        f"{number} within an operation"
        for number in [intra]
        if not _is_set(threading.set_intra_op_parallelism_threads, number)
    ] + [
        f"{number} operations at the same time"
        for number in [inter]
        if not _is_set(threading.set_inter_op_parallelism_threads, number)
    ]
    if refused:
        _LOG.warning(
            "rank %d: operations of TensorFlow ran before tfddl.init(), so that its numbers of "
            "threads stay as they are, instead of %s. HINT: call tfddl.init() first; workers with "
            "more threads than cores of their own make each other slower",
            cluster.rank,
            " and ".join(refused),
        )


def _is_set(setter: Callable[[int], None], number: int | None) -> bool:
    try:
        if number is not None:
            setter(number)
    except RuntimeError:
        return False
    return True


def set_up_gpus(cluster: Cluster) -> None:
    """Lets the memory of GPUs grow, and gives this worker one of its own.

    Raises:
        StartError: A TensorFlow operation ran before.
    """
    gpus = tf.config.list_physical_devices("GPU")
    _warn_of_idle(cluster, len(gpus))
    try:
        for gpu in gpus:
            # By default TensorFlow maps nearly all of a GPU's memory at once, of which NCCL, or
            # another worker that shares the GPU, needs some.
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.set_visible_devices(gpus[gpu_of(cluster, len(gpus)) or 0], "GPU")
    except RuntimeError as error:
        raise StartError(TOO_LATE) from error


class JobResolver(tf.distribute.cluster_resolver.SimpleClusterResolver):
    """Tells a strategy of the workers of this job: by it, `make_strategy`'s is told from others."""


def make_strategy(cluster: Cluster, transport: Transport) -> tf.distribute.Strategy:
    """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default.

    Raises:
        StartError: A TensorFlow operation ran before; or TensorFlow doesn't use the GPU.
    """
    if cluster.size == 1:
        # TensorFlow's default. Under any other, Keras fails where a single worker accumulates
        # gradients, or runs several steps at once.
        return tf.distribute.get_strategy()
    num_gpus = len(tf.config.get_visible_devices("GPU"))
    resolver = JobResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        rpc_layer="grpc",
        # Without it, TensorFlow takes the CPU, whatever is visible (`_initialize_local_devices` in
        # collective_all_reduce_strategy.py).
        num_accelerators={"GPU": num_gpus} if num_gpus else None,
    )
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation[transport.name]
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver, communication_options=options
        )
    except RuntimeError as error:
        raise StartError(TOO_LATE) from error
    check_strategy_devices(strategy.extended.worker_devices, num_gpus=num_gpus)
    return strategy


def check_strategy_devices(devices: Sequence[str], *, num_gpus: int) -> None:
    """Makes sure that the strategy computes on the one device that this worker has.

    Args:
        devices: The strategy's, of this worker.
        num_gpus: How many GPUs are visible.

    Raises:
        StartError: It doesn't.
    """
    expected = "GPU" if num_gpus else "CPU"
    found = [tf.DeviceSpec.from_string(device).device_type for device in devices]
    if found != [expected]:
        raise StartError(
            f"TensorFlow's strategy computes on {', '.join(devices)}, but this worker has "
            f"{num_gpus or 'no'} visible GPU{'s' * (num_gpus > 1)}: one {expected} was expected. "
            "HINT: tfddl.init() chooses the GPU; don't call tf.config.set_visible_devices as well."
        )
