"""Cases of `tests/test_disagreements.py`, run by every worker."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

import tfddl

EAGER: dict[str, Callable[[bool], Any]] = {
    "shape": lambda odd: tfddl.allreduce(tf.zeros([3 if odd else 2])),
    "no dtype": lambda odd: tfddl.broadcast(tf.constant([""]) if odd else tf.zeros([1])),
    "no number": lambda odd: tfddl.reducescatter(tf.constant([""]) if odd else tf.zeros([1])),
    "rank": lambda odd: tfddl.allreduce(tf.zeros([2, 1] if odd else [2])),
    "dtype": lambda odd: tfddl.allreduce(tf.zeros([2], tf.float64 if odd else tf.float32)),
    "op": lambda odd: tfddl.allreduce(tf.zeros([2]), "sum" if odd else "max", name="loss"),
    "prescale": lambda odd: tfddl.allreduce(tf.zeros([2]), prescale_factor=0.5 if odd else 1.0),
    "postscale": lambda odd: tfddl.allreduce(tf.zeros([2]), postscale_factor=3 if odd else 2),
    "root": lambda odd: tfddl.broadcast(tf.zeros([2]), root_rank=int(odd), name="x"),
    "no root": lambda odd: tfddl.broadcast(tf.zeros([2]), root_rank=99 if odd else 0),
    "broadcast": lambda odd: tfddl.broadcast(tf.zeros([2, 3 if odd else 4])),
    "kind": lambda odd: tfddl.allgather(tf.zeros([2])) if odd else tfddl.barrier(),
    "inner": lambda odd: tfddl.allgather(tf.zeros([2, 3 if odd else 4])),
    "scalar": lambda odd: tfddl.allgather(tf.zeros([] if odd else [2])),
    "gathered dtype": lambda odd: tfddl.allgather(tf.zeros([2], tf.int32 if odd else tf.bool)),
    "alltoall": lambda odd: tfddl.alltoall(tf.zeros([6, 3 if odd else 4]), name="x"),
    "reducescatter": lambda odd: tfddl.reducescatter(tf.zeros([3 if odd else 4])),
    "scattered op": lambda odd: tfddl.reducescatter(tf.zeros([4]), "sum" if odd else "average"),
    "group": lambda odd: tfddl.grouped_allreduce([tf.zeros([])] * (2 if odd else 3)),
    "large group": lambda odd: tfddl.grouped_allreduce(
        [tf.zeros([n + (n == 70 and odd)]) for n in range(100)], "sum", name="gradients"
    ),
    "sparse": lambda odd: tfddl.allreduce(
        tf.IndexedSlices(tf.zeros([1]), tf.zeros([1], tf.int64)) if odd else tf.zeros([1])
    ),
    "object": lambda odd: tfddl.broadcast_object(1, root_rank=int(odd), name="config"),
    "set": lambda odd: tfddl.allreduce(
        tf.zeros([3 if odd else 2]), process_set=tfddl.ProcessSet(range(tfddl.size()))
    ),
}


def eager(names: list[str]) -> dict[str, tuple[list[str], str]]:
    """One after the other: classes and text of what each rank raises."""
    return {name: _provoked(functools.partial(EAGER[name], _is_odd())) for name in names}


def subset() -> tuple[list[str], str]:
    """Ranks 0 and 2 of three differ, in a set of their own."""
    process_set = tfddl.ProcessSet([0, 2])
    if not process_set.included():
        return [], str(_next())
    return _provoked(
        lambda: tfddl.allreduce(tf.zeros([2 + tfddl.rank()]), name="y", process_set=process_set)
    )


def graph() -> dict[str, tuple[list[str], str]]:
    """In graphs: at their first run, and where they don't know shapes, at every run."""
    odd = _is_odd()
    known = tf.function(lambda x: tfddl.allreduce(x, "sum", name="graph"))
    spec = [tf.TensorSpec([None, 2])]
    unknown = tf.function(lambda x: tfddl.allreduce(x, "sum", name="rows"), input_signature=spec)
    assert float(unknown(tf.ones([3, 2]))[0, 0]) == tfddl.size()
    inner = tf.function(
        lambda x: tfddl.allgather(x, name="inner"), input_signature=[tf.TensorSpec([None, None])]
    )
    scattered = tf.function(
        lambda x: tfddl.reducescatter(x, "sum", name="s"),
        input_signature=[tf.TensorSpec([None, None])],
    )
    found = {
        "scattered": _provoked(lambda: scattered(tf.zeros([3, 4] if odd else [4, 3]))),
        "known": _provoked(lambda: known(tf.zeros([5 if odd else 4]))),
        "unknown": _provoked(lambda: unknown(tf.zeros([5 if odd else 4, 2]))),
        "inner": _provoked(lambda: inner(tf.zeros([4, 5 if odd else 2]))),
        "factor": _provoked(
            tf.function(lambda: tfddl.allreduce(1.0, prescale_factor=2.0 + odd, name="f"))
        ),
        "root": _provoked(tf.function(lambda: tfddl.broadcast(1.0, int(odd), name="r"))),
        "large": _provoked(
            tf.function(
                lambda: tfddl.grouped_allreduce(
                    [tf.zeros([n + (n == 70 and odd)]) for n in range(100)], "sum", name="ä" * 600
                )
            )
        ),
    }
    assert float(unknown(tf.ones([3, 2]))[0, 0]) == tfddl.size()
    return found


