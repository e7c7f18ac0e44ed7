"""What each virtual worker keeps for itself from step to step, as a process of its own would.

Metrics, the states of seed generators, and other state that layers change and that isn't trained
(but moving statistics of BatchNormalization, which are pooled in every step).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import allgather_object, broadcast_variables
from tfddl._src.gradients.virtual_sum import add, sum_nodes
from tfddl._src.keras_hooks.loss_metrics import metric_variables
from tfddl._src.keras_hooks.moving_statistics import MovingStatistics, synchronized
from tfddl._src.keras_hooks.patching import private
from tfddl._src.keras_hooks.seeds import derived_seed, seed_states
from tfddl._src.virtual_workers import Node, TreeSum


class VirtualStates:
    """The state of this process' virtual workers; the model's variables hold one at a time.

    Attributes:
        variables: The model's variables in question; those of metrics last.
        values: For each virtual worker of this process, the value of each variable.
    """

    def __init__(
        self, model: Any, workers: Sequence[int], virtual_workers: int, *, of_layers: bool = True
    ) -> None:
        """Begins with the present values for all.

        Args:
            model: Whose metrics have been built.
            workers: The virtual workers of this process.
            virtual_workers: Those of the job.
            of_layers: Whether layers' own state is part of it; metrics always are.
        """
        self.workers = tuple(workers)
        self._virtual_workers = virtual_workers
        self._model = model
        metrics = metric_variables(model)
        self._num_metrics = len(metrics)
        self.variables = [*(_layer_states(model) if of_layers else ()), *metrics]
        self._restored: list[list[tf.Tensor]] = []
        self.values: list[list[tf.Tensor]] = [self._present() for _ in self.workers]

    def derive_seeds(self) -> None:
        """Gives each virtual worker seeds of its own, derived from rank 0's.

        All ranks must call it together.
        """
        seeds = seed_states(self._model)
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

        All ranks must call it together. Layers' own state, which isn't summed, becomes that of the
        first virtual worker, for validation and for whoever saves the model.
        """
        first = self._num_layer_states
        totals = sum_of_virtual_workers(
            [values[first:] for values in self.values], self.workers, self._virtual_workers
        )
        for variable, total in zip(self.variables[first:], totals, strict=True):
            variable.assign(total)
        if first and self.workers[0] == 0:
            for variable, value in zip(self.variables, self.values[0][:first], strict=False):
                variable.assign(value)
        broadcast_variables(self.variables[:first])

    def layer_states(self) -> list[dict[int, Any]]:
        """Of each virtual worker, layers' own state by the position in ``model.variables``.

        All ranks must call it together.
        """
        positions = list(self._positions())
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
        at = list(self._positions())
        self.values = [self._present() for _ in self.workers]
        for worker, values in zip(self.workers, self.values, strict=True):
            for i, position in enumerate(at):
                if position in states[worker]:
                    values[i] = tf.constant(states[worker][position])
        self._restored = [[tf.constant(v) for v in metrics[w]] for w in self.workers if metrics]

    @property
    def _num_layer_states(self) -> int:
        return len(self.variables) - self._num_metrics

    def _positions(self) -> Iterator[int]:
        numbers = {id(v): i for i, v in enumerate(self._model.variables)}
        return (numbers[id(v)] for v in self.variables[: self._num_layer_states])

    def _present(self) -> list[tf.Tensor]:
        # identity: a read may share memory with the variable, which later steps assign to.
        return [tf.identity(tf.convert_to_tensor(v)) for v in self.variables]


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
