"""What `fit` and `evaluate` call for a step, where a model is compiled for virtual workers."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.cpu import processor_name
from tfddl._src.keras_hooks import batch_count
from tfddl._src.keras_hooks.compile import trains_together
from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.keras_hooks.patching import private
from tfddl._src.keras_hooks.virtual_states import VirtualStates, sum_of_virtual_workers
from tfddl._src.keras_hooks.virtual_step import LastBatch, VirtualStep, holding
from tfddl._src.runtime import current
from tfddl._src.step_context import StepContext
from tfddl._src.virtual_workers import own_workers
from tfddl.errors import UnsupportedError


def virtual_workers_of(model: Any) -> int | None:
    """For how many virtual workers a model is compiled; None where it isn't."""
    optimizer = getattr(model, "optimizer", None)
    if not trains_together(optimizer):
        return None
    number: int | None = innermost(optimizer).tfddl_options.virtual_workers
    return number


def describe_arithmetic(model: Any) -> str:
    """What the bits of a result depend on, beside the data; empty without virtual workers."""
    number = virtual_workers_of(model)
    return "" if number is None else arithmetic_of(number)


def arithmetic_of(virtual_workers: int) -> str:
    """What the bits of a result of so many virtual workers depend on, beside the data."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    # oneDNN has kernels of its own (tensorflow/core/util/port.cc, IsMklEnabled).
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default")
    return (
        f"{virtual_workers} virtual workers, {threads} threads per operation, "
        f"TensorFlow {tf.__version__} (oneDNN {onednn}), {processor_name()}"
    )


def build_metrics(model: Any, spec: Any) -> None:
    """Makes the variables of a model's losses and metrics, which Keras makes in the first step.

    Args:
        model: Compiled and built.
        spec: Of a batch.
    """
    # Trainer._symbolic_build (keras/src/trainers/trainer.py) asks for shapes and dtypes only.
    private(model, "_symbolic_build")(data_batch=spec)


def make_train_function(model: Any, *, force: bool) -> None:
    """Gives a model the function that `fit` calls for a step; a new one where it is forced to."""
    if isinstance(model.train_function, _TrainFunction) and not force:
        return
    original = unwrapped(model.train_step)
    virtual_workers = virtual_workers_of(model)
    assert virtual_workers is not None
    states = VirtualStates(model, own_workers_of(virtual_workers), virtual_workers)
    step = VirtualStep(
        model, model.optimizer, original, states, lambda batch: _step_context(model, batch)
    )

    def train_step(data: Any) -> Any:
        return original(data)

    train_step.tfddl_original = original  # type: ignore[attr-defined]
    train_step.tfddl_state = step.state  # type: ignore[attr-defined]
    train_step.tfddl_virtual = True  # type: ignore[attr-defined]
    model.train_step = train_step
    model.train_function = _TrainFunction(model, step)


def _step_context(model: Any, batch: Any) -> StepContext:
    """What a micro-step of a model knows of itself: the numbers of its own batch."""
    x, _, weight = keras.utils.unpack_x_y_sample_weight(batch)
    counts = batch_count.counts(weight)
    count, examples = batch_count.loss_count(model, x, weight), batch_count.num_examples(x)
    if counts is not None:
        count = tf.where(counts, count, tf.zeros_like(count))
        examples = tf.where(counts, examples, 0)
    return StepContext(
        count=count,
        averages=batch_count.averages(model),
        examples=examples,
        virtual_workers=virtual_workers_of(model),
    )


def unwrapped(step: Any) -> Any:
    """The `train_step` or `test_step` that a model had before it was compiled with ours."""
    while hasattr(step, "tfddl_original"):
        step = step.tfddl_original
    return step


def make_test_function(model: Any, *, force: bool) -> None:
    """Gives a model the function that `evaluate` calls for a step."""
    if force or not isinstance(model.test_function, _TestFunction):
        model.test_function = _TestFunction(model)


def training_step(model: Any) -> VirtualStep:
    """The steps of a model, once its train function has been made."""
    function: _TrainFunction = model.train_function
    return function.step


def training_states(model: Any) -> VirtualStates:
    """The states of a model's virtual workers, once its train function has been made."""
    return training_step(model).states


def begin_epoch(model: Any) -> None:
    """Metrics begin anew."""
    if virtual_workers_of(model) is not None:
        training_states(model).begin_epoch()


@contextmanager
def new_evaluation(model: Any) -> Iterator[None]:
    """Within it, the metrics of an evaluation are those of its own batches."""
    function = getattr(model, "test_function", None)
    if isinstance(function, _TestFunction):
        function.states = None
    yield