def splits() -> dict[str, tuple[list[str], str]]:
    """Splits that don't add up on the last rank alone; every rank hears of it."""
    size, odd = tfddl.size(), _is_odd()
    rows = tf.zeros([size])
    good = [1] * size

    def graph(given: list[int]) -> Any:
        exchange = tf.function(lambda s: tfddl.alltoall(rows, s, name="t"))
        return lambda: exchange(tf.constant(given))

    bad: dict[str, Any] = {
        "sum": [2] * size,
        "negative": [size + 1, -1] + [0] * (size - 2),
        "number": [1] * (size + 1),
        "kind": [1.0] * size,
    }
    found = {
        name: _provoked(functools.partial(tfddl.alltoall, rows, s if odd else good, name="t"))
        for name, s in bad.items()
    }
    found["none"] = _provoked(lambda: tfddl.alltoall(tf.zeros([size + odd])))
    found["graph"] = _provoked(graph(bad["sum"] if odd else good))
    return found


def refusals() -> list[tuple[list[str], str]]:
    """What all ranks do wrong alike."""
    slices = tf.IndexedSlices(tf.zeros([1, 2]), tf.constant([0]), tf.constant([3, 2]))
    attempts: tuple[Any, ...] = (
        lambda: tfddl.allgather(tf.constant(1.0)),
        lambda: tfddl.alltoall(tf.constant(1.0), name="x"),
        lambda: tfddl.reducescatter(tf.constant(1.0), "sum"),
        lambda: tfddl.broadcast(tf.zeros([1]), root_rank=99),
        lambda: tfddl.broadcast(tf.zeros([1]), root_rank=-1),
        lambda: tfddl.allreduce(tf.constant(["a"])),
        lambda: tfddl.allreduce(tf.constant([True]), "sum"),
        lambda: tfddl.allreduce(tf.zeros([1]), "mean"),
        lambda: tfddl.allreduce(tf.zeros([1]), prescale_factor="much"),  # type: ignore[arg-type]
        lambda: tfddl.allreduce(slices, "max"),
        tf.function(lambda: tfddl.broadcast(tf.zeros([1]), root_rank=99)),
        lambda: _gradient(lambda x: tfddl.allreduce(x, "product")),
        lambda: _gradient(lambda x: tfddl.reducescatter(x, "max")),
    )
    return [_provoked(attempt) for attempt in attempts]


def _gradient(operation: Any) -> Any:
    x = tf.ones([2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = operation(x)
    return tape.gradient(y, x)


def _is_odd() -> bool:
    return tfddl.rank() == tfddl.size() - 1


def _next() -> float:
    return float(tfddl.allreduce(tf.constant(1.0), "sum"))


def _provoked(action: Callable[[], Any]) -> tuple[list[str], str]:
    """The classes that catch what is raised, and its text; the next collective works."""
    kinds = {
        "FailedPrecondition": tf.errors.FailedPreconditionError,
        "InvalidArgument": tf.errors.InvalidArgumentError,
        "Disagreement": tfddl.errors.DisagreementError,
        "Unsupported": tfddl.errors.UnsupportedError,
        "ValueError": ValueError,
        "NotImplementedError": NotImplementedError,
    }
    try:
        action()
    except (ValueError, RuntimeError, NotImplementedError, tf.errors.OpError) as error:
        caught = [name for name, kind in kinds.items() if isinstance(error, kind)]
        text = str(error)
    else:
        caught, text = [], "no error"
    assert _next() == tfddl.size(), "the next collective doesn't work"
    return caught, text
