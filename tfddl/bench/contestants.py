"""The ways of training that are compared, as a worker lives through them."""

import abc
import gc
import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.cluster import Cluster
from tfddl._src.comm import Collective, ProcessGroup
from tfddl._src.runtime import choose_collective, current
from tfddl.bench import models
from tfddl.bench.calls import Ready, prepare_collective, prepare_sum
from tfddl.bench.line import Line
from tfddl.bench.orders import AUTO, LONE, STRATEGY, Call, Operation
from tfddl.bench.pacer import Pacer, PacerCallback
from tfddl.bench.workloads import Workload
from tfddl.errors import StartError

_MANY_STEPS = 10**7
"""Of an epoch that is ended by an order."""


class Contestant(abc.ABC):
    """One way, in one worker. All workers of a job must call its methods together."""

    label: str
    others: tuple[str, ...] = ()
    transport: ProcessGroup | None = None

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @abc.abstractmethod
    def train(self, workload: Workload, line: Line) -> None:
        """Trains as the orders say, until the one to stop."""

    @abc.abstractmethod
    def prepare(self, order: Call) -> Ready:
        """Makes ready what is to be called."""

    def clean_up(self) -> None:
        """Lets go of what was trained."""
        keras.utils.clear_session()
        gc.collect()

    def _fit(self, workload: Workload, line: Line, optimizer: keras.optimizers.Optimizer) -> None:
        pacer = Pacer(line, transport=self.transport)
        model = models.make_model(workload)
        model.compile(optimizer, loss=models.make_loss(workload))
        pacer.gradient_bytes = models.gradient_bytes(model)
        batch = models.make_batch(workload, self.cluster.rank)
        model.fit(
            tf.data.Dataset.from_tensors(batch).repeat(),
            steps_per_epoch=_MANY_STEPS,
            callbacks=[PacerCallback(pacer)],
            verbose=0,
        )


class Lone(Contestant):
    """Plain Keras, as if there were no others; and what a core makes of a sum in memory."""

    label = "plain Keras"

    def __init__(self, cluster: Cluster, num_threads: int) -> None:
        super().__init__(cluster)
        _set_threads(num_threads)

    def train(self, workload: Workload, line: Line) -> None:
        """See `Contestant.train`."""
        self._fit(workload, line, models.make_optimizer(workload))

    def prepare(self, order: Call) -> Ready:
        """See `Contestant.prepare`."""
        return prepare_sum(order)


class Distributed(Contestant):
    """Keras' `fit` with `tfddl.DistributedOptimizer`."""

    def __init__(self, cluster: Cluster, num_threads: int, *, way: str) -> None:
        super().__init__(cluster)
        tfddl.init(**_init_options(way), intra_op_threads=num_threads)
        self.transport = current().process_group
        self.label = self.transport.name
        self.others = _other_ways(cluster, self.label)

    def train(self, workload: Workload, line: Line) -> None:
        """See `Contestant.train`."""
        optimizer = tfddl.DistributedOptimizer(models.make_optimizer(workload))
        self._fit(workload, line, optimizer)

    def prepare(self, order: Call) -> Ready:
        """See `Contestant.prepare`."""
        return prepare_collective(order, _collective_of_tfddl, size=self.cluster.size)


class PlainStrategy(Contestant):
    """`tf.distribute.MultiWorkerMirroredStrategy` without tfddl, in a loop by hand.

    References:
        "Custom training loop with Keras and MultiWorkerMirroredStrategy", TensorFlow tutorials,
        https://www.tensorflow.org/tutorials/distribute/multi_worker_with_ctl
    """

    label = "TensorFlow's strategy"

    def __init__(self, cluster: Cluster, num_threads: int) -> None:
        super().__init__(cluster)
        _set_threads(num_threads)
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def train(self, workload: Workload, line: Line) -> None:
        """See `Contestant.train`."""
        pacer = Pacer(line, transport=None)
        with self._strategy.scope():
            model = models.make_model(workload)
            optimizer = models.make_optimizer(workload)
            optimizer.build(model.trainable_variables)
        pacer.gradient_bytes = models.gradient_bytes(model)
        loss_fn = models.make_loss(workload)
        x, y = models.make_batch(workload, self.cluster.rank)

        def step() -> None:
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True)) / self._strategy.num_replicas_in_sync
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)

        run = tf.function(lambda: self._strategy.run(step))
        run()
        while pacer.step_ended():
            run()

    def prepare(self, order: Call) -> Ready:
        """See `Contestant.prepare`."""
        return prepare_collective(order, self._collective, size=self.cluster.size)

    def _collective(self, operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
        def of_replica(value: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            if operation is Operation.ALLREDUCE:
                return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)
            if operation is Operation.ALLGATHER:
                return replica.all_gather(value, axis=0)
            # It has no broadcast for tensors.
            mine = value if self.cluster.rank == 0 else tf.zeros_like(value)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        with tf.device(self._strategy.extended.worker_devices[0]):
            placed = tf.identity(tensor)
        return self._strategy.run(of_replica, args=(placed,))


def make_contestant(way: str, cluster: Cluster, num_threads: int) -> Contestant:
    """Starts a way; all workers of a job must call it together.

    Args:
        way: LONE, STRATEGY, or AUTO and the like: see `_init_options`.
        cluster: Who takes part.
        num_threads: Of an operation: the worker's cores.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if way == LONE:
        return Lone(cluster, num_threads)
    if way == STRATEGY:
        return PlainStrategy(cluster, num_threads)
    return Distributed(cluster, num_threads, way=way)


def versions() -> dict[str, str]:
    """Of what is measured."""
    return {
        "tfddl": tfddl.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _collective_of_tfddl(operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
    """As a user calls it."""
    if operation is Operation.ALLREDUCE:
        return tfddl.allreduce(tensor, "sum")
    if operation is Operation.ALLGATHER:
        return tfddl.allgather(tensor)
    return tfddl.broadcast(tensor, 0)


def _init_options(way: str) -> dict[str, Any]:
    """What `tfddl.init` gets in a worker of a way, which may be anything that ``collective`` takes.

    A way with other options of `tfddl.init` has a name of its own here, and `_other_ways` tells
    where it makes a difference.
    """
    return {} if way == AUTO else {"collective": way}


def _other_ways(cluster: Cluster, name: str) -> tuple[str, ...]:
    """What can be chosen in this job, and makes another transport than the one of this name."""
    if cluster.size == 1:
        return ()
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    found = []
    for choice in Collective:
        try:
            choose_collective(choice, num_gpus=num_gpus, local_size=cluster.local_size)
        except StartError:
            continue
        if choice.name != name:
            found.append(choice.value)
    return tuple(found)


def _set_threads(number: int) -> None:
    """As `tfddl.init()` does."""
    tf.config.threading.set_intra_op_parallelism_threads(number)
    tf.config.threading.set_inter_op_parallelism_threads(number)
