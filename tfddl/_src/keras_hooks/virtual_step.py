"""A training step of all virtual workers: each one's gradients, their sum, one update.

The step of one virtual worker (the *micro-step*) is a function of its own batch and state, traced
once, with the number of examples left open: it is the same graph for each virtual worker, in each
step, on any number of processes. So is the update. What is between them is only addition, in the
order of the tree.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfddl._src.collectives import ReduceOp, collectives_refused
from tfddl._src.gradients import Gradient, ReductionOptions
from tfddl._src.gradients.virtual_layout import GradientLayout
from tfddl._src.gradients.virtual_sum import add, concatenate, sum_nodes
from tfddl._src.keras_hooks import batch_count
from tfddl._src.keras_hooks.loss_metrics import evaluated_by_weight, unchanged_unless
from tfddl._src.keras_hooks.moving_statistics import MovingStatistics
from tfddl._src.keras_hooks.optimizer import innermost, reduced_before
from tfddl._src.keras_hooks.step_state import StepState
from tfddl._src.keras_hooks.virtual_states import VirtualStates
from tfddl._src.runtime import current
from tfddl._src.step_context import StepContext, current_step, in_step
from tfddl._src.virtual_workers import Node, TreeSum
from tfddl.errors import UnsupportedError

_NUMBERS = 3
"""What a header has before what BatchNormalization has changed: count, examples, wish to stop."""


class _Capture:
    """The gradients that a micro-step was about to apply."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.gradients: list[Gradient] = []
        self.variables: list[Any] = []
        self.count: tf.Tensor = tf.constant(1.0)

    def take(self, optimizer: Any, gradients: Sequence[Gradient], variables: Sequence[Any]) -> None:
        """See `GradientCapture`."""
        if self.optimizer is not None:
            raise UnsupportedError(
                "With virtual_workers, a step applied gradients twice; expected once: the second "
                "virtual worker's would have to wait for the first update. HINT: apply the "
                "gradients of all variables together, or leave virtual_workers out."
            )
        self.optimizer, self.gradients = optimizer, list(gradients)
        self.variables = list(variables)
        count = current_step().count  # A loop says it only where it applies them.
        self.count = self.count if count is None else count


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Applied:
    """What tracing a micro-step has told: what is to be updated."""

    optimizer: Any
    variables: list[Any]
    layout: GradientLayout


