"""The ranks' gradients are exchanged, and what a step knows of itself travels with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import (
    DisplayName,
    ReduceOp,
    grouped_allgather,
    grouped_allreduce,
    sum_narrow,
    sum_numbers,
    sum_scaled,
    sum_weighted,
)
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.comm.session_graph import is_for_session
from tfddl._src.gradients.matching import Matching
from tfddl._src.gradients.options import Compression, Gradient, ReductionOptions
from tfddl._src.runtime import current
from tfddl._src.step_context import StepContext
from tfddl.errors import UnimplementedError

_SMALL_BYTES = 2**20
"""Of all gradients of a step. The header is sent while gradients are computed, and is worth a trip
of its own only where these are large."""


@no_autograph
def reduce_gradients(
    gradients: Sequence[Gradient],
    options: ReductionOptions,
    variables: Sequence[Any],
    step: StepContext,
) -> list[Gradient]:
    """Combines the gradients of all ranks; what the step knows of itself travels with them.

    All ranks must call it together, all of them eagerly or all in a graph. In a `tf.Graph` for a
    session, nothing travels with them: ranks, which build the same graph there, count alike.

    Args:
        gradients: The rank's own. None where a variable has none: where another rank has one, it
            counts as zero, with the rank's count.
        options: How.
        variables: What they are the gradients of, in the same order; the same number, shapes and
            dtypes on all ranks, but for local ones.
        step: What the step knows of itself.

    Returns:
        In the same order, the same on every rank (but local ones): None where all ranks have None,
        `tf.IndexedSlices` where some have these and none a dense gradient.

    Raises:
        DisagreementOpError: Ranks have other variables; or only some of them trace a graph that has
            gradients of other variables than any before.
    """
    if not options.exchanges:
        return unexchanged(gradients, options, variables)
    result = [
        _own(gradient, options) if options.is_local(variable) else None
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
    shared = _shared(variables, options)
    if is_for_session():
        there = {i: _prepared(gradients[i], options) for i in shared if gradients[i] is not None}
        weight = tf.constant(
            options.scale / options.size if options.op is ReduceOp.AVERAGE else 1.0
        )
        _reduce_groups(result, there, options, variables, weight)
        return result
    own = [_prepared(gradients[i], options) for i in shared]
    matching = Matching(own, [variables[i] for i in shared], options)
    header = _Header(step, options, matching)
    if tf.executing_eagerly():  # Only the header tells which variables have a gradient.
        weight = header.weight(after=own)
        values = _present(shared, matching)
    else:
        values = _present(shared, matching)
        sparse = {i: v for i, v in values.items() if isinstance(v, tf.IndexedSlices)}
        dense = {i: v for i, v in values.items() if i not in sparse}
        if _are_small(list(dense.values()), options, header.mine.dtype):
            sums, weight = header.sum_with(list(dense.values()))
            arrived = _gathered([_scaled(value, weight) for value in sparse.values()], options)
            for i, total in zip([*dense, *sparse], [*sums, *arrived], strict=True):
                result[i] = total
            return result
        weight = header.weight(after=own)
    _reduce_groups(result, values, options, variables, weight)
    return result


def unexchanged(
    gradients: Sequence[Gradient], options: ReductionOptions, variables: Sequence[Any]
) -> list[Gradient]:
    """What a rank applies whose gradients go nowhere; see `ReductionOptions.exchanges`.

    As in Horovod, a rank outside of the process set keeps its gradients, and divides those of local
    variables by the set's size as its members do.

    Args:
        gradients: The rank's own.
        options: How the others' are averaged.
        variables: What they are the gradients of, in the same order.
    """
    if options.size == 1:
        return list(gradients)
    return [
        _own(gradient, options) if options.is_local(variable) else _prepared(gradient, options)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def _reduce_groups(
    result: list[Gradient],
    values: Mapping[int, Any],
    options: ReductionOptions,
    variables: Sequence[Any],
    weight: tf.Tensor,
) -> None:
    """Puts the sums of weighted gradients, given by their positions, into a result."""
    # The last layers' gradients are there first. Where nothing is sent before all are there, they
    # are sent in the order in which an optimizer applies them, which then frees them one by one.
    in_order = list(reversed(values)) if current().process_group.overlaps else list(values)
    for group in options.in_groups(in_order, variables):
        totals = _sum_of_scaled([values[i] for i in group], options, weight)
        for i, total in zip(group, totals, strict=True):
            result[i] = total


def _shared(variables: Sequence[Any], options: ReductionOptions) -> list[int]:
    """Where the variables are whose gradients aren't the rank's own."""
    return [i for i, variable in enumerate(variables) if not options.is_local(variable)]


def _present(positions: Sequence[int], matching: Matching) -> dict[int, Any]:
    """By their positions, the gradients that there are on any rank."""
    matched = zip(positions, matching.matched(), strict=True)
    return {i: gradient for i, gradient in matched if gradient is not None}


def _are_small(values: Sequence[Any], options: ReductionOptions, dtype: tf.DType) -> bool:
    """Whether dense gradients travel in the header of the step: that saves a second trip.

    What is multiplied with counts and added up before it is divided must not overflow: 16 bits
    would. Whoever has asked for some way of travelling gets that.
    """
    if options.compression is not Compression.NONE or options.predivide is not None:
        return False
    if options.op is ReduceOp.ADASUM:
        return False
    if options.groups != 1:
        return False
    lengths = [value.shape.num_elements() for value in values if value.dtype == dtype]
    if len(lengths) < len(values) or None in lengths:
        return False
    return sum(lengths) * dtype.size <= _SMALL_BYTES


def _own(gradient: Gradient, options: ReductionOptions) -> Gradient:
    """A gradient that stays with the rank, as much as it would count in an average."""
    if gradient is None or not options.scale_local:
        return gradient
    return _scaled(gradient, tf.constant(1.0 / options.size))


class _Header:
    """The few numbers of a step that travel with its gradients."""

    def __init__(
        self,
        step: StepContext,
        options: ReductionOptions,
        matching: Matching,
        *,
        finite: Any = None,
    ) -> None:
        self._step, self._matching = step, matching
        self._process_set = options.process_set
        dtype = matching.dtype
        self._divides = options.op is ReduceOp.AVERAGE
        self._count = tf.constant(1.0, dtype) if step.count is None else tf.cast(step.count, dtype)
        # `scale_loss` has divided the loss by the number of ranks already: where all have the same
        # count, what gradients are multiplied with is then 1, exactly.
        scale = options.scale * step.loss_divisor
        self.weight_sent = self._count * scale if self._divides else tf.constant(1.0, dtype)
        """What this rank's gradients are multiplied with before they are added up."""
        self._size: float | None = None
        if self._divides and not options.by_count and step.count is None:
            # As in Horovod, also where some have joined, and so have no count.
            self._size = float(options.size)
        stop = 0.0 if step.stop is None else tf.convert_to_tensor(step.stop)
        broken = 0.0 if finite is None else 1.0 - tf.cast(finite, dtype)
        examples = tf.constant(1.0, dtype) if step.examples is None else step.examples
        examples = tf.cast(examples, dtype)
        self.mine = tf.stack([self._count, tf.cast(stop, dtype), tf.cast(broken, dtype), examples])
        if step.statistics is not None:
            changes = _scaled(step.statistics.change(dtype), examples)
            self.mine = tf.concat([self.mine, changes], axis=0)
        self._own_length = self.mine.shape[0]
        numbers = matching.numbers()
        if numbers.shape[0]:
            self.mine = tf.concat([self.mine, numbers], axis=0)

    def received(self, total: tf.Tensor) -> tf.Tensor:
        """Takes in what came back; returns what the summed gradients are divided by."""
        if not self._step.reports_progress:
            current().count_round()
        self._matching.take(total, self._own_length)
        count, stop, _, examples = tf.unstack(total[:4])
        if self._step.stop_agreed is not None:
            self._step.stop_agreed.assign(tf.cast(stop, self._step.stop_agreed.dtype))
        if self._step.totals is not None:
            totals = tf.stack([count, examples])
            self._step.totals.assign(tf.cast(totals, self._step.totals.dtype))
        if self._step.statistics is not None:
            changes = total[4 : self._own_length]
            self._step.statistics.take(tf.math.divide_no_nan(changes, examples))
        if self._size is not None:
            return tf.constant(self._size, total.dtype)
        return count if self._divides else tf.ones_like(count)

    def sum_with(self, gradients: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Sends the header and gradients in one.

        Args:
            gradients: This rank's, dense, of the header's dtype; the same shapes on all ranks.

        Returns:
            The gradients, averaged or added up; what this rank's other gradients are multiplied
            with.
        """
        if not gradients:
            return [], self.weight(after=[])
        # A rank whose batch is only padding has a weight of 0 and contributes nothing, whatever its
        # gradients are.
        total, means = sum_weighted(
            self.mine,
            gradients,
            self.weight_sent,
            divisor=(self._size if self._divides else 1.0),
            name=self._matching.name,
            process_set=self._process_set,
        )
        divisor = self.received(total)
        return means, tf.math.divide_no_nan(self.weight_sent, divisor)

    def weight(self, *, after: Sequence[Gradient]) -> tf.Tensor:
        """Sends the header alone; returns what this rank's gradients are multiplied with.

        Args:
            after: The rank's gradients. Where nothing can be computed meanwhile, it isn't sent
                before they are there: a rank that has nothing else to do would wait for one that
                computes first.
        """
        mine = self.mine if current().process_group.overlaps else _after(self.mine, after)
        matching = self._matching
        total = sum_numbers(
            mine, about=matching.about, name=matching.name, process_set=self._process_set
        )
        weight = tf.math.divide_no_nan(self.weight_sent, self.received(total))
        # NaN times anything is NaN: the loss-scale optimizer of every rank then finds gradients
        # that aren't finite, and skips the step.
        return tf.where(total[2] > 0, tf.constant(float("nan"), weight.dtype), weight)


def _after(tensor: tf.Tensor, others: Sequence[Gradient]) -> tf.Tensor:
    """A tensor, once others are there.

    By edges that only say so, of which TensorFlow may drop one: then it is there sooner. To take
    the others in, as an input of something, would cost more than that.
    """
    there = [other for other in others if other is not None]
    with tf.control_dependencies(tf.nest.flatten(there, expand_composites=True)):
        return tf.identity(tensor)


def _sum_of_scaled(
    values: Sequence[Any], options: ReductionOptions, weight: tf.Tensor
) -> list[Any]:
    """The sum over the ranks of what each multiplies with a weight of its own.

    It is weighted before it is added up: 16 bits would overflow, and slices are never added up.
    """
    before = weight * _spread(options)
    sparse = [i for i, value in enumerate(values) if isinstance(value, tf.IndexedSlices)]
    dense = [i for i in range(len(values)) if i not in sparse]
    if options.op is ReduceOp.ADASUM:
        if sparse:
            raise UnimplementedError(
                "adasum of sparse gradients isn't built. HINT: sparse_as_dense=True."
            )
        sums = _summed([_scaled(v, before) for v in values], options, name=DisplayName("gradients"))
    elif options.compression is Compression.NONE:
        sums = sum_scaled(
            [values[i] for i in dense],
            before,
            name=DisplayName("gradients"),
            process_set=options.process_set,
        )
    elif isinstance(options.compression, Compression):
        scaled = [_scaled(values[i], before) for i in dense]
        sums = _summed(scaled, options, name=DisplayName("gradients"))
    else:  # A script's own compresses gradients as they are, as in Horovod.
        compressed = [options.compress(values[i]) for i in dense]
        sent = [_scaled(value, before) for value, _ in compressed]
        arrived = sum_narrow(sent, name=DisplayName("gradients"), process_set=options.process_set)
        contexts = [context for _, context in compressed]
        sums = list(map(options.decompress, arrived, contexts))
    reduced = list(values)
    for i, total in zip(dense, sums, strict=True):
        reduced[i] = _divided(total, options)
    arrived_slices = _gathered([_scaled(values[i], before) for i in sparse], options)
    for i, slices in zip(sparse, arrived_slices, strict=True):
        reduced[i] = _divided(slices, options)
    return reduced


def _summed(
    values: Sequence[tf.Tensor], options: ReductionOptions, *, name: str
) -> list[tf.Tensor]:
    process_set = options.process_set
    op = ReduceOp.ADASUM if options.op is ReduceOp.ADASUM else ReduceOp.SUM
    if options.compression is Compression.NONE:
        return grouped_allreduce(values, op, name=name, process_set=process_set)
    # float16 has no number above 65504. An average was weighted by count / total before: the sum is
    # no larger than the largest gradient.
    narrow = [options.compress(value) for value in values]
    sent = [value for value, _ in narrow]
    if op is ReduceOp.ADASUM:
        sums = grouped_allreduce(sent, op, name=name, process_set=process_set)
    else:
        sums = sum_narrow(sent, name=name, process_set=process_set)
    return list(map(options.decompress, sums, [context for _, context in narrow]))


def _spread(options: ReductionOptions) -> float:
    """What is left for after the sum, of the division of what is weighted before it."""
    return 1.0 if options.predivide is None else options.size / options.predivide


def _divided(value: Any, options: ReductionOptions) -> Any:
    spread = _spread(options)
    return value if spread == 1.0 else _scaled(value, tf.constant(1.0 / spread))


def _gathered(
    gradients: Sequence[tf.IndexedSlices], options: ReductionOptions
) -> list[tf.IndexedSlices]:
    """The slices of all ranks, one gradient's behind the other's, all of them at once."""
    # A rank that has none doesn't know of which dtype the others' indices are.
    indices = [tf.cast(gradient.indices, tf.int64) for gradient in gradients]
    arrived = grouped_allgather(
        [*indices, *(gradient.values for gradient in gradients)],
        name=DisplayName("sparse gradients"),
        process_set=options.process_set,
    )
    # Slices of the same row aren't added up. Keras' optimizers don't do so either (Adam squares
    # each of them, see elementwise_unary in keras/src/backend/tensorflow/sparse.py): one process
    # that had the whole batch would apply just these.
    return [
        tf.IndexedSlices(
            values=values,
            indices=tf.cast(rows, gradient.indices.dtype),
            dense_shape=gradient.dense_shape,
        )
        for gradient, rows, values in zip(
            gradients, arrived[: len(indices)], arrived[len(indices) :], strict=True
        )
    ]


def _prepared(gradient: Any, options: ReductionOptions) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices) and not options.sparse_as_dense:
        return gradient
    return tf.convert_to_tensor(gradient)


def _scaled(gradient: Any, weight: tf.Tensor) -> Any:
    """Zero where the weight is zero, whatever the gradient; NaN where the weight is."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = _scaled(gradient.values, weight)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.math.multiply_no_nan(gradient, tf.cast(weight, gradient.dtype))


@no_autograph
def weight_gradients(
    gradients: Sequence[Gradient],
    options: ReductionOptions,
    variables: Sequence[Any],
    step: StepContext,
    *,
    check_finite: Callable[..., Any] | None = None,
) -> list[Gradient]:
    """Multiplies a rank's gradients so that their sum over the ranks is the average.

    Args:
        gradients: The rank's own, as for `reduce_gradients`.
        options: How they are averaged.
        variables: What they are the gradients of, in the same order.
        step: What the step knows of itself.
        check_finite: Where they aren't finite on any rank by this, they become NaN on all.

    Returns:
        In the same order; None where all ranks have None, zeros where only others have a gradient.

    Raises:
        DisagreementOpError: As for `reduce_gradients`.
    """
    finite = None if check_finite is None else check_finite(gradients)
    shared = _shared(variables, options)
    own = [_prepared(gradients[i], options) for i in shared]
    matching = Matching(own, [variables[i] for i in shared], options)
    header = _Header(step, options, matching, finite=finite)
    weight = header.weight(after=gradients) * _spread(options)
    # A loss-scale optimizer must skip the step for local gradients too.
    finite_anywhere = tf.where(tf.math.is_nan(weight), weight, tf.ones_like(weight))
    result = [_scaled(_own(gradient, options), finite_anywhere) for gradient in gradients]
    for i, gradient in zip(shared, matching.matched(), strict=True):
        result[i] = _scaled(gradient, weight)
    return result


@no_autograph
def sum_gradients(
    gradients: Sequence[tf.Tensor], options: ReductionOptions, variables: Sequence[Any]
) -> list[tf.Tensor]:
    """The sum over the ranks of gradients that went through `weight_gradients`."""
    values = [tf.convert_to_tensor(g) for g in gradients]
    for group in options.in_groups(_shared(variables, options), variables):
        sums = _summed(
            [values[i] for i in group], options, name=DisplayName("accumulated gradients")
        )
        for i, total in zip(group, sums, strict=True):
            values[i] = _divided(total, options)
    return values
