import numpy as np
import pytest

from tests.group import Groups

CASES = "tests.cases.collectives"
DTYPES = ["float16", "bfloat16", "float32", "float64", "int32", "int64"]


ROUNDING = {"bfloat16": 4e-3, "float16": 1e-3}


@pytest.mark.parametrize(
    ("size", "dtypes", "ops"),
    [
        (2, ["float32", "int64"], ["sum", "average", "min", "max", "product"]),
        (3, ["float32"], ["average", "product"]),
        pytest.param(
            3,
            ["float32", "int64"],
            ["sum", "average", "min", "max", "product"],
            marks=pytest.mark.long,
        ),
        (2, [*DTYPES, "uint8"], ["average"]),
        pytest.param(2, [*DTYPES, "uint8"], ["max"], marks=pytest.mark.long),
    ],
)
def test_allreduce(groups: Groups, size: int, dtypes: list[str], ops: list[str]) -> None:
    values = np.stack([np.array([[1, 2, 3], [4, 5, 6]]) + rank for rank in range(size)])
    for found in groups(size).run(f"{CASES}:reductions", dtypes=dtypes, ops=ops):
        assert len(found) == 2 * len(dtypes) * len(ops)
        for name, result in found.items():
            dtype, op, _ = name.split()
            expected = {
                "sum": values.sum(0),
                "average": values.mean(0) if "float" in dtype else values.sum(0) // size,
                "min": values.min(0),
                "max": values.max(0),
                "product": values.prod(0),
            }
            np.testing.assert_allclose(
                result, expected[op], rtol=ROUNDING.get(dtype, 1e-7), err_msg=name
            )


@pytest.mark.parametrize("size", [2, 3])
def test_shapes(groups: Groups, size: int) -> None:
    for found in groups(size).run(f"{CASES}:shapes"):
        assert found == [(), (0,), (3, 0), (1, 2, 3), (3, 2), (0, 2), (1, 2)]


@pytest.mark.parametrize(("size", "dtypes"), [(2, [*DTYPES, "bool"]), (3, ["float32", "bfloat16"])])
def test_allgather_joins_what_differs_in_length(
    groups: Groups, size: int, dtypes: list[str]
) -> None:
    for found in groups(size).run(f"{CASES}:gathers", dtypes=dtypes):
        assert len(found) == 2 * len(dtypes)
        for name, result in found.items():
            ranks = [rank for rank in range(size) for _ in range(2 * rank)]
            rows = np.minimum(ranks, 1) if "bool" in name else np.array(ranks)
            np.testing.assert_array_equal(result, np.repeat(rows[:, None], 3, axis=1), name)


@pytest.mark.parametrize(
    ("size", "dtypes"),
    [
        (2, ["bfloat16", "float32", "int32", "int64"]),
        (3, ["float64", "float16"]),
        pytest.param(3, DTYPES, marks=pytest.mark.long),
    ],
)
def test_broadcast(groups: Groups, size: int, dtypes: list[str]) -> None:
    for found in groups(size).run(f"{CASES}:broadcasts", dtypes=dtypes):
        assert len(found) == 2 * size * len(dtypes)
        for name, result in found.items():
            root = int(name.split()[1])
            np.testing.assert_array_equal(result, np.array([[0, 1], [2, 3]]) + 10 * root, name)


def test_broadcast_keeps_every_bit(groups: Groups) -> None:
    sent = np.array([0x80000000, 0x7FC01234, 0x00000001, 0x7F7FFFFF], np.uint32).tobytes()
    assert groups(2).run(f"{CASES}:exact_bits") == [[sent], [sent]]


@pytest.mark.parametrize("size", [2, 3])
def test_objects(groups: Groups, size: int) -> None:
    for received, gathered in groups(size).run(f"{CASES}:objects"):
        assert received == ["from", 1]
        assert gathered == [(rank, 1000 * rank) for rank in range(size)]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_gradients(groups: Groups, size: int) -> None:
    """Against the derivative of the sum of all ranks' losses, worked out by hand."""
    ranks = groups(size).run(f"{CASES}:gradients")
    weight = sum(range(1, size + 1))
    for rank, found in enumerate(ranks):
        position = np.array([1.0, 2.0]) + 2 * rank
        expected = {
            "sum": np.array([1.0, 2.0]) * weight,
            "average": np.array([1.0, 2.0]) * weight / size,
            "max": np.array([1.0, 2.0]) * weight * (rank == size - 1),
            "allgather": position * weight,
            "broadcast": np.array([1.0, 2.0]) * weight * (rank == size - 1),
        }
        for name, result in found.items():
            np.testing.assert_allclose(result, expected[name.split()[0]], err_msg=name)


