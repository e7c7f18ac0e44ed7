"""TensorFlow's API: models made under ``tfddl.strategy().scope()``.

Keras runs their steps by ``strategy.run``, one replica in each worker. Four of Keras' ways to do so
don't work with several workers (Keras 3.11 to 3.15, TensorFlow 2.18 to 2.21):

* `TFEpochIterator` hands datasets to ``experimental_distribute_dataset``, which auto-shards them,
  or cuts their batches again and loses examples;
* `reduce_per_replica` reduces scalar logs over an axis that they don't have;
* `_maybe_symbolic_build` hands a structure of per-replica values to ``strategy.reduce``, which
  takes single values only;
* `reduce_values` divides losses by the number of workers, but not those that are a number by
  themselves, such as a Dice: their gradients would be that many times too large.

Here a worker's data is the shard that this package has made; the logs of a step are the worker's
own until the end of the epoch; and the optimizer given to `compile` becomes one that averages by
count, so that all that holds for Horovod's API holds here. A worker has one replica only: so
variables can be updated where they are, also inside of branches, without the *cross-replica
context*, which TensorFlow allows in no branch.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import ReduceOp
from tfddl._src.keras_hooks.optimizer import (
    distribute_for_virtual_workers,
    distribute_under_scope,
    is_distributed,
    is_under_scope,
)
from tfddl._src.keras_hooks.patching import (
    changed,
    private,
    private_module,
    wrap_function,
    wrap_method,
)
from tfddl._src.keras_hooks.virtual_strategy import VirtualStrategy
from tfddl._src.runtime import current, is_started
from tfddl.errors import UnsupportedError


def install() -> None:
    """Hooks into how Keras runs steps under a strategy.

    Raises:
        UnsupportedError: Keras has changed in something that a hook relies on.
    """
    trainer = private_module("keras.src.backend.tensorflow.trainer")
    loss = private_module("keras.src.losses.loss")
    parameters = ("values", "strategy", "reduction")
    wrap_function(trainer, "reduce_per_replica", parameters, _reduce_per_replica)
    wrap_function(loss, "reduce_values", ("values", "sample_weight", "reduction"), _reduce_values)
    iterator = private(trainer, "TFEpochIterator")
    wrap_method(iterator, "__init__", ("distribute_strategy",), _epoch_iterator)
    wrap_method(keras.Model, "_maybe_symbolic_build", ("iterator", "data_batch"), _symbolic_build)


def is_job_strategy(strategy: Any) -> bool:
    """Whether a strategy is that of the job, as `tfddl.strategy()` returns it."""
    if not is_started() or current().cluster.size == 1:
        return False
    return strategy is not None and strategy is current().started_strategy


def contains(model: Any) -> bool:
    """Whether a model was made under the scope of the job's strategy."""
    return is_job_strategy(private(model, "_distribute_strategy"))  # Of TensorFlowTrainer.__init__.


