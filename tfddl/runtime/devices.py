"""TensorFlow's threads, GPUs and strategy, which can be set up only once."""

import logging
from collections.abc import Callable

import tensorflow as tf

from tfddl.cluster import Cluster
from tfddl.errors import StartError
from tfddl.runtime.options import Options
from tfddl.transport import Collective

TOO_LATE = (
    "Operations of TensorFlow have run before, and devices and collectives can't be set up "
    "afterwards. HINT: move tfddl.init() to the top of the script, before any model, tensor or "
    "dataset is made"
)

_LOG = logging.getLogger("tfddl")


def choose_collective(asked: Collective | None, *, num_gpus: int, local_size: int) -> Collective:
    """NCCL where there are GPUs, RING on CPUs, or as asked.

    Raises:
        StartError: NCCL without a GPU, or more workers on this host than GPUs.
    """
    if asked is Collective.NCCL and not num_gpus:
        raise StartError(
            'collective="nccl" needs GPUs, but TensorFlow sees none on this host. Use "auto" or '
            '"ring" for CPUs; for GPUs install tensorflow[and-cuda] and check nvidia-smi.'
        )
    if num_gpus and local_size > num_gpus:
        raise StartError(
            f"{local_size} workers run on this host, but TensorFlow sees {num_gpus} GPUs; every "
            f"worker needs one of its own. Start at most {num_gpus} workers here, or set "
            'CUDA_VISIBLE_DEVICES="" to train on CPUs.'
        )
    return asked or (Collective.NCCL if num_gpus else Collective.RING)


def operations_have_run() -> bool:
    """Whether TensorFlow has run an operation in this process, after which its servers can't start.

    TensorFlow has no function that tells; but numbers of threads can't be changed then, either.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads + 1)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        return True
    return False


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
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.set_visible_devices(gpus[cluster.local_rank], "GPU")
    except RuntimeError as error:
        raise StartError(TOO_LATE) from error


def make_strategy(cluster: Cluster, collective: Collective) -> tf.distribute.Strategy:
    """The `MultiWorkerMirroredStrategy` of the job; for one worker, TensorFlow's default.

    Raises:
        StartError: A TensorFlow operation ran before.
    """
    if cluster.size == 1:
        # TensorFlow's default. Under any other, Keras fails where a single worker accumulates
        # gradients, or runs several steps at once.
        return tf.distribute.get_strategy()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        rpc_layer="grpc",
    )
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation[collective.name]
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver, communication_options=options
        )
    except RuntimeError as error:
        raise StartError(TOO_LATE) from error
