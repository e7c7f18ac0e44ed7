"""`compile` with a distributed optimizer: what can't work is refused, XLA is kept out."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tfddl.errors import UnsupportedError
from tfddl.keras_hooks.patching import wrap_method
from tfddl.optimizer import is_distributed, refuse_strategy_scope
from tfddl.runtime import current, is_started

NO_XLA = (
    "jit_compile=True can't work with a DistributedOptimizer on several workers: XLA can't compile "
    'the exchange of gradients. Leave jit_compile at "auto" (it then means False), or set it to '
    "False."
)


def install() -> None:
    """Puts the hook in place."""
    wrap_method(keras.Model, "compile", ("optimizer", "loss"), _compile)


def acts_on(optimizer: Any) -> bool:
    """Whether a model with this optimizer trains together with other workers."""
    return is_started() and current().cluster.size > 1 and is_distributed(optimizer)


def _compile(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    call = inspect.signature(original).bind(self, *args, **kwargs)
    optimizer = call.arguments.get("optimizer")
    if is_distributed(optimizer):
        refuse_strategy_scope()
    if acts_on(optimizer):
        asked = call.arguments.get("jit_compile", "auto")
        if asked is True:
            raise UnsupportedError(NO_XLA)
        call.arguments["jit_compile"] = False
    return original(*call.args, **call.kwargs)