def sum_metrics(model: Any, *, training: bool) -> None:
    """Sets the metrics' variables to those of all virtual workers.

    All ranks must call it together.
    """
    if training:
        training_states(model).sum_metrics()
        return
    function: _TestFunction = model.test_function
    if function.states is not None:
        function.states.sum_metrics()
        function.states = None


def sum_logs(model: Any, names: Sequence[str], *, training: bool) -> list[tf.Tensor]:
    """What the last step returned, weighted by examples and added over all virtual workers.

    All ranks must call it together.

    Args:
        model: Whose steps have been run.
        names: Of numbers in the dictionary that a step returned.
        training: Whether it was a training step.

    Returns:
        For each name the sum of its value times the number of examples; then that of these numbers.
    """
    function: _TrainFunction | _TestFunction
    function = model.train_function if training else model.test_function
    parts = []
    for last in function.last:
        examples = tf.cast(last.examples, tf.float32)
        values = [tf.reduce_mean(tf.cast(last.outputs[name], tf.float32)) for name in names]
        # multiply_no_nan: that of a padding example may be anything.
        parts.append([*(tf.math.multiply_no_nan(v, examples) for v in values), examples])
    virtual_workers = virtual_workers_of(model)
    assert virtual_workers is not None
    return sum_of_virtual_workers(parts, own_workers_of(virtual_workers), virtual_workers)


def own_workers_of(virtual_workers: int) -> range:
    """The virtual workers of this process."""
    cluster = current().cluster
    return own_workers(virtual_workers, cluster.rank, cluster.size)


class _TrainFunction:
    """Keras calls it with an iterator over steps."""

    def __init__(self, model: Any, step: VirtualStep) -> None:
        self._model, self.step = model, step

    @property
    def last(self) -> list[LastBatch]:
        """What the last step returned."""
        return self.step.last

    def __call__(self, iterator: Any) -> Any:
        fit = current_fit()
        if fit is None or fit.model is not self._model:
            raise UnsupportedError(
                "train_on_batch was called of a model that is compiled with virtual_workers; "
                "expected fit, whose data says which batch is whose. HINT: model.fit("
                "tfddl.shard_dataset(…, virtual_workers=…))."
            )
        return _run(
            self._model,
            iterator,
            lambda batches: self.step.run(batches, fit.batch_spec),
            number=len(self.step.states.workers),
        )


class _TestFunction:
    """Keras calls it with an iterator over steps."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.states: VirtualStates | None = None
        self.last: list[LastBatch] = []
        self._traced: dict[str, Callable[..., Any]] = {}

    def __call__(self, iterator: Any) -> Any:
        virtual_workers = virtual_workers_of(self._model)
        assert virtual_workers is not None
        fit = current_fit()
        if fit is None or fit.model is not self._model or not fit.validating:
            raise UnsupportedError(
                "test_on_batch was called of a model that is compiled with virtual_workers; "
                "expected evaluate, which deals the examples out. HINT: model.evaluate(x, y), the "
                "same arrays on every rank."
            )
        if self.states is None:
            workers = own_workers_of(virtual_workers)
            self.states = VirtualStates(self._model, workers, virtual_workers)
            self.states.derive_seeds()  # Of layers that draw in inference, too.
        states = self.states

        def run(batches: Any) -> Any:
            self.last = []
            for i, batch in enumerate(batches):
                last, states.values[i] = self._micro(batch, states)(batch, states.values[i])
                self.last.append(LastBatch(**last))
            return self.last[-1].outputs

        return _run(self._model, iterator, run, number=len(states.workers))

    def _micro(self, batch: Any, states: VirtualStates) -> Callable[..., Any]:
        def test(batch: Any, own: Any) -> Any:
            with holding(states.variables, own):
                outputs = self._model.test_step(batch)
                after = [tf.identity(tf.convert_to_tensor(v)) for v in states.variables]
            examples = tf.convert_to_tensor(self._model.test_step.tfddl_last_examples)
            return {"outputs": outputs, "examples": examples}, after

        if self._model.run_eagerly:
            return test
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), batch)
        key = repr(spec)
        if key not in self._traced:
            own = [tf.TensorSpec(v.shape, v.dtype) for v in states.values[0]]
            self._traced[key] = tf.function(test, autograph=False).get_concrete_function(spec, own)
        return self._traced[key]


def _run(model: Any, iterator: Any, step: Callable[[Any], Any], *, number: int) -> Any:
    """Runs what Keras runs at once: some steps, fewer at the end of the data."""
    outputs: Any = None
    for done in range(model.steps_per_execution):
        try:
            element = next(iterator)
        except StopIteration:
            if not done:
                raise
            break
        outputs = step((element,) if number == 1 else element)
    return outputs
