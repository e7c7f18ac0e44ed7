"""Strategies of TensorFlow that a script makes by itself, as TensorFlow's and Ray's examples do.

`tf.distribute.MultiWorkerMirroredStrategy()` after `tfddl.init` is `tfddl.strategy()` by another
name: TensorFlow's server can be started only once, whoever asks for it. Models under any other
strategy that is meant for several replicas would train apart from the job, and are refused.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfddl._src.keras_hooks import scope
from tfddl._src.keras_hooks.patching import private, wrap_method
from tfddl._src.runtime import JobResolver, current, is_started
from tfddl.errors import UnsupportedError


def install() -> None:
    """Hooks into `tf.distribute.MultiWorkerMirroredStrategy`."""
    wrap_method(
        tf.distribute.MultiWorkerMirroredStrategy,
        "__init__",
        ("cluster_resolver", "communication_options"),
        _init,
    )


def refuse_other_strategies(model: Any) -> None:
    """Refuses a model that was made under a strategy other than the job's.

    Raises:
        UnsupportedError: A `MultiWorkerMirroredStrategy` of before `tfddl.init`, or a
            `MirroredStrategy`, in a job of several workers.
    """
    strategy = private(model, "_distribute_strategy")
    if not is_started() or current().cluster.size == 1 or scope.is_job_strategy(strategy):
        return
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise UnsupportedError(
            "The model was made under a tf.distribute.MultiWorkerMirroredStrategy that isn't "
            "this job's: it was made before tfddl.init(). HINT: call tfddl.init() first; after it, "
            "MultiWorkerMirroredStrategy() is the same as tfddl.strategy()."
        )
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        raise UnsupportedError(
            "The model was made under a tf.distribute.MirroredStrategy, which knows the devices of "
            f"its own process only: each of the {current().cluster.size} workers would train by "
            "itself. HINT: make it under tfddl.strategy().scope(), which trains on all of them; or "
            "under no strategy, and compile it with tfddl.DistributedOptimizer(…)."
        )


def _init(
    original: Callable[..., None],
    self: Any,
    cluster_resolver: Any = None,
    communication_options: Any = None,
) -> None:
    is_own = isinstance(cluster_resolver, JobResolver)
    if is_own or not is_started() or current().cluster.size == 1:
        original(self, cluster_resolver, communication_options)
        return
    _check_arguments(cluster_resolver, communication_options)
    strategy = current().strategy(called="tf.distribute.MultiWorkerMirroredStrategy()")
    # A second handle of the same. What is made in its scope belongs to the job's, since TensorFlow
    # tells strategies apart by identity (tensorflow/python/distribute/distribute_lib.py).
    vars(self).update(vars(strategy))
    self.scope = strategy.scope


def _check_arguments(cluster_resolver: Any, communication_options: Any) -> None:
    """Refuses arguments that ask for another cluster or other collectives than the job's."""
    from_environment = tf.distribute.cluster_resolver.TFConfigClusterResolver
    if not (cluster_resolver is None or isinstance(cluster_resolver, from_environment)):
        raise UnsupportedError(
            f"MultiWorkerMirroredStrategy got a {type(cluster_resolver).__name__}, but "
            "tfddl.init() has found the workers of this job by itself. HINT: leave "
            "cluster_resolver out, or write strategy = tfddl.strategy()."
        )
    asked = getattr(communication_options, "implementation", None)
    implementations = tf.distribute.experimental.CommunicationImplementation
    found = current().transport.name
    if asked not in (None, implementations.AUTO, implementations[found]):
        raise UnsupportedError(
            f"MultiWorkerMirroredStrategy was asked for {asked.name}, but TensorFlow's collectives "
            f"use {found} in this job: tfddl.init(collective=…) decides. HINT: leave "
            "communication_options out, or write strategy = tfddl.strategy()."
        )
