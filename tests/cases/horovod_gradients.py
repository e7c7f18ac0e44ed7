"""Cases of `tests/test_horovod_gradients.py`, run by every worker.

Each row of the table has an operation of Horovod's names, and NumPy's definition of what it gives,
of its gradient, and of the gradient of that, in one process that has all ranks' values.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd
from tests.cases import simulated
from tests.cases.simulated import Arrays
from tfddl import shard_range

Tensors = list[tf.Tensor]
_MOST = 40
"""Rows that any tensor has at most."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a worker is among those that take part."""

    members: tuple[int, ...]
    rank: int

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def options(self) -> dict[str, Any]:
        """What tells an operation who takes part."""
        if self.size == hvd.size():
            return {}
        return {"process_set": hvd.ProcessSet(self.members)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An operation on some tensors. Every function of arrays takes those of all ranks."""

    ours: Callable[[Tensors, Place], Sequence[Any]]
    theirs: Callable[[Arrays], Arrays]
    """What each rank gets of one tensor."""
    gradient: Callable[[Arrays, list[int]], Arrays]
    """Of the upstream gradients, and how many rows each rank has of the tensor."""
    again: Callable[[Arrays, list[int]], Arrays]
    """The same of `gradient`: what becomes of upstream gradients of what it gives."""
    rows: Callable[[int, int], int] = lambda rank, size: 3
    """How many rows rank and size begin with."""
    dtypes: tuple[str, ...] = ("float64",)
    """Of each tensor."""
    unused: tuple[int, ...] = ()
    """Which results no loss depends on: their upstream gradient is None."""
    rounding: float = 1e-12


MIXED: dict[str, Any] = {"dtypes": ("float32", "float64", "float64"), "rounding": 2e-6}
FACTORS = {"prescale_factor": -2.0, "postscale_factor": 1.5}
OPS = {
    "average": hvd.Average,
    "sum": hvd.Sum,
    "min": hvd.Min,
    "max": hvd.Max,
    "product": hvd.Product,
}


def _allreduce(op: str, *, factors: bool = False, **row: Any) -> Row:
    """An allreduce of the upstream gradients, with the same op and factors."""
    given: dict[str, Any] = {"op": OPS[op], **(FACTORS if factors else {})}

    def ours(xs: Tensors, place: Place) -> Sequence[Any]:
        if len(xs) > 1:
            return hvd.grouped_allreduce(xs, **given, **place.options)
        return [hvd.allreduce(xs[0], **given, **place.options)]

    def same(xs: Arrays, _: Any = None) -> Arrays:
        pre, post = FACTORS.values() if factors else (1.0, 1.0)
        return simulated.allreduce(xs, op, pre=pre, post=post)

    return Row(**{"ours": ours, "theirs": same, "gradient": same, "again": same, **row})


def _allgather(ours: Callable[[Tensors, Place], Sequence[Any]], **row: Any) -> Row:
    """The rank's own rows of the averaged upstream gradients."""
    return Row(
        ours=ours,
        theirs=simulated.allgather,
        gradient=lambda us, lengths: np.split(_mean(us), np.cumsum(lengths)[:-1]),
        again=lambda ds, _: [np.concatenate(ds) / len(ds)] * len(ds),
        **row,
    )


def _broadcast(root: int) -> Row:
    """The averaged upstream gradients on the root, zeros elsewhere."""

    def gradient(us: Arrays, _: Any) -> Arrays:
        last = len(us) - 1
        at = last if root < 0 else root
        return [_mean(us) if rank == at else np.zeros_like(us[rank]) for rank in range(len(us))]

    return Row(
        ours=lambda xs, place: [hvd.broadcast(xs[0], place.members[root], **place.options)],
        theirs=lambda xs: simulated.broadcast(xs, root),
        gradient=gradient,
        again=lambda ds, _: [ds[root] / len(ds)] * len(ds),
    )


def _splits(size: int) -> list[list[int]]:
    """Row i, column j: how many rows rank i sends to rank j; the third one sends nothing."""
    return [[(i + 2 * j) % 3 * (i != 2) for j in range(size)] for i in range(size)]


def _even_splits(size: int) -> list[list[int]]:
    return [[i + 1] * size for i in range(size)]


def _alltoall(splits: Callable[[int], list[list[int]]], *, told: bool) -> Row:
    """An alltoall back, by the received splits."""

    def ours(xs: Tensors, place: Place) -> Sequence[Any]:
        if told:
            mine = splits(place.size)[place.rank]
            return [hvd.alltoall(xs[0], mine, **place.options)[0]]
        return [hvd.alltoall(xs[0], **place.options)]

    def there(xs: Arrays, _: Any = None) -> Arrays:
        return simulated.alltoall(xs, splits(len(xs)))

    return Row(
        ours=ours,
        theirs=there,
        gradient=lambda us, _: simulated.alltoall(us, np.transpose(splits(len(us))).tolist()),
        again=there,
        rows=lambda rank, size: sum(splits(size)[rank]),
    )


def _reducescatter(op: str, *, factors: bool = False, **row: Any) -> Row:
    """The joined upstream gradients, times the factors; of a sum, times the size, too."""
    given: dict[str, Any] = {"op": OPS[op], **(FACTORS if factors else {})}
    pre, post = FACTORS.values() if factors else (1.0, 1.0)

    def ours(xs: Tensors, place: Place) -> Sequence[Any]:
        if len(xs) > 1:
            return hvd.grouped_reducescatter(xs, **given, **place.options)
        return [hvd.reducescatter(xs[0], **given, **place.options)]

    def factor(size: int) -> float:
        return pre * post * (size if op == "sum" else 1)

    def again(ds: Arrays, lengths: list[int]) -> Arrays:
        size = len(ds)
        cuts = [shard_range(lengths[0], rank, size) for rank in range(size)]
        return [factor(size) * _mean(ds)[start:stop] for start, stop in cuts]

    return Row(
        ours=ours,
        theirs=lambda xs: simulated.reducescatter(xs, op, pre=pre, post=post),
        gradient=lambda us, _: [factor(len(us)) * np.concatenate(us)] * len(us),
        again=again,
        **row,
    )


def _slices(op: str) -> Row:
    """The values of `tf.IndexedSlices`, of which each rank has another number, are gathered."""

    def ours(xs: Tensors, place: Place) -> Sequence[Any]:
        given = tf.IndexedSlices(xs[0], tf.range(tf.shape(xs[0])[0]), tf.constant([9, 2]))
        return [hvd.allreduce(given, op=OPS[op], **place.options).values]

    def scaled(xs: Arrays) -> Arrays:
        return [x / (len(xs) if op == "average" else 1) for x in xs]

    plain = _allgather(ours, rows=lambda rank, size: rank + 1)
    return dataclasses.replace(
        plain,
        theirs=lambda xs: scaled(plain.theirs(xs)),
        gradient=lambda us, lengths: scaled(plain.gradient(us, lengths)),
        again=lambda ds, lengths: scaled(plain.again(ds, lengths)),
    )


def _mean(xs: Arrays) -> np.ndarray:
    return np.asarray(np.sum(xs, axis=0) / len(xs))


ROWS: dict[str, Row] = {
    **{f"allreduce {op}": _allreduce(op) for op in OPS},
    **{f"allreduce {op}, factors": _allreduce(op, factors=True) for op in OPS},
    "allreduce by default": _allreduce(
        "average", ours=lambda xs, place: [hvd.allreduce(xs[0], **place.options)]
    ),
    "allreduce, average=False": _allreduce(
        "sum", ours=lambda xs, place: [hvd.allreduce(xs[0], False, **place.options)]
    ),
    "allreduce, compressed": _allreduce(
        "sum",
        ours=lambda xs, place: [
            hvd.allreduce(xs[0], op=hvd.Sum, compression=hvd.Compression.fp16, **place.options)
        ],
        rounding=1e-2,
    ),
    "grouped_allreduce average": _allreduce("average", factors=True, unused=(0,), **MIXED),
    "grouped_allreduce max": _allreduce("max", factors=True, unused=(1,), **MIXED),
    "allgather": _allgather(
        lambda xs, place: [hvd.allgather(xs[0], **place.options)],
        rows=lambda rank, size: 2 * rank + (size == 1),  # Nothing from the first of several.
    ),
    "grouped_allgather": _allgather(
        lambda xs, place: hvd.grouped_allgather(xs, **place.options),
        rows=lambda rank, size: rank + 1,
        unused=(0, 1),
        **MIXED,
    ),
    "broadcast from the first": _broadcast(0),
    "broadcast from the last": _broadcast(-1),
    "alltoall": _alltoall(_even_splits, told=False),
    "alltoall, splits": _alltoall(_splits, told=True),
    **{
        f"reducescatter {op}{', factors' * factors}": _reducescatter(
            op,
            factors=factors,
            rows=lambda rank, size: 2 * size - 1,  # The last one gets a row less.
        )
        for op in ("average", "sum")
        for factors in (False, True)
    },
    "grouped_reducescatter": _reducescatter(
        "sum", factors=True, rows=lambda rank, size: size + 1, unused=(1,), **MIXED
    ),
    "slices average": _slices("average"),
    "slices sum": _slices("sum"),
}


def differentiated(sets: list[list[int]], *, first: int, every: int) -> int:
    """All rows, in the worker's set of ranks, eagerly; some in graphs, where tracing costs most.

    Args:
        sets: Which ranks take part together.
        first: Which row comes first in a graph that knows the shapes; others in one that doesn't.
        every: One of so many rows is in each graph; where all are, AutoGraph converts it first,
            which takes longer than to trace it.

    Returns:
        How many numbers were compared.
    """
    members = next(tuple(ranks) for ranks in sets if hvd.rank() in ranks)
    place = Place(members, members.index(hvd.rank()))
    names = list(ROWS)
    others = (first + every // 2) % every
    return (
        _differentiated("eagerly", place, names)
        + _differentiated("in a graph", place, names[first::every], autograph=every == 1)
        + _differentiated("without shapes", place, names[others::every], autograph=every == 1)
    )


def _differentiated(mode: str, place: Place, names: list[str], *, autograph: bool = False) -> int:
    given = [tf.constant(x) for name in names for x in _values(name, place.size)[place.rank]]
    function: Callable[..., Any] = functools.partial(_gradients_of, place, names)
    if mode == "in a graph":
        function = tf.function(function, autograph=autograph)
    elif mode == "without shapes":
        specs = [tf.TensorSpec([None, 2], x.dtype) for x in given]
        function = tf.function(function, input_signature=specs, autograph=autograph)
    compared = 0
    for name, (found, twice) in zip(names, function(*given), strict=True):
        compared += _compare(f"{name}, {mode}", name, found, _expected(name, place))
        if twice is not None:
            compared += _compare(f"{name}, {mode}, twice", name, [twice], [_twice(name, place)])
    return compared


def _compare(text: str, name: str, found: Tensors, expected: Arrays) -> int:
    for mine, one, dtype in zip(found, expected, ROWS[name].dtypes, strict=True):
        assert mine.dtype == dtype, text
        assert mine.shape == one.shape, text
        rounding = ROWS[name].rounding
        np.testing.assert_allclose(mine, one, rtol=rounding, atol=rounding, err_msg=text)
    return sum(one.size for one in expected)


def _values(name: str, size: int) -> list[Arrays]:
    """What each rank gives to an operation."""
    row, random = ROWS[name], np.random.default_rng(1)
    return [
        [random.uniform(0.5, 1.5, (row.rows(rank, size), 2)).astype(d) for d in row.dtypes]
        for rank in range(size)
    ]


def _drawn(rank: int, number: int) -> np.ndarray:
    """A rank's own numbers: the upstream gradient of a result; or a direction, which is -1."""
    drawn: np.ndarray = np.random.default_rng([2, rank, number + 1]).uniform(-1.5, 1.5, (_MOST, 2))
    return drawn


def _lengths(name: str, size: int) -> list[int]:
    return [ROWS[name].rows(rank, size) for rank in range(size)]


def _expected(name: str, place: Place) -> Arrays:
    row = ROWS[name]
    found = []
    for number in range(len(row.dtypes)):
        ys = row.theirs([xs[number] for xs in _values(name, place.size)])
        us = [_drawn(rank, number)[: len(y)] for rank, y in enumerate(ys)]
        if number in row.unused:
            us = [np.zeros_like(u) for u in us]
        found.append(row.gradient(us, _lengths(name, place.size))[place.rank])
    return found


def _twice(name: str, place: Place) -> np.ndarray:
    """The upstream gradient of a loss of w * y ** 2 is 2 * w * y, which depends on y itself."""
    row, lengths = ROWS[name], _lengths(name, place.size)
    ys = row.theirs([xs[0] for xs in _values(name, place.size)])
    directions = [_drawn(rank, -1)[:length] for rank, length in enumerate(lengths)]
    back = row.again(directions, lengths)
    us = [2 * _drawn(rank, 0)[: len(b)] * b for rank, b in enumerate(back)]
    assert [u.shape for u in us] == [y.shape for y in ys]
    return row.gradient(us, lengths)[place.rank]


def _gradients_of(
    place: Place, names: list[str], *given: tf.Tensor
) -> list[tuple[Tensors, tf.Tensor | None]]:
    """The gradients by all tensors of each row, and, where there is one, the second."""
    rest, found = list(given), []
    for row in map(ROWS.__getitem__, names):
        xs, rest = rest[: len(row.dtypes)], rest[len(row.dtypes) :]
        twice = _second(place, row, xs[0]) if len(xs) == 1 else None
        found.append((_gradients(place, row, xs), twice))
    assert not rest
    return found


def _gradients(place: Place, row: Row, xs: Tensors) -> Tensors:
    with tf.GradientTape() as tape:
        tape.watch(xs)
        losses = [
            tf.reduce_sum(tf.cast(y, tf.float64) * _weights(place, y, number))
            for number, y in enumerate(row.ours(xs, place))
            if number not in row.unused
        ]
        loss = tf.add_n(losses)
    return list(tape.gradient(loss, xs))


def _second(place: Place, row: Row, x: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            (y,) = row.ours([x], place)
            loss = tf.reduce_sum(_weights(place, y, 0) * y**2)
        along = tf.reduce_sum(inner.gradient(loss, x) * _weights(place, x, -1))
    return outer.gradient(along, x)


def _weights(place: Place, like: tf.Tensor, number: int) -> tf.Tensor:
    """`_drawn` of a tensor's length, which a graph may not know."""
    return tf.constant(_drawn(place.rank, number))[: tf.shape(like)[0]]


def picked() -> dict[str, list[Any]]:
    """Upstream gradients that are `tf.IndexedSlices`: ranks 0 and 1 use a result's first row twice.

    Returns:
        For each operation, eagerly and in a graph, the gradient of a tensor of two rows.
    """
    size, rank = hvd.size(), hvd.rank()
    operations: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
        "allreduce": lambda x: hvd.allreduce(x, op=hvd.Sum),
        "allgather": hvd.allgather,
        "broadcast": lambda x: hvd.broadcast(x, 1),
        "alltoall": lambda x: hvd.alltoall(x, [1, 1, *[0] * (size - 2)])[0],
        "reducescatter": lambda x: hvd.reducescatter(tf.repeat(x, size, 0), op=hvd.Sum),
    }
    rows = tf.constant([0, 0] if rank < 2 else [], tf.int32)

    def gradient(operation: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.gather(operation(x), rows)) * (rank + 1.0)
        return tf.convert_to_tensor(tape.gradient(loss, x))

    x = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    found = {}
    for name, operation in operations.items():
        of_one = functools.partial(gradient, operation)
        found[name] = [of_one(x).numpy().tolist(), tf.function(of_one)(x).numpy().tolist()]
    return found


def beside_integers() -> dict[str, list[list[float]]]:
    """Gradients of what travels together with integers and bool, which have none.

    Returns:
        Of each operation, tfddl's own and Horovod's, eagerly and in a graph.
    """
    size = tfddl.size()
    others = [tf.fill([size], 1), tf.fill([size], True)]
    operations: dict[str, Callable[[Tensors], Tensors]] = {
        "tfddl allreduce": lambda xs: tfddl.grouped_allreduce(xs, "max"),
        "tfddl allgather": tfddl.grouped_allgather,
        "tfddl broadcast": tfddl.grouped_broadcast,
        "tfddl reducescatter": lambda xs: tfddl.grouped_reducescatter(xs[:2], "sum"),
        "allreduce": lambda xs: hvd.grouped_allreduce(xs, op=hvd.Max),
        "allgather": hvd.grouped_allgather,
        "reducescatter": lambda xs: hvd.grouped_reducescatter(xs[:2], op=hvd.Sum),
    }

    def gradient(operation: Callable[[Tensors], Tensors], x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(operation([x, *others])[0])
        return tape.gradient(loss, x)

    x, found = tf.ones([size]), {}
    for name, operation in operations.items():
        of_one = functools.partial(gradient, operation)
        found[name] = [of_one(x).numpy().tolist(), tf.function(of_one)(x).numpy().tolist()]
    return found


def scattered_maximum() -> str:
    """What Horovod has no gradient of either."""
    x = tf.ones([hvd.size(), 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = hvd.reducescatter(x, op=hvd.Max)
    try:
        tape.gradient(y, x)
    except ValueError as error:
        return str(error)
    return "no error"
