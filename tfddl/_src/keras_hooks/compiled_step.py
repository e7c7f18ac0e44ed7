"""`compile(jit_compile=True)`: XLA compiles what lies between the exchanges of a training step.

XLA can't compile communication between workers, so that a step can't be one computation, as it is
in Keras. It becomes up to three, each as Keras wrote it:

1. forward pass, loss and backward pass, whose results are the gradients;
2. after their exchange, the optimizer's update, with clipping, weight decay and loss scaling;
3. the metrics of `compile`, after the update, as in Keras.

The step itself stays a `tf.function` that isn't compiled. What has an exchange within runs
uncompiled, the rest compiled: a forward pass with a synchronized BatchNormalization, or with a loss
of the whole global batch; an update with accumulation, which exchanges in a branch; and a step of
the user's own, unless it calls Keras' by ``super().train_step(data)``. One warning says so, where
``jit_compile=True`` was asked for.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import CompiledError, allgather_object
from tfddl._src.cpu import processor_name
from tfddl._src.keras_hooks.compile import ASKED_FOR_XLA, exchanges_gradients
from tfddl._src.keras_hooks.patching import private, wrap_method
from tfddl._src.keras_hooks.xla import compiled
from tfddl._src.runtime import current
from tfddl._src.step_context import current_step, in_step

_ALIKE = "tfddl_processors_alike"
"""The attribute of a model that tells whether all ranks have the same kind of processor."""


def install() -> None:
    """Hooks into Keras' own `train_step`."""
    wrap_method(keras.Model, "train_step", ("data",), _train_step)


def is_compiled(model: Any) -> bool:
    """Whether XLA compiles what it can of the model's training steps with other workers."""
    return bool(exchanges_gradients(model.optimizer) and model.jit_compile)


def compare_processors(model: Any) -> None:
    """Notes whether the optimizer's update may be compiled. All ranks must call it together.

    Every rank updates its own copy of the weights, which must stay the same bits on all. XLA makes
    code for the processor that it finds, and adds up in an order that depends on it; TensorFlow's
    kernels for the same elementwise operations don't.
    """
    if is_compiled(model):
        everyone = set(allgather_object(_processor()))
        object.__setattr__(model, _ALIKE, len(everyone) == 1)
        if len(everyone) > 1 and getattr(model, ASKED_FOR_XLA, False):
            if current().cluster.rank == 0:
                warnings.warn(
                    "jit_compile=True: the workers have processors of different kinds "
                    f"({'; '.join(sorted(everyone))}), on which XLA rounds differently. The "
                    "optimizer's update runs uncompiled, so that all have the same weights. HINT: "
                    "start all workers on the same kind, or leave jit_compile out.",
                    stacklevel=2,
                )


def updates_alike(model: Any) -> bool:
    """Whether XLA may compile the optimizer's update: all ranks have the same processors.

    Where nobody has compared them, as in `train_on_batch`, it may not.
    """
    return bool(getattr(model, _ALIKE, False))


def _processor() -> str:
    device = current().process_group.device
    if "GPU" not in device:
        return processor_name()
    details = [
        tf.config.experimental.get_device_details(d) for d in tf.config.get_visible_devices("GPU")
    ]
    return ", ".join(sorted(str(known.get("device_name")) for known in details))


@contextlib.contextmanager
def left_to_parts(model: Any) -> Iterator[None]:
    """Within it, functions that Keras makes of the model's steps aren't compiled as a whole."""
    compiles = model.jit_compile
    model.jit_compile = False
    try:
        yield
    finally:
        model.jit_compile = compiles


def warn_of_own_step(model: Any) -> None:
    """Says that a step has had no part that could be compiled but for the optimizer's update."""
    _warn(
        model,
        f"{type(model).__name__}.train_step is its own, with the exchange of gradients within",
        "call super().train_step(data), whose parts are compiled; or put what only computes, such "
        "as the model's call and its loss, into a tf.function(jit_compile=True) of its own",
    )


