"""`compile` with a distributed optimizer: refuses what can't work."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tfddl._src.gradients import ReductionOptions
from tfddl._src.keras_hooks import scope, script_strategies
from tfddl._src.keras_hooks.optimizer import (
    innermost,
    is_distributed,
    is_under_scope,
    refuse_strategy_scope,
)
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.runtime import current, is_started
from tfddl.errors import UnsupportedError

ASKED_FOR_XLA = "tfddl_asked_for_xla"
"""The attribute of a model that tells whether it was compiled with jit_compile=True, not "auto",
and whether there may still be something to warn of."""


def install() -> None:
    """Hooks into `keras.Model.compile`."""
    wrap_method(keras.Model, "compile", ("optimizer", "loss"), _compile)


def exchanges_gradients(optimizer: Any) -> bool:
    """Whether an optimizer exchanges gradients with other workers."""
    if not is_started() or not is_distributed(optimizer):
        return False
    averaging: ReductionOptions = innermost(optimizer).tfddl_options
    return averaging.size > 1 or averaging.virtual_workers is not None


def trains_together(optimizer: Any) -> bool:
    """Whether a model with this optimizer trains together with those of all other workers.

    With a process set of Horovod's it exchanges gradients, but not with all.
    """
    return exchanges_gradients(optimizer) and innermost(optimizer).tfddl_options.process_set is None


def evaluates_together(optimizer: Any) -> bool:
    """Whether `evaluate` and `predict` of a model with this optimizer are the job's.

    Where Horovod's names wrapped the optimizer, they are each rank's own, as its scripts expect.
    The optimizer decides, not who called `init`: both may be in one script.
    """
    return trains_together(optimizer) and not innermost(optimizer).tfddl_options.evaluates_alone


def refuse_virtual_xla(optimizer: Any, asked: bool) -> None:
    """Raises where XLA was asked to compile the steps of virtual workers.

    Raises:
        UnsupportedError: It was.
    """
    if asked and exchanges_gradients(optimizer):
        virtual_workers = innermost(optimizer).tfddl_options.virtual_workers
        if virtual_workers is not None:
            raise UnsupportedError(
                f"jit_compile=True can't be combined with virtual_workers={virtual_workers}: that "
                "XLA's code rounds alike on any number of workers has not been shown. HINT: leave "
                "jit_compile out, or virtual_workers."
            )


def _compile(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    call = inspect.signature(original).bind(self, *args, **kwargs)
    call.apply_defaults()
    optimizer = call.arguments["optimizer"]
    script_strategies.refuse_other_strategies(self)
    if is_distributed(optimizer) and not is_under_scope(optimizer):
        refuse_strategy_scope()
    with scope.of(self):
        optimizer = scope.adopt_optimizer(self, optimizer, call.arguments["loss"])
        call.arguments["optimizer"] = optimizer
        _compile_for_workers(self, original, call)


def _may_exchange(model: Any) -> bool:
    """Whether a model's steps may use collectives although its optimizer doesn't."""
    # On GPUs Keras takes "auto" for True (model_supports_jit, keras/src/trainers/trainer.py), with
    # which a user's own step that has a DistributedGradientTape in it couldn't be compiled.
    is_keras_own = type(model).train_step is keras.Model.train_step
    return is_started() and current().cluster.size > 1 and not is_keras_own


def _compile_for_workers(
    model: Any, original: Callable[..., Any], call: inspect.BoundArguments
) -> None:
    optimizer, asked = call.arguments["optimizer"], call.arguments["jit_compile"]
    if exchanges_gradients(optimizer):
        refuse_virtual_xla(optimizer, asked is True)
        if innermost(optimizer).tfddl_options.virtual_workers is not None:
            call.arguments["jit_compile"] = False
    elif call.arguments["jit_compile"] == "auto" and _may_exchange(model):
        call.arguments["jit_compile"] = False
    original(*call.args, **call.kwargs)
    # Past Keras' own __setattr__, which would save it.
    object.__setattr__(model, ASKED_FOR_XLA, asked is True)
