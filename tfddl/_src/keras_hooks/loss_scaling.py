"""Loss scaling decides alike on all ranks whether a step is skipped.

`LossScaleOptimizer.apply` looks at the gradients it is given, and applies them inside a `cond`
(keras/src/optimizers/loss_scale_optimizer.py). With the averaging inside that branch, a rank whose
own gradients aren't finite would leave the others waiting for ever. So the averaging comes before:
an infinity of one rank then reaches all.
"""

from collections.abc import Callable
from typing import Any

import keras

from tfddl._src.keras_hooks.compile import exchanges_gradients
from tfddl._src.keras_hooks.optimizer import (
    captured,
    innermost,
    reduce_or_weight,
    reduced_before,
    refuse_strategy_scope,
    update,
)
from tfddl._src.keras_hooks.patching import wrap_method


def install() -> None:
    """Hooks into `LossScaleOptimizer.apply`."""
    wrap_method(
        keras.optimizers.LossScaleOptimizer, "apply", ("grads", "trainable_variables"), _apply
    )


def _apply(
    original: Callable[..., Any], self: Any, grads: Any, trainable_variables: Any = None
) -> Any:
    inner = innermost(self)
    if not exchanges_gradients(self) or inner.tfddl_reduced:
        return original(self, grads, trainable_variables)
    grads = list(grads)
    if captured(self, grads, trainable_variables):
        return None
    if not inner.tfddl_under_scope:
        refuse_strategy_scope()
    grads = reduce_or_weight(inner, grads, trainable_variables, check_finite=self.check_finite)

    def apply(grads: Any, trainable_variables: Any) -> None:
        original(self, grads, trainable_variables)

    with reduced_before(inner):
        update(self, apply, grads, trainable_variables)
    return None
