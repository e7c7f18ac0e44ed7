"""Horovod's wrappers of optimizers and tapes: its options, converted to tfddl's."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.gradients import DistributedGradientTape, ReductionOptions
from tfddl._src.horovod.compression import Compression, resolve_compression
from tfddl._src.horovod.process_sets import global_process_set, resolve_process_set
from tfddl._src.horovod.reductions import Adasum, Average, resolve_op, warn_no_device
from tfddl._src.horovod.tf1_optimizer import Tf1Optimizer
from tfddl._src.keras_hooks.optimizer import distribute, innermost
from tfddl.errors import UnsupportedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrapperOptions:
    """The arguments that Horovod's wrappers share, as scripts give them."""

    compression: Any = Compression.none
    sparse_as_dense: bool = False
    op: Any = Average
    gradient_predivide_factor: float = 1.0
    num_groups: int = 0
    groups: Any = None
    process_set: Any = global_process_set
    scale_local_gradients: bool = True
    device_dense: str = ""
    device_sparse: str = ""
    local_layers: Any = None

    def averaging(self, **more: Any) -> ReductionOptions:
        """The options of tfddl's own reduction.

        Raises:
            UnsupportedError: An argument isn't supported.
        """
        warn_no_device(self.device_dense, self.device_sparse)
        factor = self.gradient_predivide_factor
        op = resolve_op(self.op, None)
        if factor != 1.0 and op is not Average:
            raise UnsupportedError(
                "gradient_predivide_factor divides an average in two steps, but op is "
                f"{op}; it must be hvd.Average."
            )
        return ReductionOptions(
            op=op,
            compression=resolve_compression(self.compression),
            sparse_as_dense=self.sparse_as_dense,
            by_count=False,  # Horovod averages ranks, tfddl's own wrappers examples.
            evaluates_alone=True,
            predivide=None if factor == 1.0 else factor,
            groups=_groups(self.num_groups, self.groups),
            process_set=resolve_process_set(self.process_set),
            scale_local=self.scale_local_gradients,
            local=_variables_of(self.local_layers),
            **more,
        )


def _groups(num_groups: int, groups: Any) -> int | tuple[tuple[Any, ...], ...]:
    if num_groups:
        warnings.warn(
            "num_groups is the deprecated name of groups.", DeprecationWarning, stacklevel=5
        )
        groups = num_groups if groups is None else groups
    if groups is None:
        return 1
    if isinstance(groups, int) and groups >= 0:
        return max(1, groups)
    if isinstance(groups, list | tuple) and all(isinstance(g, list | tuple) for g in groups):
        return tuple(tuple(group) for group in groups)
    raise UnsupportedError(
        f"groups is {groups!r}; it must be a number, 0 or more, or a list of lists of variables."
    )


def _variables_of(layers: Any) -> tuple[Any, ...]:
    """All variables of some layers, non-trainable ones included."""
    if layers is None:
        return ()
    if isinstance(layers, keras.layers.Layer):
        layers = [layers]
    if not all(isinstance(layer, keras.layers.Layer) for layer in layers):
        raise UnsupportedError(f"local_layers is {layers!r}; it must be a layer, or several.")
    for layer in layers:
        if not layer.built:
            raise UnsupportedError(
                f"The local layer {layer.name} has no variables yet. HINT: build the model first: "
                "give it an Input, or call it on a batch."
            )
    return tuple(variable for layer in layers for variable in layer.weights)