def test_second_order_gradients(groups: Groups) -> None:
    ranks = groups(2).run(f"{CASES}:second_order")
    # d/dx of 3x² times the number of ranks whose loss sees it.
    assert ranks == [[12.0, 24.0], [24.0, 36.0]]


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_in_a_loop_of_a_graph(groups: Groups, size: int) -> None:
    mean = sum(range(size)) / size
    assert groups(size).run(f"{CASES}:loops", steps=5) == [mean + 5 * size] * size


@pytest.mark.parametrize("size", [2, 3])
def test_grouped_allreduce(groups: Groups, size: int) -> None:
    ranks = sum(range(size))
    expected = [[size + ranks, 2 * size + ranks], float(size + ranks), 0.5 * size]
    assert groups(size).run(f"{CASES}:grouped") == [expected] * size


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("what", "first", "last"),
    [
        ("shape", "allreduce average of float32 (2)", "allreduce average of float32 (3)"),
        ("dtype", "allreduce average of float32 (2)", "allreduce average of float64 (2)"),
        ("op", "allreduce max <loss> of float32 (2)", "allreduce sum <loss> of float32 (2)"),
        ("root", "broadcast from rank 0 of float32 (2)", "broadcast from rank 1 of float32 (2)"),
        ("kind", "allreduce sum <barrier> of int32 ()", "allgather of float32 (*)"),
        ("inner", "allgather of float32 (*, 4)", "allgather of float32 (*, 3)"),
    ],
)
def test_ranks_that_disagree_say_so_and_go_on(
    groups: Groups, size: int, what: str, first: str, last: str
) -> None:
    others = "rank 0" if size == 2 else "ranks 0..1"
    for message, total in groups(size).run(f"{CASES}:disagree", what=what):
        assert f"{others}: {first}" in message
        assert f"rank {size - 1}: {last}" in message
        assert "All ranks must call the same operations in the same order" in message
        assert total == size, "the next collective didn't work"


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_disagree_in_a_graph(groups: Groups, size: int) -> None:
    for kind, message, total in groups(size).run(f"{CASES}:disagree_in_graph"):
        assert kind == "InvalidArgumentError"
        assert "The ranks are about to do different things" in message
        assert "rank 0: allreduce sum <graph> of float32 (4)" in message
        assert f"rank {size - 1}: allreduce sum <graph> of float32 (5)" in message
        assert total == size, "the next collective didn't work"


def test_refusals(groups: Groups) -> None:
    expected = [
        "allgather works on the first dimension of a tensor, but this one (float32) has none. "
        "Give it one: tf.expand_dims(tensor, 0).",
        "root_rank is 99; it must be 0..1.",
        "string can't travel between workers; these can: bfloat16, bool, float16, float32, "
        "float64, int16, int32, int64, int8, uint16, uint32, uint8.",
        "sum of bool has no meaning; use min or max.",
        "op is 'mean'; it must be one of average, sum, min, max, product.",
    ]
    assert groups(2).run(f"{CASES}:refusals") == [expected, expected]


@pytest.mark.parametrize("size", [2, 3])
def test_topology(groups: Groups, size: int) -> None:
    ranks = groups(size).run(f"{CASES}:topology")
    assert [found[:6] for found in ranks] == [(r, size, r, size, 0, 1) for r in range(size)]
    assert all(threads >= 1 and replicas == size for *_, threads, replicas in ranks)


def test_the_strategy_s_own_collectives_work_beside_ours(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:strategy_still_works") == [2.0, 2.0]


def test_operations_leave_no_threads_behind(groups: Groups) -> None:
    """TensorFlow's own timeout would keep two asleep for each."""
    assert all(left < 20 for left in groups(2).run(f"{CASES}:threads"))
