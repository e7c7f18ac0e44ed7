"""Gradients meet by their variables, where ranks have those of different ones."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.cases import matching as cases
from tests.cases.matching import BATCH, COUNTS, EPOCHS, STEPS, VARIABLES, X, Y
from tests.group import Groups
from tfddl import shard_range
from tfddl._src.gradients.matching import combined

CASES = "tests.cases.matching"
LONG = pytest.mark.long
RING: dict[str, Any] = {"collective": "ring"}  # TensorFlow's own; otherwise it is shared memory.
SIZES = pytest.mark.parametrize(
    ("size", "init"),
    [(2, RING), (3, {}), pytest.param(2, {}, marks=LONG), pytest.param(3, RING, marks=LONG)],
)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([(0, 0, 0)], (0, 0, 0)),
        ([(0, 1, 2), (0, 0, 0)], (0, 1, 2)),
        ([(2, 1, 2), (1, 2, 2), (0, 0, 0)], (1, 1, 2)),  # Slices meet dense ones as dense ones.
        ([(), ()], ()),
    ],
)
def test_kinds_in_which_ranks_meet(ranks: list[tuple[int, ...]], expected: Any) -> None:
    assert combined(ranks) == expected


def _gradient(variable: str, rank: int, step: str) -> Any:
    """What a rank has, as a dense array; None where it has none."""
    mine, zeros = STEPS[step][rank], np.zeros(VARIABLES[variable].shape)
    if f"slices of {variable}" in mine:
        np.add.at(zeros, cases.ids(rank), rank + 1.0)
        return zeros
    return zeros + rank + 1 if variable in mine else None


def _assert_averaged(found: Any, step: str, weights: list[float], message: str) -> None:
    size = len(weights)
    for variable, gradient in zip(VARIABLES, found, strict=True):
        parts = [_gradient(variable, rank, step) for rank in range(size)]
        have = [part is not None for part in parts]
        if not any(have):
            assert gradient is None, (message, variable)
            continue
        is_sparse, value = gradient
        everyone = set().union(*STEPS[step][:size])
        assert is_sparse == (variable == "rows" and "rows" not in everyone), message
        expected = sum(w * p for w, p in zip(weights, parts, strict=True) if p is not None)
        assert value.dtype == VARIABLES[variable].dtype.as_numpy_dtype
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=f"{message} {variable}")


@SIZES
def test_what_a_rank_lacks_counts_as_zero(groups: Groups, size: int, init: dict[str, Any]) -> None:
    weights = [count / sum(COUNTS[:size]) for count in COUNTS[:size]]
    names = list(STEPS)
    if init is RING and size == 2:  # Whose graphs take longer to make than all else.
        names = ["heads of their own", "slices and none", "the wide one on another rank"]
    for found in groups(size, **init).run(f"{CASES}:tapes", names=names, timeout_s=120):
        for step, ways in found.items():
            first, again, anew = ways.pop("operations")
            # Asked once, when it is first traced; whoever traces anew alone has the answer.
            assert first > again == anew, step
            for way, gradients in ways.items():
                _assert_averaged(gradients, step, weights, f"{step}, {way}")


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 1 / 3),
        ({"op": "sum", "groups": 2}, 1),
        ({"compression": "fp16", "gradient_predivide_factor": 2.0}, 1 / 3),
    ],
)
def test_options(groups: Groups, options: dict[str, Any], weight: float) -> None:
    """Horovod's, of which every rank weighs the same; and its gradients are given names."""
    names = ["heads of their own", "slices and dense ones"]
    options = {"op": "average", **options}
    for found in groups(3).run(f"{CASES}:tapes", names=names, **options):
        for step, ways in found.items():
            for way in ("eager", "graph", "anew"):
                message = f"{options} {step}, {way}"
                if "compression" not in options:
                    _assert_averaged(ways[way], step, [weight] * 3, message)
                    continue
                for gradient, exact in zip(ways[way], ways["eager"], strict=True):
                    assert (gradient is None) == (exact is None), message


def test_within_a_set_of_ranks(groups: Groups) -> None:
    first, second, outside = groups(3).run(
        f"{CASES}:kept_within", names=["heads of their own", "slices and none"], local=False
    )
    assert outside == []
    for [found] in (first, second):
        for step, ways in found.items():
            for way in ("eager", "graph", "anew"):
                _assert_averaged(ways[way], step, [0.5, 0.5], f"{step}, {way}")


def test_beside_local_variables(groups: Groups) -> None:
    """These may differ in shape, and lack a gradient, on any rank."""
    for rank, ways in enumerate(groups(3).run(f"{CASES}:kept_within", names=[], local=True)):
        for a, own, b in ways:
            assert (float(a[1]), float(b[1])) == pytest.approx((2.0, 1.0))
            assert (own is None) == (rank == 1)
            if own is not None:
                np.testing.assert_allclose(own[1], np.ones(rank + 1))


