"""Gradients of different ranks are matched by the variables that they belong to.

A rank may have no gradient of a variable that others have one of: each trains a head of its own,
or a batch doesn't reach a part of the model. There it counts as zero, so that all ranks add up, and
then apply, gradients of the same variables. Where no rank has one, it stays None on all: to an
optimizer a zero isn't the same as None (Adam's moments decay, weights do too).

A rank can't tell by itself what the others have:

* Eagerly it travels with the header of every step, and may change from step to step.
* A graph has to know it when it is made. So the ranks ask each other when they first trace a
  function with some variables, outside of the graph, whose steps send nothing more. A rank that
  traces it again alone, say for a batch of another size, knows the answer. Where ranks came with
  different gradients, the answer holds for whatever any of them has of these from then on; where
  all had the same, others are asked for again.

Variables are told apart by their positions among those that aren't local; their number, shapes and
dtypes are compared whenever it is asked.
"""

import dataclasses
import enum
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import (
    DisagreementOpError,
    DisplayName,
    ProcessSet,
    describe_tensor,
    group_of,
    stack,
)
from tfddl._src.comm.native import format_ranges
from tfddl._src.gradients.options import Gradient, ReductionOptions
from tfddl._src.runtime import PerRuntime

Kinds = tuple[int, ...]
"""Of each variable, the `Kind` of its gradient."""

_HINT = (
    "HINT: give the same variables, in the same order, on every rank. And where a step has "
    "gradients of other variables from one call to the next, ranks have to trace it in the same "
    "call, since the graphs of the others can't be changed any more. Give it gradients of all of "
    "them (loss + 0 * sum(tf.reduce_sum(v) for v in variables)), or run it eagerly."
)


@dataclasses.dataclass(frozen=True)
class _Agreed:
    """Which gradients there are in the steps of a graph, as some ranks have agreed."""

    function: str
    """How Python calls the `tf.function` that was traced."""

    variables: tuple[weakref.ref[Any] | None, ...]
    """This rank's, in order; None for what isn't a variable but a tensor, another in each trace."""

    descriptions: tuple[str, ...]
    """What they are, the same on all ranks."""

    kinds: Kinds

    differed: bool
    """Whether ranks came with different ones, so that each has zeros where only others have one."""


_AGREED: PerRuntime[dict[tuple[int, ...], list[_Agreed]]] = PerRuntime(lambda _: {})
"""By the ranks that have agreed; the list is the same on all of these."""


class Kind(enum.IntEnum):
    """What a variable has for a gradient."""

    NONE = 0
    DENSE = 1
    SPARSE = 2

    @classmethod
    def of(cls, gradient: Gradient, options: ReductionOptions) -> "Kind":
        """That of a rank's own gradient, as it travels."""
        if gradient is None:
            return cls.NONE
        is_sparse = isinstance(gradient, tf.IndexedSlices) and not options.sparse_as_dense
        return cls.SPARSE if is_sparse else cls.DENSE


def combined(ranks: Iterable[Sequence[int]]) -> Kinds:
    """The kinds of gradients that all ranks then have.

    Args:
        ranks: Of each rank, the kind of each variable's gradient.

    Returns:
        Of each variable: dense where it is on any rank, else sparse where it is on any, else none.
    """
    return tuple(
        next((kind for kind in (Kind.DENSE, Kind.SPARSE) if kind in column), Kind.NONE)
        for column in zip(*ranks, strict=True)
    )


class Matching:
    """Which of the variables get a gradient in a step, and of which kind: alike on all ranks.

    `numbers` travel in the header of the step, whose sum goes to `take`; then `kinds` are known.
    """

    def __init__(
        self, gradients: Sequence[Gradient], variables: Sequence[Any], options: ReductionOptions
    ) -> None:
        """Asks the other ranks, where a graph is made that nobody has asked for yet.

        Args:
            gradients: The rank's own.
            variables: What they are the gradients of; none of them local.
            options: How they are averaged.

        Raises:
            DisagreementOpError: Ranks have other variables; or others don't trace.
        """
        self._gradients, self._variables = gradients, variables
        self._own = tuple(Kind.of(gradient, options) for gradient in gradients)
        self._process_set = options.process_set
        self.kinds: Kinds = ()
        """Of each variable's gradient."""
        self.name = DisplayName("step")
        """How messages call the header."""
        self.about = tuple(
            f"variable {i}: {describe_tensor(tf.as_dtype(v.dtype), tf.TensorShape(v.shape))}"
            for i, v in enumerate(variables)
        )
        """What the header has to be about on all ranks."""
        self._number = 0
        self._is_eager = tf.executing_eagerly()
        if not self._is_eager:
            self.kinds, self._number = self._agreed()
            self.name, self.about = _name(self.kinds), ()

    @property
    def dtype(self) -> tf.DType:
        """That of the header: no less than that of any gradient that a rank may have."""
        # float32 holds counts exactly up to 2**24, more examples than a step has.
        is_double = any(tf.as_dtype(v.dtype) == tf.float64 for v in self._variables)
        return tf.float64 if is_double else tf.float32

    def numbers(self) -> tf.Tensor:
        """What travels in the header: shape (n,), the dtype that `dtype` tells.

        In a graph it is nothing. But where calls are compared only once, another number of zeros
        for each combination keeps the headers of different ones from meeting, by their lengths:
        better that the ranks wait and are told than that they add up what doesn't belong together.
        """
        if self._is_eager:
            flags = [[kind is k for kind in self._own] for k in (Kind.DENSE, Kind.SPARSE)]
            return tf.constant(np.ravel(flags), self.dtype)
        compares = group_of(self._process_set).process_group.compares
        return tf.zeros([0 if compares else self._number], self.dtype)

    def take(self, header: tf.Tensor, start: int) -> None:
        """Takes in the sum over the ranks of their headers, where `numbers` begin at a position."""
        if self._is_eager:
            dense, sparse = np.split(header.numpy()[start:] > 0, 2)
            kinds = [(dense * Kind.DENSE).tolist(), (sparse * Kind.SPARSE).tolist()]
            self.kinds = combined(kinds)

    def _agreed(self) -> tuple[Kinds, int]:
        """Which kinds all ranks have, as agreed now or before, and a number for these."""
        agreed = _AGREED.current().setdefault(group_of(self._process_set).ranks, [])
        function = _traced_function()
        known = [
            one
            for one in agreed
            if (one.function, one.descriptions) == (function, self.about)
            and all(
                r is None or r() is v for r, v in zip(one.variables, self._variables, strict=True)
            )
        ]
        if not any(_covers(one, self._own) for one in known):
            rows = _everyone(self._own, self.about, self._process_set, anew=bool(known))
            known.append(
                _Agreed(
                    function=function,
                    variables=tuple(_reference(variable) for variable in self._variables),
                    descriptions=self.about,
                    kinds=combined(rows),
                    differed=len(set(rows)) > 1,
                )
            )
            agreed.append(known[-1])
        # The first, so that a graph that is traced again gets what it got before.
        kinds = next(one.kinds for one in known if _covers(one, self._own))
        number = [(one.descriptions, one.kinds) for one in agreed].index((self.about, kinds))
        return kinds, number

    def matched(self) -> list[Gradient]:
        """The rank's gradients, zeros where only others have one."""
        return [
            _matched(gradient, variable, kind)
            for gradient, variable, kind in zip(
                self._gradients, self._variables, self.kinds, strict=True
            )
        ]


