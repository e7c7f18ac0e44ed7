"""Cases of `tests/test_collective_tables.py`, run by every worker: all operations against NumPy."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
from tests.cases import simulated
from tests.cases.simulated import Arrays

DTYPES = [
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]
WITH_BOOL = [*DTYPES, "bool"]
FLOATS = [d for d in DTYPES if "float" in d]
INTEGERS = [d for d in DTYPES if "float" not in d]


@dataclasses.dataclass(frozen=True)
class Row:
    """An operation, and what it has to give."""

    ours: Callable[[tf.Tensor, int, int], tf.Tensor]
    """Of this rank's value, its rank, and the size."""
    theirs: Callable[[Arrays], Arrays]
    """Of all ranks' values."""
    rows: Callable[[int, int], int]
    """How many rows rank and size have to begin with."""
    dtypes: list[str] = dataclasses.field(default_factory=lambda: DTYPES)


def _splits(size: int) -> list[list[int]]:
    """Uneven; some zero; one rank that sends nothing where there are three."""
    return [[(i + 2 * j) % 3 * (i != 2) for j in range(size)] for i in range(size)]


def _alltoall(x: tf.Tensor, rank: int, size: int, **options: Any) -> tf.Tensor:
    received, received_splits = tfddl.alltoall(x, _splits(size)[rank], **options)
    tf.debugging.assert_equal(received_splits, [row[rank] for row in _splits(size)])
    return received


def _factors_of_integers(xs: Arrays) -> Arrays:
    """An average with factors: what travels is cut off, and so is what arrives, once."""
    cut = [np.trunc(1.5 * x).astype(np.int64) for x in xs]
    return [np.trunc(2.5 * total / len(xs)) for total in simulated.allreduce(cut, "sum")]


ROWS: dict[str, Row] = {
    "sum": Row(
        lambda x, r, n: tfddl.allreduce(x, "sum"),
        lambda xs: simulated.allreduce(xs, "sum"),
        lambda r, n: 3,
    ),
    "average": Row(
        lambda x, r, n: tfddl.allreduce(x),
        lambda xs: simulated.allreduce(xs, "average"),
        lambda r, n: 3,
    ),
    "factors": Row(
        lambda x, r, n: tfddl.allreduce(x, prescale_factor=2, postscale_factor=0.5),
        lambda xs: simulated.allreduce(xs, "average", pre=2, post=0.5),
        lambda r, n: 3,
        FLOATS,
    ),
    "factors of integers": Row(
        lambda x, r, n: tfddl.allreduce(x, prescale_factor=1.5, postscale_factor=2.5),
        _factors_of_integers,
        lambda r, n: 3,
        INTEGERS,
    ),
    "min": Row(
        lambda x, r, n: tfddl.allreduce(x, "min", prescale_factor=-2),
        lambda xs: simulated.allreduce(xs, "min", pre=-2),
        lambda r, n: 3,
        FLOATS,
    ),
    "max": Row(
        lambda x, r, n: tfddl.allreduce(x, "max"),
        lambda xs: simulated.allreduce(xs, "max"),
        lambda r, n: 3,
        WITH_BOOL,
    ),
    "product": Row(
        lambda x, r, n: tfddl.allreduce(x, "product"),
        lambda xs: simulated.allreduce(xs, "product"),
        lambda r, n: 3,
    ),
    "allgather": Row(
        lambda x, r, n: tfddl.allgather(x),
        simulated.allgather,
        lambda r, n: 2 * r,  # Nothing from rank 0.
        WITH_BOOL,
    ),
    "broadcast": Row(
        lambda x, r, n: tfddl.broadcast(x, n - 1),
        lambda xs: simulated.broadcast(xs, len(xs) - 1),
        lambda r, n: 3,
        WITH_BOOL,
    ),
    "alltoall": Row(
        _alltoall,
        lambda xs: simulated.alltoall(xs, _splits(len(xs))),
        lambda r, n: sum(_splits(n)[r]),
        WITH_BOOL,
    ),
    "even alltoall": Row(
        lambda x, r, n: tfddl.alltoall(x),
        lambda xs: simulated.alltoall(xs, [[i + 1] * len(xs) for i in range(len(xs))]),
        lambda r, n: (r + 1) * n,  # Even on each rank, not between them.
        WITH_BOOL,
    ),
    "reducescatter": Row(
        lambda x, r, n: tfddl.reducescatter(x),
        lambda xs: simulated.reducescatter(xs, "average"),
        lambda r, n: 2 * n - 1,  # The last rank gets one row less.
    ),
    "reducescatter, factors": Row(
        lambda x, r, n: tfddl.reducescatter(x, "sum", prescale_factor=4, postscale_factor=0.5),
        lambda xs: simulated.reducescatter(xs, "sum", pre=4, post=0.5),
        lambda r, n: n - 1,  # The last rank gets none.
        FLOATS,
    ),
    "reducescatter max": Row(
        lambda x, r, n: tfddl.reducescatter(x, "max"),
        lambda xs: simulated.reducescatter(xs, "max"),
        lambda r, n: n + 1,
    ),
}


