"""What each virtual worker keeps for itself from step to step, as a process of its own would.

Metrics, the states of seed generators, and other state that layers change and that isn't trained
(but moving statistics of BatchNormalization, which are pooled in every step).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import allgather_object, broadcast_variables
from tfddl._src.gradients.virtual_sum import add, sum_nodes
from tfddl._src.keras_hooks.loss_metrics import metric_variables
from tfddl._src.keras_hooks.moving_statistics import MovingStatistics, synchronized
from tfddl._src.keras_hooks.patching import private
from tfddl._src.keras_hooks.seeds import derived_seed, seed_states
from tfddl._src.virtual_workers import Node, TreeSum
from tfddl.errors import UnsupportedError

T = TypeVar("T")


class VirtualStates:
    """The state of this process' virtual workers; the model's variables hold one at a time.

    Attributes:
        variables: The model's variables in question; those of metrics last.
        values: For each virtual worker of this process, the value of each variable.
    """

    def __init__(self, model: Any, workers: Sequence[int], virtual_workers: int) -> None:
        """Begins with the present values for all.

        Args:
            model: Whose metrics have been built.
            workers: The virtual workers of this process.
            virtual_workers: Those of the job.
        """
        self.workers = tuple(workers)
        self._virtual_workers = virtual_workers
        self._model = model
        metrics = metric_variables(model)
        self._num_metrics = len(metrics)
        self.variables = [*_layer_states(model), *metrics]
        self._restored: list[list[tf.Tensor]] = []
        self.values: list[list[tf.Tensor]] = [self._present() for _ in self.workers]

    def derive_seeds(self) -> None:
        """Gives each virtual worker seeds of its own, derived from rank 0's.

        All ranks must call it together.
        """
        seeds = seed_states(self._model)
        if seeds:
            broadcast_variables(seeds)
        self.values = [self._present() for _ in self.workers]
        are_seeds = {id(seed) for seed in seeds}
        for worker, values in zip(self.workers, self.values, strict=True):
            for i, variable in enumerate(self.variables):
                if id(variable) in are_seeds:
                    values[i] = derived_seed(values[i], worker)

    def begin_epoch(self) -> None:
        """Metrics begin with what `reset_metrics` has left in the variables, or was restored."""
        fresh = self._present()[self._num_layer_states :]
        restored, self._restored = self._restored or [fresh] * len(self.workers), []
        for values, metrics in zip(self.values, restored, strict=True):
            values[self._num_layer_states :] = metrics

    def sum_metrics(self) -> None:
        """Sets the metrics' variables to the sums over all virtual workers.

        All ranks must call it together. For validation and for whoever saves the model,
        `write_layer_states` is called too.
        """
        first = self._num_layer_states
        totals = sum_of_virtual_workers(
            [values[first:] for values in self.values], self.workers, self._virtual_workers
        )
        for variable, total in zip(self.variables[first:], totals, strict=True):
            variable.assign(total)
        self.write_layer_states()

    def write_layer_states(self) -> None:
        """Gives the model the first virtual worker's state of layers, which isn't summed.

        All ranks must call it together.
        """
        first = self._num_layer_states
        if first and self.workers[0] == 0:
            for variable, value in zip(self.variables, self.values[0][:first], strict=False):
                variable.assign(value)
        if first:
            broadcast_variables(self.variables[:first])

    def layer_positions(self) -> list[int]:
        """Where in ``model.variables`` the state is that layers keep for themselves."""
        numbers = {id(v): i for i, v in enumerate(self._model.variables)}
        return [numbers[id(v)] for v in self.variables[: self._num_layer_states]]

    def layer_states(self) -> list[dict[int, Any]]:
        """Of each virtual worker, layers' own state by the position in ``model.variables``.

        All ranks must call it together.
        """
        positions = self.layer_positions()
        own = [
            {at: value.numpy() for at, value in zip(positions, values, strict=False)}
            for values in self.values
        ]
        return [state for states in allgather_object(own) for state in states]

    def metrics(self) -> list[list[Any]]:
        """Of each virtual worker, the state of the metrics. All ranks must call it together."""
        own = [[v.numpy() for v in values[self._num_layer_states :]] for values in self.values]
        return [state for states in allgather_object(own) for state in states]

    def restore(self, states: Sequence[dict[int, Any]], metrics: Sequence[Sequence[Any]]) -> None:
        """Gives the virtual workers of this process what they had, wherever they ran before.

        Args:
            states: What `layer_states` returned.
            metrics: What `metrics` returned; empty at the beginning of an epoch. They stay when the
                epoch begins that is resumed.
        """
        at = self.layer_positions()
        self.values = [self._present() for _ in self.workers]
        for worker, values in zip(self.workers, self.values, strict=True):
            for i, position in enumerate(at):
                if position in states[worker]:
                    values[i] = tf.constant(states[worker][position])
        self._restored = [[tf.constant(v) for v in metrics[w]] for w in self.workers if metrics]

    @property
    def _num_layer_states(self) -> int:
        return len(self.variables) - self._num_metrics

    def _present(self) -> list[tf.Tensor]:
        # identity: a read may share memory with the variable, which later steps assign to.
        return [tf.identity(tf.convert_to_tensor(v)) for v in self.variables]


def with_own_seeds(model: Any, workers: Sequence[int], function: Callable[[int], T]) -> list[T]:
    """Calls a function for each virtual worker of this process, each with seeds of its own.

    All ranks must call it together. The model's seeds are then as the first virtual worker has left
    them.

    Args:
        model: Whose layers may draw random numbers.
        workers: The virtual workers of this process.
        function: Called with 0, 1, 2, … for the virtual workers, in order.
    """
    seeds = seed_states(model)
    if seeds:
        broadcast_variables(seeds)
    before = [tf.identity(tf.convert_to_tensor(seed)) for seed in seeds]
    after, results = before, []
    try:
        for i, worker in enumerate(workers):
            for seed, value in zip(seeds, before, strict=True):
                seed.assign(derived_seed(value, worker))
            results.append(function(i))
            if worker == 0:
                after = [tf.identity(tf.convert_to_tensor(seed)) for seed in seeds]
    finally:
        for seed, value in zip(seeds, after, strict=True):
            seed.assign(value)
    if seeds:
        broadcast_variables(seeds)
    return results


@contextmanager
def refuse_draws(model: Any) -> Iterator[None]:
    """Raises where layers have drawn random numbers within it.

    Raises:
        UnsupportedError: They have; seeds are again what they were.
    """
    seeds = seed_states(model)
    before = [seed.numpy() for seed in seeds]
    yield
    if any(np.any(seed.numpy() != value) for seed, value in zip(seeds, before, strict=True)):
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(value)
        raise UnsupportedError(
            "predict got data of tfddl.shard_dataset(…, virtual_workers=…), and layers of the "
            "model draw random numbers in it; expected none: the virtual workers of a process "
            "would take them from each other. HINT: give predict the arrays, the same on every "
            "rank."
        )


def sum_of_virtual_workers(
    own: Sequence[Sequence[tf.Tensor]], workers: Sequence[int], virtual_workers: int
) -> list[tf.Tensor]:
    """The sums of tensors over all virtual workers, in the order of the tree.

    All ranks must call it together.

    Args:
        own: For each virtual worker of this process the same tensors, of any shapes.
        workers: The virtual workers of this process.
        virtual_workers: Those of the job.
    """
    sums: TreeSum[list[tf.Tensor]] = TreeSum(add)
    for worker, tensors in zip(workers, own, strict=True):
        sums.push(Node(worker, 1), list(tensors))
    return sum_nodes(sums.nodes, virtual_workers, name="metrics") if own[0] else []


def _layer_states(model: Any) -> list[Any]:
    """State that layers change, each virtual worker its own."""
    # A frozen layer's weights aren't trained, but don't change either: Layer._trainable_variables
    # (keras/src/layers/layer.py) has them whatever `trainable` says.
    weights = [
        v
        for layer in private(model, "_flatten_layers")()
        for v in private(layer, "_trainable_variables")
    ]
    shared = [*weights, *MovingStatistics(model).variables, *synchronized(model)]
    known = {id(v) for v in shared}
    return [v for v in model.variables if id(v) not in known]
