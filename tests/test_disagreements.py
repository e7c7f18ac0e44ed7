"""Ranks that differ: an error on each of them that says what each has, and it goes on."""

from typing import Any

import pytest

from tests.cases.disagreements import EAGER
from tests.group import Groups

CASES = "tests.cases.disagreements"
RING: dict[str, Any] = {"collective": "ring"}  # TensorFlow's own; otherwise it is shared memory.
SIZES = pytest.mark.parametrize(("size", "init"), [(2, RING), (3, {})])

# What the odd rank has, and the others.
TEXTS = {
    "shape": ("allreduce average of float32 (3)", "allreduce average of float32 (2)"),
    "no dtype": (
        "broadcast from rank 0 of string (1)",
        "broadcast from rank 0 of float32 (1)",
    ),
    "no number": (
        "reducescatter average of string (1)",
        "reducescatter average of float32 (1)",
    ),
    "rank": ("allreduce average of float32 (2, 1)", "allreduce average of float32 (2)"),
    "dtype": ("allreduce average of float64 (2)", "allreduce average of float32 (2)"),
    "op": ("allreduce sum <loss> of float32 (2)", "allreduce max <loss> of float32 (2)"),
    "prescale": (
        "allreduce average prescale_factor 0.5 of float32 (2)",
        "allreduce average of float32 (2)",
    ),
    "postscale": (
        "allreduce average postscale_factor 3.0 of float32 (2)",
        "allreduce average postscale_factor 2.0 of float32 (2)",
    ),
    "root": ("broadcast from rank 1 <x> of float32 (2)", "broadcast from rank 0 <x> of float32"),
    "no root": ("broadcast from rank 99 of float32 (2)", "broadcast from rank 0 of float32 (2)"),
    "broadcast": (
        "broadcast from rank 0 of float32 (2, 3)",
        "broadcast from rank 0 of float32 (2, 4)",
    ),
    "kind": ("allgather of float32 (*)", "barrier"),
    "inner": ("allgather of float32 (*, 3)", "allgather of float32 (*, 4)"),
    "scalar": ("allgather of float32 ()", "allgather of float32 (*)"),
    "gathered dtype": ("allgather of int32 (*)", "allgather of bool (*)"),
    "alltoall": ("alltoall <x> of float32 (*, 3)", "alltoall <x> of float32 (*, 4)"),
    "reducescatter": (
        "reducescatter average of float32 (3)",
        "reducescatter average of float32 (4)",
    ),
    "scattered op": ("reducescatter sum of float32 (4)", "reducescatter average of float32 (4)"),
    "group": (
        "allreduce average of float32 (), float32 ()\n",
        "allreduce average of float32 (), float32 (), float32 ()\n",
    ),
    # Of a hundred tensors, only what differs is told.
    "large group": (
        "allreduce sum <gradients> of 100 tensors, the 71. is float32 (71)\n",
        "allreduce sum <gradients> of 100 tensors, the 71. is float32 (70)\n",
    ),
    "sparse": (
        "allreduce average of slices of float32 (*), int64 (*)",
        "allreduce average of float32 (1)",
    ),
    "object": ("broadcast from rank 1 <config> of", "broadcast from rank 0 <config> of"),
    "set": ("allreduce average of float32 (3)", "allreduce average of float32 (2)"),
}


@SIZES
def test_eagerly(groups: Groups, size: int, init: dict[str, Any]) -> None:
    assert TEXTS.keys() == EAGER.keys()
    others = "rank 0" if size == 2 else "ranks 0..1"
    for found in groups(size, **init).run(f"{CASES}:eager", names=list(EAGER), timeout_s=120):
        for name, (odd, even) in TEXTS.items():
            kinds, text = found[name]
            assert kinds == ["FailedPrecondition", "Disagreement"], name
            assert f"{others}: {even}" in text, name
            assert f"rank {size - 1}: {odd}" in text, name
            assert "All ranks must call the same operations in the same order" in text


@pytest.mark.parametrize("init", [{}, pytest.param(RING, marks=pytest.mark.long)])
def test_in_a_set_of_some(groups: Groups, init: dict[str, Any]) -> None:
    first, beside, last = groups(3, **init).run(f"{CASES}:subset")
    assert beside == ([], "3.0")
    assert first == last
    assert first[0] == ["FailedPrecondition", "Disagreement"]
    assert "rank 0: allreduce average <y> among ranks 0, 2 of float32 (2)" in first[1]
    assert "rank 2: allreduce average <y> among ranks 0, 2 of float32 (4)" in first[1]