def _value(dtype: str, rows: int, rank: int) -> np.ndarray:
    """Small numbers; some are negative where that can be, and so are some of their sums."""
    places = np.arange(2 * rows).reshape(rows, 2)
    values = (places * 3 + rank) % 5 + 1
    if dtype == "bool":
        values %= 2
    elif not tf.as_dtype(dtype).is_unsigned:
        values = np.where((places + rank) % 3 == 0, -values, values)
    return values.astype(tf.as_dtype(dtype).as_numpy_dtype)


def _values(row: Row, dtype: str) -> Arrays:
    size = tfddl.size()
    return [_value(dtype, row.rows(rank, size), rank) for rank in range(size)]


def _assert_same(result: tf.Tensor, expected: np.ndarray, message: str) -> None:
    """Bit for bit, but that a graph multiplies by 1 / 3 where it should divide by 3."""
    rtol = {"float32": 3e-7, "float64": 1e-15}.get(result.dtype.name, 0)
    np.testing.assert_allclose(
        result.numpy().astype(np.float64), expected.astype(np.float64), rtol=rtol, err_msg=message
    )


def every_dtype(*, every: int) -> int:
    """All operations, all dtypes, eagerly; one of `every` jobs in each of two kinds of graph.

    Tracing costs more than all else here. Returns how many results were compared.
    """
    jobs = [(name, dtype) for name, row in ROWS.items() for dtype in row.dtypes]
    mine = [tf.constant(_values(ROWS[name], dtype)[tfddl.rank()]) for name, dtype in jobs]
    _compare(jobs, _run(jobs)(*mine))
    some = slice(0, None, every)
    _compare(jobs[some], tf.function(_run(jobs[some]))(*mine[some]))
    others = slice(every // 2, None, every)
    specs = [tf.TensorSpec([None, 2], value.dtype) for value in mine[others]]
    unknowing = tf.function(_run(jobs[others]), input_signature=specs)
    _compare(jobs[others], unknowing(*mine[others]))
    return len(jobs) + len(jobs[some]) + len(jobs[others])


def _run(jobs: list[tuple[str, str]]) -> Callable[..., list[tf.Tensor]]:
    rank, size = tfddl.rank(), tfddl.size()
    return lambda *values: [
        ROWS[name].ours(value, rank, size) for (name, _), value in zip(jobs, values, strict=True)
    ]


def _compare(jobs: list[tuple[str, str]], results: list[tf.Tensor]) -> None:
    for (name, dtype), result in zip(jobs, results, strict=True):
        wide = np.float64 if "float" in dtype else np.int64
        exact = ROWS[name].theirs([x.astype(wide) for x in _values(ROWS[name], dtype)])
        expected = exact[tfddl.rank()].astype(result.dtype.as_numpy_dtype)
        assert result.dtype == dtype, name
        assert result.shape == expected.shape, (name, dtype, result.shape, expected.shape)
        _assert_same(result, expected, f"{name} {dtype}")


def differentiated(order: int, names: list[str], *, in_graphs: bool) -> int:
    """Gradients against differences of what one process computes; how many were compared."""
    size, compared = tfddl.size(), 0
    random = np.random.default_rng(1)
    for name in names:
        row = ROWS[name]
        xs = _apart(random, [row.rows(rank, size) for rank in range(size)])
        loss = Loss(
            row,
            weights=[random.uniform(0.5, 1.5, y.shape) for y in row.theirs(xs)],
            directions=[random.uniform(0.5, 1.5, x.shape) for x in xs],
        )
        expected = _differences(loss.total if order == 1 else loss.along, xs, tfddl.rank())
        ours = loss.first if order == 1 else loss.second
        unknowing = tf.function(ours, input_signature=[tf.TensorSpec([None, 2], tf.float64)])
        for mode in (ours, tf.function(ours), unknowing) if in_graphs else (ours,):
            found = mode(tf.constant(xs[tfddl.rank()])).numpy()
            assert found.shape == expected.shape, name
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
            compared += found.size
    return compared


def _apart(random: np.random.Generator, rows: list[int]) -> Arrays:
    """Numbers of all ranks, no two of which are near each other: min and max have kinks there."""
    numbers = random.permutation(np.linspace(0.5, 1.5, 2 * sum(rows)))
    return np.split(numbers.reshape(-1, 2), np.cumsum(rows)[:-1])


@dataclasses.dataclass(frozen=True)
class Loss:
    """A cubic loss of every rank, whose sum is differentiated."""

    row: Row
    weights: Arrays
    """Of what each rank gets."""
    directions: Arrays
    """Along which the first derivative is taken, for the second."""

    def total(self, *values: np.ndarray) -> float:
        ys = self.row.theirs(list(values))
        return float(sum((w * y**3).sum() for w, y in zip(self.weights, ys, strict=True)))

    def along(self, *values: np.ndarray) -> float:
        step = 1e-3
        ahead = [x + step * d for x, d in zip(values, self.directions, strict=True)]
        behind = [x - step * d for x, d in zip(values, self.directions, strict=True)]
        return (self.total(*ahead) - self.total(*behind)) / (2 * step)

    def first(self, x: tf.Tensor) -> tf.Tensor:
        rank, size = tfddl.rank(), tfddl.size()
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(self.weights[rank] * self.row.ours(x, rank, size) ** 3)
        return tape.gradient(loss, x)

    def second(self, x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            along = tf.reduce_sum(self.first(x) * self.directions[tfddl.rank()])
        return tape.gradient(along, x)


def _differences(function: Callable[..., float], xs: Arrays, rank: int) -> np.ndarray:
    """The derivative by one rank's values."""
    result, step = np.zeros_like(xs[rank]), 1e-4
    for index in np.ndindex(*result.shape):
        around = []
        for sign in (1, -1):
            moved = [x.copy() for x in xs]
            moved[rank][index] += sign * step
            around.append(function(*moved))
        result[index] = (around[0] - around[1]) / (2 * step)
    return result


def groups(*, in_graphs: bool) -> int:
    """The grouped forms, of mixed dtypes, give what one by one gives."""
    rank, size = tfddl.rank(), tfddl.size()
    dtypes = ["float32", "uint8", "bfloat16"]
    tensors = [tf.constant(_value(d, n, rank)) for n in (0, size + 1) for d in dtypes]
    uneven = [tf.constant(_value(d, n + rank, rank)) for n in (0, 2) for d in [*dtypes, "bool"]]
    pairs: list[tuple[Any, Any, list[tf.Tensor]]] = [
        (tfddl.grouped_allreduce, tfddl.allreduce, tensors),
        (tfddl.grouped_broadcast, tfddl.broadcast, tensors),
        (tfddl.grouped_allgather, tfddl.allgather, uneven),
        (tfddl.grouped_reducescatter, tfddl.reducescatter, tensors),
    ]
    compared = 0
    for grouped, single, inputs in pairs:
        assert grouped([]) == []
        expected = [single(tensor) for tensor in inputs]
        for mode in (grouped, tf.function(grouped)) if in_graphs else (grouped,):
            for one, other in zip(mode(inputs), expected, strict=True):
                assert one.dtype == other.dtype
                _assert_same(one, other.numpy(), grouped.__name__)
                compared += 1
    return compared


def shapes() -> dict[str, Any]:
    """Scalars, empty tensors, and tensors whose number of dimensions a graph doesn't know."""
    size = tfddl.size()
    empty = tf.zeros([0, 3])
    found = {
        "scalar allreduce": tfddl.allreduce(tf.constant(2.0), "sum"),
        "scalar broadcast": tfddl.broadcast(tf.constant(2.0)),
        "empty allreduce": tfddl.allreduce(empty),
        "no columns": tfddl.allreduce(tf.zeros([3, 0])),
        "empty allgather": tfddl.allgather(empty),
        "allgather, no columns": tfddl.allgather(tf.zeros([2, 0])),
        "empty broadcast": tfddl.broadcast(empty),
        "empty alltoall": tfddl.alltoall(empty),
        "alltoall, no columns": tfddl.alltoall(tf.zeros([size, 0])),
        "empty splits": tfddl.alltoall(empty, [0] * size)[0],
        "empty reducescatter": tfddl.reducescatter(empty),
    }
    for name, operation in {
        "allreduce": tfddl.allreduce,
        "allgather": tfddl.allgather,
        "broadcast": tfddl.broadcast,
        "alltoall": tfddl.alltoall,
        "reducescatter": tfddl.reducescatter,
    }.items():
        unknown = tf.function(operation, input_signature=[tf.TensorSpec(None, tf.float32)])
        found[f"unknown {name}"] = unknown(tf.ones([size, 1, 2]))
        found[f"unknown empty {name}"] = unknown(tf.ones([0, 2]))
    return {name: tuple(result.shape) for name, result in found.items()}


def slices(*, in_graphs: bool) -> dict[str, Any]:
    """`tf.IndexedSlices`, with a number of slices of each rank's own, and their gradient."""
    rank = tfddl.rank()

    def reduce(values: tf.Tensor, op: str) -> tuple[tf.Tensor, tf.Tensor]:
        indices = tf.range(tf.shape(values)[0])
        mine = tf.IndexedSlices(values, indices, tf.constant([5, 2]))
        with tf.GradientTape() as tape:
            tape.watch(values)
            mine = tf.IndexedSlices(values, indices, tf.constant([5, 2]))
            dense, reduced = tfddl.grouped_allreduce(
                [tf.constant(1.0), mine], op, prescale_factor=2.0, name="table"
            )
            assert isinstance(reduced, tf.IndexedSlices)
            loss = tf.reduce_sum(reduced.values) * (rank + 1.0)
        return tf.convert_to_tensor(reduced) + 0.0 * dense, tape.gradient(loss, values)

    values = tf.fill([rank + 1, 2], rank + 1.0)
    found = {}
    for op in ("sum", "average"):
        modes: dict[str, Callable[..., Any]] = {"eager": reduce}
        if in_graphs:
            modes["graph"] = tf.function(reduce)
        for mode, function in modes.items():
            dense, gradient = function(values, op)
            found[f"{op} {mode}"] = (dense.numpy()[:, 0].tolist(), gradient.numpy().tolist())
    return found


def roundings() -> dict[str, Any]:
    """16 bits are rounded once and don't overflow on the way; neither do small integers."""
    size, rank = tfddl.size(), tfddl.rank()
    return {
        "large": float(tfddl.allreduce(tf.constant(60000.0, tf.float16))),
        "many": float(tfddl.allreduce(tf.constant([256.0, 1.0][rank > 0], tf.bfloat16), "sum")),
        "scattered": float(
            tfddl.reducescatter(tf.constant([60000.0] * size, tf.float16), prescale_factor=1.0)[0]
        ),
        "bytes": int(tfddl.allreduce(tf.constant(200, tf.uint8))),
        "scaled": int(tfddl.allreduce(tf.constant(7), "sum", postscale_factor=0.5)),
    }


TIES = [[3.0, 3.0, 1.0, 2.0], [3.0, 1.0, 4.0, 2.0], [3.0, 3.0, 1.0, 5.0]]
"""Of each rank; in a column, the largest number is there once or several times."""


def ties(*, in_graphs: bool) -> dict[str, list[float]]:
    """Gradients of min and max where several ranks have the extremum; upstream is rank + 1.

    The smallest number, times a negative factor, is the largest one.
    """
    x = tf.constant(TIES[tfddl.rank()], tf.float64)
    operations: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
        "max": lambda x: tfddl.allreduce(x, "max"),
        "min": lambda x: tfddl.allreduce(-x, "min"),
        "factors": lambda x: tfddl.allreduce(x, "min", prescale_factor=-2, postscale_factor=0.25),
    }

    def gradient(operation: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(operation(x)) * (tfddl.rank() + 1.0)
        return tape.gradient(loss, x)

    found = {}
    for name, operation in operations.items():
        of_one = functools.partial(gradient, operation)
        found[name] = of_one(x).numpy().tolist()
        if in_graphs:
            found[f"{name}, in a graph"] = tf.function(of_one)(x).numpy().tolist()
    return found