def of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The scope that a model was made under, in which variables that belong to it are made."""
    if not contains(model) or tf.distribute.has_strategy():
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = current().strategy().scope()
    return scope


def adopt_optimizer(model: Any, optimizer: Any, loss: Any) -> Any:
    """Makes the optimizer that `compile` got average over the workers, if the model is in scope.

    Args:
        model: That is compiled.
        optimizer: As `compile` takes it: also a name or a configuration.
        loss: As `compile` takes it.

    Returns:
        The optimizer to compile with.

    Raises:
        UnsupportedError: The model was made outside of the scope that `compile` is called in; a
            DistributedOptimizer; an optimizer that was made elsewhere.
    """
    strategy = private(model, "_distribute_strategy")  # Of TensorFlowTrainer.__init__.
    if isinstance(strategy, VirtualStrategy):
        return _adopt_for_virtual_workers(model, optimizer, loss, strategy)
    if not contains(model):
        if tf.distribute.has_strategy() and is_job_strategy(tf.distribute.get_strategy()):
            raise UnsupportedError(
                "compile was called under tfddl.strategy().scope(), but the model was made outside "
                "of it: its variables aren't the strategy's. HINT: make the model under the scope "
                "too; or leave the scope, and compile with tfddl.DistributedOptimizer(…)."
            )
        return optimizer
    if optimizer is None or is_under_scope(optimizer):
        return optimizer
    optimizer = keras.optimizers.get(optimizer)
    if is_distributed(optimizer):
        raise UnsupportedError(
            "A model made under tfddl.strategy().scope() got a DistributedOptimizer: its gradients "
            "would be averaged twice. HINT: compile it with the plain Keras optimizer, which tfddl "
            "makes exact; or make the model outside of the scope."
        )
    # Of TFOptimizer.__init__ (keras/src/backend/tensorflow/optimizer.py).
    if not is_job_strategy(private(optimizer, "_distribution_strategy")):
        raise UnsupportedError(
            f"The model was made under tfddl.strategy().scope(), its {type(optimizer).__name__} "
            "was not. HINT: make the optimizer under the scope too."
        )
    update_in_place(current().strategy())
    distribute_under_scope(optimizer, op=_op_of(loss))
    return optimizer


def _op_of(loss: Any) -> ReduceOp:
    """How the gradients of a loss that `compile` got are combined."""
    sums = {getattr(part, "reduction", None) for part in tf.nest.flatten(loss)} == {"sum"}
    return ReduceOp.SUM if sums else ReduceOp.AVERAGE


def _adopt_for_virtual_workers(
    model: Any, optimizer: Any, loss: Any, strategy: VirtualStrategy
) -> Any:
    """Makes what `compile` got train as ``DistributedOptimizer(…, virtual_workers=…)`` does.

    From here on the model and its optimizer are as if they had been made outside of the scope.
    """
    optimizer = optimizer if optimizer is None else keras.optimizers.get(optimizer)
    if optimizer is not None and is_distributed(optimizer):
        raise UnsupportedError(
            f"A model made under the scope of tfddl.strategy(virtual_workers="
            f"{strategy.virtual_workers}) got a DistributedOptimizer. HINT: compile it with the "
            "plain Keras optimizer; or make the model outside of the scope."
        )
    # Past Keras' __setattr__, which would save it.
    object.__setattr__(model, "_distribute_strategy", None)
    if optimizer is not None:
        distribute_for_virtual_workers(
            optimizer, op=_op_of(loss), virtual_workers=strategy.virtual_workers
        )
    return optimizer


def update_in_place(strategy: tf.distribute.Strategy) -> None:
    """Lets variables be updated where a worker's only replica runs.

    Raises:
        UnsupportedError: TensorFlow has changed, or the worker has several replicas.
    """
    # tensorflow/python/distribute/mirrored_strategy.py: MirroredExtended._use_merge_call, which
    # TensorFlow itself makes False where XLA compiles the step for GPUs. Where it is True, Keras'
    # optimizers ask for the cross-replica context inside of branches: for accumulated gradients,
    # moving averages of the weights, and loss scaling.
    extended = strategy.extended
    if not isinstance(getattr(extended, "_use_merge_call", lambda: None)(), bool):
        text = changed("a strategy's extended._use_merge_call is gone", library=tf)
        raise UnsupportedError(text)
    if len(extended.worker_devices) != 1:
        raise UnsupportedError(
            f"The strategy has {len(extended.worker_devices)} devices in this worker; expected "
            "one. HINT: start one worker for each GPU."
        )
    extended._use_merge_call = lambda: False


def write_in_place(model: Any) -> None:
    """Lets a model's and its optimizer's variables be written where the replica runs.

    Keras asks for some, such as `iterations`, to be written by the first replica for all, or with
    the mean of all. TensorFlow does that in the cross-replica context, or by collectives of its
    own; here each worker writes its own, and what must be alike has been agreed on before.

    Raises:
        UnsupportedError: TensorFlow has changed.
    """
    none = tf.VariableAggregation.NONE
    for variable in [*model.variables, *model.optimizer.variables]:
        if is_summed_on_read(variable):
            continue  # Written in place anyway.
        mirrored = getattr(variable, "value", variable)
        if getattr(mirrored, "aggregation", none) is not none:
            # tensorflow/python/distribute/values.py: what DistributedVariable.aggregation returns.
            mirrored._aggregation = none
        if getattr(mirrored, "aggregation", none) is not none:
            text = changed("the aggregation of a mirrored variable can't be set", library=tf)
            raise UnsupportedError(text)


def is_summed_on_read(variable: Any) -> bool:
    """Whether TensorFlow adds up the workers' values of a variable wherever it is read.

    Under a strategy, metrics' variables are such.
    """
    mirrored = getattr(variable, "value", variable)
    if not isinstance(mirrored, tf.distribute.DistributedValues):
        return False  # Keras asks for it everywhere; without a strategy it has no effect.
    return mirrored.synchronization is tf.VariableSynchronization.ON_READ


def _reduce_per_replica(
    original: Callable[..., Any], values: Any, strategy: Any, reduction: str
) -> Any:
    if not is_job_strategy(strategy):
        return original(values, strategy, reduction)
    return tf.nest.map_structure(lambda value: _local(strategy, value), values)


def _reduce_values(
    original: Callable[..., Any],
    values: Any,
    sample_weight: Any = None,
    reduction: Any = "sum_over_batch_size",
) -> Any:
    reduced = original(values, sample_weight, reduction)
    # Once Keras divides it, what comes back is another tensor.
    is_untouched = reduced is values and reduction not in (None, "none", "sum")
    if (
        is_untouched
        and tf.distribute.has_strategy()
        and is_job_strategy(tf.distribute.get_strategy())
    ):
        return reduced / tf.cast(current().cluster.size, reduced.dtype)
    return reduced


def _local(strategy: Any, value: Any) -> Any:
    """What this worker's only replica has."""
    return strategy.experimental_local_results(value)[0]


class _Undistributed:
    """Takes the place of a strategy that would cut a dataset again: it is the worker's shard."""

    @staticmethod
    def experimental_distribute_dataset(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset


def _epoch_iterator(
    original: Callable[..., Any], self: Any, distribute_strategy: Any = None, **kwargs: Any
) -> None:
    if is_job_strategy(distribute_strategy):
        distribute_strategy = _Undistributed()
    original(self, distribute_strategy, **kwargs)


def _symbolic_build(
    original: Callable[..., Any], self: Any, iterator: Any = None, data_batch: Any = None
) -> None:
    if iterator is None or not contains(self):
        original(self, iterator, data_batch)
        return
    strategy = current().strategy()
    for _, _, batches in iterator:
        data_batch = tf.nest.map_structure(lambda value: _local(strategy, value), next(batches))
        break
    original(self, None, data_batch)