@SIZES
def test_in_graphs(groups: Groups, size: int, init: dict[str, Any]) -> None:
    expected = {
        "known": ("allreduce sum <graph> of float32 (4)", "allreduce sum <graph> of float32 (5)"),
        "unknown": (
            "allreduce sum <rows> of float32 (None, 2): (4, 2)",
            "allreduce sum <rows> of float32 (None, 2): (5, 2)",
        ),
        # The first dimension may differ.
        "inner": (
            "allgather <inner> of float32 (*, None): (2)",
            "allgather <inner> of float32 (*, None): (5)",
        ),
        # As many elements, cut in other places.
        "scattered": (
            "reducescatter sum <s> of float32 (None, None): (4, 3)",
            "reducescatter sum <s> of float32 (None, None): (3, 4)",
        ),
        "factor": (
            "allreduce average prescale_factor 2.0 <f> of float32 ()",
            "allreduce average prescale_factor 3.0 <f> of float32 ()",
        ),
        "root": ("broadcast from rank 0 <r> of float32", "broadcast from rank 1 <r> of float32"),
        # What differs is told, however much there is.
        "large": (
            f"allreduce sum <{'ä' * 600}> of 100 tensors, the 71. is float32 (70)",
            f"allreduce sum <{'ä' * 600}> of 100 tensors, the 71. is float32 (71)",
        ),
    }
    for found in groups(size, **init).run(f"{CASES}:graph"):
        assert found.keys() == expected.keys()
        for name, (even, odd) in expected.items():
            kinds, text = found[name]
            assert kinds == ["InvalidArgument"], name
            assert "The ranks are about to do different things" in text
            others = "rank 0" if init else "ranks 0..1"
            assert f"{others}: {even}" in text, name
            assert f"rank {size - 1}: {odd}" in text, name


@SIZES
def test_splits_that_do_not_add_up(groups: Groups, size: int, init: dict[str, Any]) -> None:
    rule = (
        f"needs splits of {size} integers, 0 or more, that add up to the first dimension; "
        f"without splits, that has to be divisible by {size}."
    )
    last, twos = size - 1, [2] * size
    negative = [size + 1, -1] + [0] * (size - 2)
    expected = {
        "sum": f"But rank {last} has splits {twos} for a first dimension of {size}.",
        "negative": f"But rank {last} has splits {negative} for a first dimension of {size}.",
        "number": f"But rank {last} has {size + 1} splits.",
        "kind": f"But rank {last} has splits that aren't a list of integers.",
        "none": f"But rank {last} has splits {[1] * size} for a first dimension of {size + 1}.",
    }
    for found in groups(size, **init).run(f"{CASES}:splits"):
        kinds, text = found.pop("graph")
        assert kinds == ["InvalidArgument"]
        assert rule in text
        assert f"But ranks [{last}] have splits [[2" in text
        assert found.keys() == expected.keys()
        for name, words in expected.items():
            kinds, text = found[name]
            assert kinds == ["InvalidArgument", "Unsupported", "ValueError"], name
            what = "alltoall" if name == "none" else "alltoall <t>"
            assert text == f"{what} {rule} {words}"


@pytest.mark.parametrize("init", [{}, RING])
def test_refusals(groups: Groups, init: dict[str, Any]) -> None:
    """All ranks do the same, which doesn't work."""
    dimension = (
        "works on the first dimension of a tensor, but this one (float32) has none. Give it one: "
        "tf.expand_dims(tensor, 0)."
    )
    unsupported = ["Unsupported", "ValueError"]
    expected = [
        (["FailedPrecondition", *unsupported], f"allgather {dimension}"),
        (["FailedPrecondition", *unsupported], f"alltoall <x> {dimension}"),
        (["FailedPrecondition", *unsupported], f"reducescatter sum {dimension}"),
        (["InvalidArgument", *unsupported], "root_rank is 99; it must be 0..1."),
        (["InvalidArgument", *unsupported], "root_rank is -1; it must be 0..1."),
        (
            unsupported,
            "string can't be sent between workers; these can: bfloat16, bool, float16, float32, "
            "float64, int16, int32, int64, int8, uint16, uint32, uint8.",
        ),
        (unsupported, "sum of bool is undefined; use min or max."),
        (unsupported, "op is 'mean'; it must be one of average, sum, min, max, product, adasum."),
        (unsupported, "prescale_factor is 'much'; it must be a number."),
        (
            [*unsupported, "NotImplementedError"],
            "allreduce max of tf.IndexedSlices isn't implemented; only average and sum are. Make "
            "a dense tensor of them first: tf.convert_to_tensor(slices).",
        ),
        (["InvalidArgument", *unsupported], "root_rank is 99; it must be 0..1."),
        (
            unsupported,
            "allreduce product has no gradient here; sum the logarithms instead.",
        ),
        (unsupported, "reducescatter max has no gradient; only those of sum and average have."),
    ]
    for found in groups(2, **init).run(f"{CASES}:refusals"):
        assert [kinds for kinds, _ in found] == [kinds for kinds, _ in expected]
        for (_, text), (_, words) in zip(found, expected, strict=True):
            assert words in text