class Observer(Protocol):
    """Looks at what a step has added up."""

    def __call__(
        self,
        workers: Sequence[int],
        batches: Sequence[Any],
        gradients: Callable[[], Sequence[tuple[str, Gradient]]],
    ) -> None:
        """Looks at a step.

        Args:
            workers: The virtual workers of this process.
            batches: Their batches; () for a padding example, which may be any.
            gradients: Returns by the variables' paths the weighted sums over all virtual workers.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastBatch:
    """What a step returned for a virtual worker."""

    examples: tf.Tensor
    """Scalar: how many examples its batch had; 0 for a padding example."""

    outputs: Any
    """Of `train_step`, or `test_step`."""


class VirtualStep:
    """The training steps of a model for virtual workers; called by all ranks together.

    Attributes:
        states: What virtual workers keep from step to step.
        state: The variables of the steps.
        last: What the last step returned for each virtual worker of this process.
        observer: Called after each step's gradients have been added up; None is nobody.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        original: Callable[[Any], Any],
        states: VirtualStates,
        context: Callable[[Any], StepContext],
    ) -> None:
        """Traces nothing yet.

        Args:
            model: Built, with its metrics.
            optimizer: Built; for virtual workers.
            original: The `train_step` for one batch; it calls the optimizer once.
            states: Of the virtual workers.
            context: Tells of a batch what its micro-step knows of itself.
        """
        self._model, self._original, self._context = model, original, context
        self.state = StepState.new()
        self.states = states
        self.last: list[LastBatch] = []
        self.observer: Observer | None = None
        self._options: ReductionOptions = innermost(optimizer).tfddl_options
        assert self._options.virtual_workers is not None
        self._virtual_workers = self._options.virtual_workers
        self._applied: _Applied | None = None
        self._micro: dict[str, Callable[..., Any]] = {}
        self._whole: dict[str, Callable[..., Any]] = {}
        self._update: Callable[..., None] | None = None

    def run(self, batches: Sequence[Any], spec: Any) -> Any:
        """Trains on a batch for each virtual worker of this process, then updates the weights.

        Args:
            batches: As the model's `train_step` takes them, in the order of the virtual workers.
            spec: The `tf.TensorSpec` of each tensor of a batch, the number of examples left open.

        Returns:
            What `train_step` has returned for the last of them.
        """
        states = self.states
        if self._is_one_graph():
            [batch] = batches
            last, states.values[0] = self._whole_step(spec)(batch, states.values[0])
            self.last = [LastBatch(**last)]
            return self.last[0].outputs
        micro = self._micro_step(spec)
        tree: TreeSum[list[tf.Tensor]] = TreeSum(add)
        slices: list[list[tf.IndexedSlices]] = []
        self.last = []
        for i, (worker, batch) in enumerate(zip(states.workers, batches, strict=True)):
            last, flats, sparse, states.values[i] = micro(batch, states.values[i])
            self.last.append(LastBatch(**last))
            tree.push(Node(worker, 1), flats)
            slices.append(sparse)
        totals = sum_nodes(tree.nodes, self._virtual_workers, name="gradients")
        sparse = concatenate(list(zip(*slices, strict=True)))
        if self.observer is not None:
            counting = zip(batches, self.last, strict=True)
            seen = [batch if int(last.examples) else () for batch, last in counting]
            self.observer(states.workers, seen, lambda: self._sums(totals, sparse))
        self._apply(totals, sparse)
        return self.last[-1].outputs

    def _sums(
        self, totals: list[tf.Tensor], sparse: list[tf.IndexedSlices]
    ) -> list[tuple[str, Gradient]]:
        assert self._applied is not None
        sums = self._applied.layout.unpack(totals, sparse, None)
        return list(zip([v.path for v in self._applied.variables], sums, strict=True))

    def _is_one_graph(self) -> bool:
        """Whether micro-step, sum and update are one graph, which TensorFlow is called for once.

        Only where nothing is added up but by the collective, whose sum of two has one order: see
        `virtual_sum`. It is between micro-step and update, which so stay the graphs that they are
        by themselves.
        """
        is_only_collective = current().cluster.size == self._virtual_workers == 2
        return is_only_collective and self.observer is None and not self._model.run_eagerly

    def _whole_step(self, spec: Any) -> Callable[..., Any]:
        """The whole step for batches of a spec, which is traced once."""
        key = repr(spec)
        if key not in self._whole:
            own = [tf.TensorSpec(v.shape, v.dtype) for v in self.states.values[0]]
            traced = tf.function(self._run_whole_step, autograph=False)
            self._whole[key] = traced.get_concrete_function(spec, own)
        return self._whole[key]

    def _run_whole_step(
        self, batch: Any, own: Sequence[tf.Tensor]
    ) -> tuple[dict[str, Any], list[tf.Tensor]]:
        last, flats, slices, after = self._run_micro_step(batch, own)
        nodes = [(Node(self.states.workers[0], 1), flats)]
        totals = sum_nodes(nodes, self._virtual_workers, name="gradients")
        self._run_update(totals, concatenate([[one] for one in slices]))
        return last, after

    def _micro_step(self, spec: Any) -> Callable[..., Any]:
        """The micro-step for batches of a spec, which is traced once."""
        if self._model.run_eagerly:
            return self._run_micro_step
        key = repr(spec)
        if key not in self._micro:
            own = [tf.TensorSpec(v.shape, v.dtype) for v in self.states.values[0]]
            traced = tf.function(self._run_micro_step, autograph=False)
            self._micro[key] = traced.get_concrete_function(spec, own)
        return self._micro[key]

    def _run_micro_step(
        self, batch: Any, own: Sequence[tf.Tensor]
    ) -> tuple[dict[str, Any], list[tf.Tensor], list[tf.IndexedSlices], list[tf.Tensor]]:
        """What makes a `LastBatch`, weighted gradients, and the virtual worker's state after it."""
        model, state = self._model, self.state
        with holding(self.states.variables, own):
            weight = keras.utils.unpack_x_y_sample_weight(batch)[2]
            counts = batch_count.counts(weight)
            step = self._context(batch)
            capture = _Capture()
            pooled = MovingStatistics(model)
            with (
                in_step(dataclasses.replace(step, capture=capture)),
                evaluated_by_weight(model, weight),
                unchanged_unless(counts, lambda: self.states.variables),
                collectives_refused(_why_refused(self._virtual_workers)),
            ):
                outputs = self._original(batch)
            if capture.optimizer is None:
                raise UnsupportedError(
                    "With virtual_workers, a step applied no gradients; expected that it calls "
                    "model.optimizer once. HINT: give the model trainable weights, or call "
                    "self.optimizer.apply_gradients in train_step."
                )
            flats, sparse = self._packed(capture, step, pooled)
            state.examples.assign_add(step.examples)
            state.last_examples.assign(step.examples)
            after = [tf.identity(tf.convert_to_tensor(v)) for v in self.states.variables]
        return {"outputs": outputs, "examples": step.examples}, flats, sparse, after

    def _packed(
        self, capture: _Capture, step: StepContext, pooled: MovingStatistics
    ) -> tuple[list[tf.Tensor], list[tf.IndexedSlices]]:
        """Gradients and header as they are added up; moving statistics become what they were."""
        gradients = [
            tf.convert_to_tensor(g)
            if self._options.sparse_as_dense and isinstance(g, tf.IndexedSlices)
            else g
            for g in capture.gradients
        ]
        _refuse_slices_of_several_threads(gradients)
        is_double = any(g is not None and g.dtype == tf.float64 for g in gradients)
        dtype = tf.float64 if is_double else tf.float32
        examples = tf.cast(step.examples, dtype)
        change = pooled.change(dtype)
        numbers = tf.stack(
            [tf.cast(capture.count, dtype), examples, tf.cast(self.state.stop, dtype)]
        )
        header = tf.concat([numbers, tf.math.multiply_no_nan(change, examples)], axis=0)
        pooled.take(tf.zeros_like(change))
        layout = GradientLayout.of(gradients, capture.variables, header=int(header.shape[0]))
        self._applied = _Applied(
            optimizer=capture.optimizer, variables=capture.variables, layout=layout
        )
        averages = self._options.op is ReduceOp.AVERAGE
        weight = numbers[0] if averages else tf.ones([], dtype)
        return layout.pack(gradients, weight, header)

    def _apply(self, totals: list[tf.Tensor], sparse: list[tf.IndexedSlices]) -> None:
        """Updates the weights, by what all virtual workers have added up."""
        if self._model.run_eagerly:
            self._run_update(totals, sparse)
            return
        if self._update is None:
            specs = [tf.TensorSpec(total.shape, total.dtype) for total in totals]
            rows = [
                tf.IndexedSlicesSpec(
                    tf.TensorShape([None]).concatenate(slices.values.shape[1:]),
                    slices.values.dtype,
                    slices.indices.dtype,
                    slices.dense_shape.dtype,
                )
                for slices in sparse
            ]
            traced = tf.function(self._run_update, autograph=False)
            self._update = traced.get_concrete_function(specs, rows)
        self._update(totals, sparse)

    def _run_update(self, totals: list[tf.Tensor], sparse: list[tf.IndexedSlices]) -> None:
        applied = self._applied
        assert applied is not None
        header = totals[0][: applied.layout.header]
        count, examples, stop = tf.unstack(header[:_NUMBERS])
        state = self.state
        state.stop_agreed.assign(tf.cast(stop, state.stop_agreed.dtype))
        state.totals.assign(tf.cast(tf.stack([count, examples]), state.totals.dtype))
        changes = tf.math.divide_no_nan(header[_NUMBERS:], examples)
        MovingStatistics(self._model).take(changes)
        averages = self._options.op is ReduceOp.AVERAGE
        divisor = count if averages else tf.ones_like(count)
        gradients = applied.layout.unpack(totals, sparse, divisor)
        with reduced_before(innermost(applied.optimizer)):
            applied.optimizer.apply(gradients, applied.variables)
        state.steps.assign_add(1)