def _in_one_process(size: int, passes: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The weights before, and after all ranks' batches were one in every step."""
    model = cases.tasks()
    before = [np.asarray(weight) for weight in model.weights]
    optimizer = cases.optimizer(gradient_accumulation_steps=passes)
    optimizer.build(model.trainable_variables)
    used = [v for v in model.trainable_variables if all(v is not w for w in model.heads[2].weights)]
    shards = [shard_range(len(X), rank, size) for rank in range(size)]
    steps = -(-max(stop - start for start, stop in shards) // BATCH)
    for _ in range(EPOCHS):
        for step in range(steps):
            with tf.GradientTape() as tape:
                errors = []
                for rank, (start, stop) in enumerate(shards):
                    first, last = shard_range(stop - start, step, steps)
                    rows = slice(start + first, start + last)
                    model.trained = rank % 2
                    errors.append((model(X[rows]) - Y[rows]) ** 2)
                loss = tf.reduce_mean(tf.concat(errors, axis=0))
            optimizer.apply(tape.gradient(loss, used), used)
    return before, [np.asarray(weight) for weight in model.weights]


@pytest.mark.parametrize(
    ("size", "init", "options"),
    [
        (2, {}, {}),
        (2, {}, {"under_scope": True}),
        (2, RING, {"under_scope": True, "passes": 2}),
        (3, {}, {"passes": 3, "steps_per_execution": 2}),
        (3, {}, {"run_eagerly": True}),
    ],
)
def test_fit_trains_every_rank_s_head_as_one_process_would(
    groups: Groups, size: int, init: dict[str, Any], options: dict[str, Any]
) -> None:
    with cases.in_float64():
        before, expected = _in_one_process(size, options.get("passes"))
    ranks = groups(size, **init).run(f"{CASES}:fit", **options)
    for weights in ranks:
        for mine, one, other in zip(weights, expected, ranks[0], strict=True):
            assert np.abs(mine - one).max() <= 1e-12 * np.abs(expected[0]).max()
            assert mine.tobytes() == other.tobytes()
        # Nobody's head: not even its weights decay.
        for mine, first in zip(weights[-2:], before[-2:], strict=True):
            assert mine.tobytes() == first.tobytes()


@pytest.mark.parametrize(("size", "init"), [(2, RING), (3, {})])
def test_other_variables_are_an_error_on_all_ranks(
    groups: Groups, size: int, init: dict[str, Any]
) -> None:
    expected = {
        "shape": ("variable 1: float32 (4)", "variable 1: float32 (3)"),
        "dtype": ("variable 1: float32 (4)", "variable 1: float64 (4)"),
        "number": ("variable 1: float32 (2)", "variable 2: float32 (2)"),
    }
    others = "rank 0: " if size == 2 else "ranks 0..1: "
    for found in groups(size, **init).run(f"{CASES}:differing"):
        for kind, (even, odd) in expected.items():
            for way in (kind, f"{kind}, graph"):
                caught, text = found[way]
                assert caught == ["FailedPrecondition", "Disagreement"], way
                [line] = [line for line in text.splitlines() if others in line]
                assert line.endswith(even), way
                [line] = [line for line in text.splitlines() if f"rank {size - 1}: " in line]
                assert line.endswith(odd), way


@SIZES
def test_none_on_all_stays_so_where_there_was_one_before(
    groups: Groups, size: int, init: dict[str, Any]
) -> None:
    assert groups(size, **init).run(f"{CASES}:fewer") == [[[size, size], [size, None]]] * size


@SIZES
def test_a_gradient_of_unknown_shape_meets_zeros(
    groups: Groups, size: int, init: dict[str, Any]
) -> None:
    assert groups(size, **init).run(f"{CASES}:of_unknown_shape") == [[[1, 1], [size - 1]]] * size


def test_a_graph_with_other_gradients_on_one_rank_alone_is_an_error_on_all(groups: Groups) -> None:
    """By shared memory, which compares every call."""
    *others, (caught, text) = groups(3, collective="auto").run(f"{CASES}:traced_alone")
    assert caught == ["FailedPrecondition", "Disagreement"]
    assert "HINT: give the same variables" in text
    for kinds, told in others:
        assert kinds == ["InvalidArgument"]
        for part in (
            "ranks 0..1: allreduce sum <step without gradients of 1 of 2 variables>",
            "rank 2: stack <which gradients there are, in a step traced with other ones",
        ):
            assert part in told
            assert part in text


def test_steps_of_other_gradients_never_meet(groups: Groups) -> None:
    """Should ranks come to different ones: where calls aren't compared, lengths keep them apart."""
    for init in ({"collective": "auto"}, RING):
        for (name, length), (other, another) in groups(2, **init).run(f"{CASES}:headers"):
            assert name == "step without gradients of 1 of 2 variables"
            assert other == "step without gradients of 0 of 2 variables"
            assert (another != length) == (init is RING)