class Tape(DistributedGradientTape):
    """The tape of `hvd.DistributedGradientTape`, with Horovod's methods."""

    def register_local_source(self, source: Any) -> None:
        """Excludes a variable: its gradient stays this rank's own.

        It is divided by the number of ranks, unless ``scale_local_gradients`` is False.

        Args:
            source: The variable.
        """
        kept = (*self._options.local, source)
        self._options = dataclasses.replace(self._options, local=kept)

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        use_generic_names: bool = False,
        *,
        count: Any = None,
    ) -> Any:
        """`tfddl.DistributedGradientTape.gradient`, with the arguments of that method.

        Args:
            target: As there.
            sources: As there.
            output_gradients: As there.
            use_generic_names: Has no effect: gradients have no names that graphs could disagree on.
            count: As there.
        """
        return super().gradient(target, sources, output_gradients, count=count)

    def get_local_and_global_gradients(
        self,
        target: Any,
        sources: Sequence[Any],
        output_gradients: Any = None,
        use_generic_names: bool = False,
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """`gradient`, divided into what stays this rank's own and what is averaged.

        Args:
            target: As for `gradient`.
            sources: The variables, in a list.
            output_gradients: As for `gradient`.
            use_generic_names: As for `gradient`.

        Returns:
            Two lists of (variable, gradient): local ones, and averaged ones.
        """
        gradients = self.gradient(target, sources, output_gradients, use_generic_names)
        pairs = list(zip(sources, gradients, strict=True))
        is_local = self._options.is_local
        return [p for p in pairs if is_local(p[0])], [p for p in pairs if not is_local(p[0])]


def wrap_tape(tape: Any, options: WrapperOptions) -> DistributedGradientTape:
    """A tape whose gradients are averaged.

    Raises:
        UnsupportedError: It is no tape, or an option isn't supported.
        NotInitializedError: `init` has not been called.
    """
    if not isinstance(tape, tf.GradientTape):
        raise UnsupportedError(f"gradtape is {tape!r}; it must be a tf.GradientTape.")
    return Tape.of(tape, options.averaging())


def wrap_optimizer(
    optimizer: Any,
    options: WrapperOptions,
    *,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
) -> keras.optimizers.Optimizer:
    """A Keras optimizer whose gradients are averaged: the same object.

    Raises:
        UnsupportedError: It is no Keras 3 optimizer, or an option isn't supported.
        NotInitializedError: `init` has not been called.
    """
    accumulates = backward_passes_per_step > 1
    _check_passes(options, backward_passes_per_step, average_aggregated_gradients)
    averaging = options.averaging(sum_passes=accumulates and not average_aggregated_gradients)
    inner = innermost(optimizer)
    if accumulates and getattr(inner, "gradient_accumulation_steps", None):
        raise UnsupportedError(
            "backward_passes_per_step and the optimizer's gradient_accumulation_steps are both "
            "given; they are the same. HINT: leave one out."
        )
    if accumulates and getattr(inner, "built", False):
        raise UnsupportedError(
            "backward_passes_per_step needs variables for accumulated gradients, which a built "
            "optimizer can't create. HINT: wrap it before the model is compiled or trained, or "
            f"create it with gradient_accumulation_steps={backward_passes_per_step}."
        )
    distributed = distribute(optimizer, averaging)
    if accumulates:
        inner.gradient_accumulation_steps = backward_passes_per_step
    # Past KerasAutoTrackable.__setattr__, which would save it with the optimizer.
    object.__setattr__(inner, "register_local_var", functools.partial(_register_local, inner))
    return distributed


def wrap_tf1_optimizer(
    optimizer: tf.compat.v1.train.Optimizer,
    options: WrapperOptions,
    *,
    name: str | None,
    backward_passes_per_step: int,
    average_aggregated_gradients: bool,
) -> Tf1Optimizer:
    """An optimizer of TensorFlow 1 whose gradients are averaged.

    Raises:
        UnsupportedError: An option isn't supported.
        NotInitializedError: `init` has not been called.
    """
    _check_passes(options, backward_passes_per_step, average_aggregated_gradients)
    return Tf1Optimizer(
        optimizer,
        options.averaging(),
        name=name,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
    )


def _check_passes(options: WrapperOptions, passes: int, are_averaged: bool) -> None:
    if are_averaged and resolve_op(options.op, None) is Adasum:
        raise UnsupportedError("average_aggregated_gradients isn't supported with op=hvd.Adasum.")
    if passes < 1:
        raise UnsupportedError(f"backward_passes_per_step is {passes}; it must be at least 1.")


def _register_local(optimizer: Any, var: Any) -> None:
    """Excludes a variable from an optimizer's averages: its gradient stays this rank's own."""
    kept = (*optimizer.tfddl_options.local, var)
    optimizer.tfddl_options = dataclasses.replace(optimizer.tfddl_options, local=kept)
