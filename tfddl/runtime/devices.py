"""TensorFlow's threads, GPUs and strategy, which can be set up only once."""

import tensorflow as tf

from tfddl.cluster import Cluster
from tfddl.errors import StartError
from tfddl.runtime.options import Options
from tfddl.transport import Collective

_TOO_LATE = (
    "tfddl.init() has to come before the first TensorFlow operation of the process, because "
    "threads, devices and collectives can't be set up afterwards. Move it to the top of the "
    "script, before any model, tensor or dataset is made."
)


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


def set_up_devices(cluster: Cluster, options: Options, num_cores: int) -> Collective:
    """Sets up threads and GPUs; returns which collectives TensorFlow is to use.

    Raises:
        StartError: A TensorFlow operation ran before; or see `choose_collective`.
    """
    gpus = tf.config.list_physical_devices("GPU")
    collective = choose_collective(
        options.collective, num_gpus=len(gpus), local_size=cluster.local_size
    )
    intra, inter = options.intra_op_threads, options.inter_op_threads
    if intra is None and cluster.local_size > 1:
        intra = num_cores
    if inter is None and cluster.local_size > 1:
        inter = intra  # More than there are cores make each other slower.
    try:
        if intra is not None:
            tf.config.threading.set_intra_op_parallelism_threads(intra)
        if inter is not None:
            tf.config.threading.set_inter_op_parallelism_threads(inter)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.set_visible_devices(gpus[cluster.local_rank], "GPU")
    except RuntimeError as error:
        raise StartError(_TOO_LATE) from error
    return collective


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
        raise StartError(_TOO_LATE) from error