def _warn(model: Any, reason: str, hint: str) -> None:
    if getattr(model, ASKED_FOR_XLA, False):
        object.__setattr__(model, ASKED_FOR_XLA, False)
        if current().cluster.rank == 0:
            warnings.warn(
                f"jit_compile=True: XLA can't compile communication between workers, and {reason}. "
                "The forward and backward pass run uncompiled, the optimizer's update compiled. "
                f"HINT: {hint}; or leave jit_compile out.",
                stacklevel=2,
            )


def make_variables(model: Any, step: Callable[[], Any]) -> None:
    """Makes the variables of losses and metrics, which Keras makes when they are first called.

    A `tf.function` traces a step again that has made variables, but knows nothing of those that are
    made in a function within it: who reads them before the step would take them for zeros.

    Args:
        model: Whose steps XLA compiles.
        step: What calls them, traced in a graph that never runs.
    """
    parts = [private(model, "_compile_loss"), private(model, "_compile_metrics")]
    if is_compiled(model) and not all(part is None or part.built for part in parts):
        with in_step(dataclasses.replace(current_step(), capture=_Forward())):
            tf.function(step, autograph=False).get_concrete_function()


class _Forward:
    """What Keras' step comes to before the gradients are applied."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.variables: Sequence[Any] = ()
        self.gradients: Sequence[Any] = ()
        self.metrics: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """The arguments of `compute_metrics`, where it was put off."""

    def take(
        self, optimizer: object, gradients: Sequence[object], variables: Sequence[object]
    ) -> None:
        """Takes what Keras' step was to apply, once."""
        self.optimizer, self.gradients, self.variables = optimizer, gradients, variables

    @contextlib.contextmanager
    def without_metrics(self, model: Any) -> Iterator[None]:
        """Puts off what Keras computes after the update, and may be of the updated variables."""
        given = vars(model).get("compute_metrics")
        is_keras_own = given is None and type(model).compute_metrics is keras.Model.compute_metrics
        if is_keras_own and private(model, "_compile_metrics") is None:
            yield  # Only the mean of the losses, of which no variable of the model is part.
            return

        def compute_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
            self.metrics = args, kwargs
            return {}

        object.__setattr__(model, "compute_metrics", compute_metrics)
        try:
            yield
        finally:
            object.__delattr__(model, "compute_metrics")
            if given is not None:
                object.__setattr__(model, "compute_metrics", given)


def _train_step(original: Callable[..., Any], self: Any, data: Any) -> Any:
    step = current_step() if is_compiled(self) else None
    if step is None or step.capture is not None or tf.executing_eagerly():
        return original(self, data)
    make_variables(self, lambda: original(self, data))
    step = dataclasses.replace(step, compiles=updates_alike(self))
    taken = _Forward()

    def forward() -> Any:
        with in_step(dataclasses.replace(step, capture=taken)), taken.without_metrics(self):
            logs = original(self, data)
        return logs, taken.gradients, taken.metrics

    try:
        logs, gradients, metrics = compiled(forward)
    except Exception as error:
        if not _is_of_collective(error):
            raise
        _warn(
            self,
            "the model or its loss has some within: BatchNormalization(synchronized=True), or a "
            "loss of the whole global batch",
            "leave that out",
        )
        with in_step(step):
            return original(self, data)
    object.__setattr__(self, ASKED_FOR_XLA, False)
    with in_step(step):
        if taken.optimizer is not None:
            taken.optimizer.apply(gradients, taken.variables)
        if metrics is not None:
            args, kwargs = metrics
            logs = compiled(lambda: self.compute_metrics(*args, **kwargs))
    return logs


def _is_of_collective(error: BaseException | None) -> bool:
    """Whether an error is, or comes of, a collective in what XLA was to compile."""
    # Keras makes errors of layers anew (inject_argument_info_in_traceback,
    # keras/src/utils/traceback_utils.py); the first one stays their context.
    while error is not None:
        if isinstance(error, CompiledError):
            return True
        error = error.__cause__ or error.__context__
    return False