def _traced_function() -> str:
    """The name of the function that is traced: the outermost, however deep we are in it."""
    graph = tf.compat.v1.get_default_graph()
    name = ""
    while hasattr(graph, "outer_graph"):  # What isn't a function's graph has none.
        name, graph = graph.name, graph.outer_graph
    return name


def _reference(source: Any) -> weakref.ref[Any] | None:
    return None if isinstance(source, tf.Tensor) else weakref.ref(source)


def _covers(agreed: _Agreed, own: Kinds) -> bool:
    """Whether ranks that have agreed upon this need not ask again.

    Where all had the same, other gradients may belong to another kind of step of all ranks, whose
    None has to stay. Where ranks differed, they will go on to do so, each with these or those.
    """
    return own == agreed.kinds or (
        agreed.differed and combined([own, agreed.kinds]) == agreed.kinds
    )


def _everyone(
    own: Kinds, about: tuple[str, ...], process_set: ProcessSet | None, *, anew: bool
) -> list[Kinds]:
    """What all ranks have, in their order; asked eagerly, while a graph is made."""
    more = ", in a step traced with other ones than before" if anew else ""
    try:
        with tf.init_scope():
            rows = stack(
                tf.constant(own, tf.int32),
                about=about,
                name=DisplayName(f"which gradients there are{more}"),
                process_set=process_set,
            ).numpy()
    except DisagreementOpError as error:
        raise DisagreementOpError(None, None, f"{error.message}\n{_HINT}") from None
    return [tuple(row) for row in rows.tolist()]


def _name(kinds: Kinds) -> DisplayName:
    missing = [i for i, kind in enumerate(kinds) if kind == Kind.NONE]
    if not missing:
        return DisplayName("step")
    return DisplayName(
        f"step without gradients of {format_ranges(missing)} of {len(kinds)} variables"
    )


def _matched(gradient: Gradient, variable: Any, kind: int) -> Gradient:
    """A gradient in the kind that all ranks have, its shape as well known as the variable's.

    Ranks compare shapes as far as they are known, and that of a zero is.
    """
    shape = tf.TensorShape(variable.shape)
    if kind == Kind.NONE:
        return None
    if kind == Kind.SPARSE:
        if gradient is None:
            return _no_slices(variable, shape)
        values = _of_shape(gradient.values, tf.TensorShape([None]).concatenate(shape[1:]))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    if gradient is not None:
        return _of_shape(tf.convert_to_tensor(gradient), shape)
    if shape.is_fully_defined():
        return tf.zeros(shape, tf.as_dtype(variable.dtype))
    return tf.zeros_like(tf.convert_to_tensor(variable))


def _no_slices(variable: Any, shape: tf.TensorShape) -> tf.IndexedSlices:
    dimensions = tf.shape(tf.convert_to_tensor(variable), tf.int64)
    if shape.is_fully_defined():
        dimensions = tf.constant(shape.as_list(), tf.int64)
    values = tf.zeros(tf.concat([[0], dimensions[1:]], axis=0), tf.as_dtype(variable.dtype))
    values = _of_shape(values, tf.TensorShape([None]).concatenate(shape[1:]))
    return tf.IndexedSlices(values, tf.zeros([0], tf.int64), dimensions)


def _of_shape(tensor: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """The tensor, told its shape where it knows less of it."""
    known = tensor.shape
    if known.is_fully_defined() or known.is_subtype_of(shape):
        return tensor
    return tf.ensure_shape(tensor, shape)