def _why_refused(virtual_workers: int) -> str:
    size = current().cluster.size
    if virtual_workers == size:
        return ""
    return (
        f"in the step of a virtual worker; {size} workers run {virtual_workers} of them one after "
        "the other, so that it would not have what all of them have. HINT: call it between steps, "
        "or return the value from the step."
    )


def _refuse_slices_of_several_threads(gradients: Sequence[Gradient]) -> None:
    # ScatterSub and the like (tensorflow/core/kernels/scatter_functor.h) let threads add up rows in
    # the order in which they come: not even two runs are the same then.
    threads = current().options.intra_op_threads
    if threads != 1 and any(isinstance(g, tf.IndexedSlices) for g in gradients):
        raise UnsupportedError(
            f"With virtual_workers and intra_op_threads={threads}, a step has sparse gradients (of "
            "an embedding); expected dense ones: several threads would add up their rows in any "
            "order. HINT: tfddl.init(intra_op_threads=1), or "
            "tfddl.DistributedOptimizer(…, sparse_as_dense=True)."
        )


@contextmanager
def holding(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Variables have the values of one virtual worker, and then their own again.

    Not left as they are after the step: whoever reads them between steps would read another virtual
    worker's on another number of processes.
    """
    before = [tf.identity(tf.convert_to_tensor(v)) for v in variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
