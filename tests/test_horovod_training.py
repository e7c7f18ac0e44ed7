"""Horovod's wrappers against one process that applies what the ranks' gradients become."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tests.cases.horovod_training import (
    LAYERS,
    SETTINGS,
    STEPS,
    Halved,
    data_of,
    gradient,
    kernels,
    set_of,
)
from tests.group import Groups
from tfddl._src.comm.lazy_variable import call_outside_graph
from tfddl._src.comm.session_graph import _path_of

CASES = "tests.cases.horovod_training"
ADDED = {"backward_passes_per_step": 3}
AVERAGED = {**ADDED, "average_aggregated_gradients": True}
NAMED: dict[str, Any] = {"groups": [["more"], ["own", "ours"]]}
LOCAL = {"local": True}
UNSCALED = {**LOCAL, "scale_local_gradients": False}


def _one_process(rank: int, size: int, options: dict[str, Any]) -> list[np.ndarray]:
    """The kernels of a plain optimizer that is given what the ranks' gradients become."""
    passes = options.get("backward_passes_per_step", 1)
    members = set_of(rank, options.get("sets", [range(size)]))

    def combined(layer: str, step: int) -> Any:
        if layer == "own" and "local" in options:
            divisor = len(members) if options.get("scale_local_gradients", True) else 1
            return gradient(layer, step, rank) / divisor
        if rank not in members:
            return gradient(layer, step, rank)
        total = sum(gradient(layer, step, r) for r in members)
        return total / (1 if options.get("op") == "sum" else len(members))

    variables = [layer.kernel for layer in kernels().values()]
    plain = keras.optimizers.SGD(**SETTINGS)
    for first in range(0, STEPS, passes):
        sums = [sum(combined(n, first + i) for i in range(passes)) for n in LAYERS]
        divisor = passes if options.get("average_aggregated_gradients") else 1
        plain.apply([np.float32(total / divisor) for total in sums], variables)
    return [np.asarray(variable) for variable in variables]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ({}, 1e-5),
        ({"op": "sum"}, 1e-5),
        ({"gradient_predivide_factor": 3.0}, 1e-5),
        ({"groups": 2}, 1e-5),
        ({"groups": 7}, 1e-5),  # More than there are gradients.
        (NAMED, 1e-5),
        (LOCAL, 1e-5),
        (UNSCALED, 1e-5),
        (ADDED, 1e-5),
        (AVERAGED, 1e-5),
        ({**ADDED, "op": "sum"}, 1e-5),
        ({**ADDED, "gradient_predivide_factor": 3.0}, 1e-5),
        ({**AVERAGED, "gradient_predivide_factor": 0.5}, 1e-5),
        ({**ADDED, "groups": 2}, 1e-5),
        ({**AVERAGED, **NAMED}, 1e-5),
        ({**ADDED, **LOCAL}, 1e-5),
        ({**AVERAGED, **UNSCALED, **NAMED, "gradient_predivide_factor": 3.0}, 1e-5),
        ({**ADDED, **LOCAL, "compression": "fp16"}, 1e-2),
    ],
)
def test_optimizer_by_hand(
    groups: Groups, size: int, options: dict[str, Any], rounding: float
) -> None:
    for rank, found in enumerate(groups(size).run(f"{CASES}:optimizer", **options)):
        expected = _one_process(rank, size, options)
        for way, kernels_there in found.items():
            for layer, mine, one in zip(LAYERS, kernels_there, expected, strict=True):
                np.testing.assert_allclose(
                    mine, one, atol=rounding * abs(one).max(), rtol=0, err_msg=f"{way} {layer}"
                )


SETS = [
    (3, [[0, 2]]),  # Rank 1 is in none.
    pytest.param(4, [[0, 1], [2, 3]], marks=pytest.mark.long),
    pytest.param(4, [[0, 3], [1]], marks=pytest.mark.long),
]


@pytest.mark.parametrize(("size", "sets"), SETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2, "gradient_predivide_factor": 3.0},
        {"op": "sum", **LOCAL},
        {**AVERAGED, **UNSCALED},
        {**ADDED, **LOCAL, **NAMED},
    ],
)
def test_optimizer_of_a_set(
    groups: Groups, size: int, sets: list[list[int]], options: dict[str, Any]
) -> None:
    test_optimizer_by_hand(groups, size, {**options, "sets": sets}, 1e-5)


@pytest.mark.parametrize(("size", "sets"), SETS)
def test_training_in_sets(groups: Groups, size: int, sets: list[list[int]]) -> None:
    ranks = groups(size).run(f"{CASES}:trained_in_sets", sets=sets)
    data = [data_of(rank) for rank in range(size)]
    weights, losses = [np.full((2, 1), float(rank)) for rank in range(size)], []
    for step in range(2):
        errors = [x @ w - y for (x, y), w in zip(data, weights, strict=True)]
        losses.append(np.mean([np.mean(error**2) for error in errors]))
        own = [2 * x.T @ error / len(x) for (x, _), error in zip(data, errors, strict=True)]
        weights = [
            w - 0.1 * np.mean([own[r] for r in _exchanging(rank, sets)], axis=0)
            for rank, w in enumerate(weights)
        ]
        if step == 0:  # As in Horovod, where its callback broadcasts after the first batch.
            weights = [weights[1]] * size
    for rank, found in enumerate(ranks):
        members = _exchanging(rank, sets)
        np.testing.assert_allclose(found["weights"], weights[rank], rtol=1e-5)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
        mean = np.mean([r + 1.0 for r in members])
        assert found["session"] == pytest.approx(-2 * mean)
        rows = np.zeros(3)
        for member in members:
            rows[member % 3] += (member + 1) / len(members)
        for gradients in found["tape"].values():
            assert gradients == [pytest.approx(mean), pytest.approx(rows)]
        if any(rank in ranks for ranks in sets):
            assert found["broadcast"] == members[-1]
        else:
            is_value_error, text = found["broadcast"]
            assert is_value_error
            assert text.startswith(f"This is rank {rank}, which is not in ProcessSet(")


def _exchanging(rank: int, sets: list[list[int]]) -> list[int]:
    """Whose gradients a rank applies: those of its set, or its own."""
    members = set_of(rank, sets)
    return members if rank in members else [rank]


@pytest.mark.parametrize("hidden", [False, True])
def test_broadcast_callback_where_train_step_averages_by_itself(
    groups: Groups, hidden: bool
) -> None:
    first, *others = groups(3).run(f"{CASES}:own_step", hidden=hidden, root_rank=1)
    for other in others:
        assert other["loss"] == first["loss"]
        assert other["biases"] == first["biases"]
        for place, (mine, there) in enumerate(zip(other["state"], first["state"], strict=True)):
            is_own = place == first["biases"][0]
            assert np.array_equal(mine, there) is not is_own, place


def test_gradients_are_divided_into_local_and_global_ones(groups: Groups) -> None:
    for rank, (local, others) in enumerate(groups(3).run(f"{CASES}:local_and_global")):
        assert local == [("mine:0", pytest.approx(rank / 3))]
        assert others == [("ours:0", pytest.approx(1.0))]


@pytest.mark.parametrize("init", [{}, pytest.param({"collective": "ring"}, marks=pytest.mark.long)])
def test_process_sets_made_while_running(groups: Groups, init: dict[str, Any]) -> None:
    for rank, (found, refused) in enumerate(
        groups(3, **init).run(f"{CASES}:sets_made_while_running")
    ):
        ids = [None, 1, 2, 3]
        sums = [] if rank == 1 else [4.0]
        removed = [True, False, True, False]
        # Horovod gives the id that has been free for longest.
        assert found == [*ids, 2, *sums, *removed, None, 2, 1, True, True]
        assert 'hvd.init(process_sets="dynamic"), or HOROVOD_DYNAMIC_PROCESS_SETS=1' in refused[0]
        assert refused[1].startswith("The set of ranks [0] has an id already, or it is the set")
        assert refused[2].startswith("The set of ranks [0, 1, 2] has an id already")
        assert refused[3] == "[3] names ranks that a job of 3 hasn't."
        for one in range(3):
            assert f"rank {one}: barrier <add_process_set [{one}]>" in refused[4]
        assert "There is no process set with the id 1, but 1 with others" in refused[5]
        assert refused[6:] == [
            "ProcessSet(process_set_id=0, ranks=[0, 1, 2], mpi_comm=None)",
            "ProcessSet(process_set_id=None, ranks=[0], mpi_comm=None)",
        ]


def test_a_script_s_own_compressor(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:compressed"):
        assert found == {
            "allreduce": [3.0, 3.0],
            "grouped": [[3.0, 3.0]] * 2,
            "reducescatter": [3.0],
            "in a graph": [3.0, 3.0],
            "fp16": ["float16", "float64"],
            "rounded": 1.0,
            "integers": "int32",
            "none": True,
        }
    options: dict[str, Any] = {"compression": Halved, "op": "sum"}
    for found in groups(2).run(f"{CASES}:optimizer", **options):
        plain = groups(2).run(f"{CASES}:optimizer", op="sum")[0]
        for kind in ("eager", "graph"):
            for one, other in zip(found[kind], plain[kind], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6)


def test_averages_of_slices_are_divided_as_horovod_does(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:slices"):
        # An integer divided by an integer is a float64 in TensorFlow.
        for dtype, result in (("int32", "float64"), ("float32", "float32")):
            halves = [[0.5, 0.5], [1.0, 1.0]]
            assert found[dtype] == [
                *(result, halves, [0, 1]),
                *([1.5, 1.5], halves, [[1, 1], [2, 2]]),
            ]
        assert "only average and sum are" in found["refused"][0]
        for text in found["refused"][1:]:
            assert text.startswith(
                "prescale_factor and postscale_factor aren't supported for tf.Ind"
            )


@pytest.mark.parametrize(("num_bytes", "operations"), [(0, 3), (12, 2), (2**20, 1)])
def test_the_fusion_threshold(groups: Groups, num_bytes: int, operations: int) -> None:
    found = groups(2).run(f"{CASES}:fused", num_bytes=num_bytes)
    assert found == [([2.0] * 3, operations)] * 2


def test_ranks_with_other_fusion_thresholds_say_so(groups: Groups) -> None:
    for message in groups(2).run(f"{CASES}:fusion_differs"):
        assert "fused up to 100 bytes" in message
        assert "fused up to 101 bytes" in message


def test_collectives_in_a_session(groups: Groups) -> None:
    for rank, found in enumerate(groups(2).run(f"{CASES}:in_a_session")):
        differ = found.pop("differ")
        assert "float32 (2)" in differ
        assert "float32 (3)" in differ
        for refused in found.pop("refused"):
            assert "is called in a loop or a tf.function of a tf.Graph for a" in refused
        assert found == {
            "sums": [3.0 * i for i in range(1, 7)],
            "gradient": [2.0, 2.0],
            "gathered": [0, 1, 1],
            "swapped": [[0, 10, 11], [1, 2, 12]][rank],
            "splits": [[1, 2], [2, 1]][rank],
            "in a branch": [4.0, 4.0],
            "broadcast": [1.0, 1.0],
            "global variables": 1.0,
            "objects": [[1], [0, 1]],
            "after": 3.0,
            "hook": 1.0,
            "eagerly": 1.0,
        }


def test_optimizers_of_tensorflow_1(groups: Groups) -> None:
    steps = range(1, 8)
    size = 2
    for rank, found in enumerate(groups(size).run(f"{CASES}:optimizers_of_tensorflow_1")):
        sparse, gone, eager = found.pop("refused")
        assert "a gradient is an IndexedSlices; gradients that are accumulated must be" in sparse
        assert gone == "backward_passes_per_step is 0; it must be at least 1."
        assert eager.startswith("backward_passes_per_step=2 was given for GradientDescentOptimizer")
        assert (found.pop("eagerly"), found.pop("tape")) == (1.5, 1.5)
        means = (1.5, 0.5, 1.0)
        sums = tuple(size * mean for mean in means)
        scaled = ((rank + 1.0) / size, *means[1:])
        unscaled = (rank + 1.0, *means[1:])
        for name in ("plain", "compressed", "predivided", "groups"):
            assert found.pop(name) == [[*(k * mean for mean in means), k] for k in steps], name
        assert found.pop("sum") == [[*(k * total for total in sums), k] for k in steps]
        assert found.pop("local") == [[*(k * mean for mean in scaled), k] for k in steps]
        assert found.pop("local, unscaled") == [[*(k * x for x in unscaled), k] for k in steps]
        for name, means_of, factor in (
            ("passes", means, 3),
            ("passes averaged", means, 1),
            ("local passes", scaled, 3),
        ):
            expected = [[*(k // 3 * factor * mean for mean in means_of), k] for k in steps]
            assert found.pop(name) == [pytest.approx(row) for row in expected], name
        assert not found


def test_outside_graphs_operations_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after `tf.compat.v1.disable_eager_execution`, for which a new thread is made here."""
    monkeypatch.setattr(context, "default_execution_mode", context.GRAPH_MODE)
    with ThreadPoolExecutor(1) as thread:
        assert not thread.submit(tf.executing_eagerly).result()
    assert call_outside_graph(lambda: tf.constant([1]).numpy().tolist()) == [1]


def test_a_text_is_cut_between_characters() -> None:
    found = _path_of("ä" * 2000)
    assert 3400 < len(found) <= 3500
    assert found.decode() == "/" + "ä" * ((len(found) - 1) // 2)


def test_a_graph_for_a_session_is_refused(groups: Groups) -> None:
    for message in groups(2).run(f"{CASES}:refused_in_a_session"):
        assert message.startswith(
            "allreduce average <x> is called in a tf.Graph for a tf.compat.v1"
        )


def test_a_variable_made_local_later(groups: Groups) -> None:
    found = groups(2).run(f"{CASES}:local_variable")
    assert found == [[pytest.approx((rank + 1) / 2), pytest.approx(1.5)] for rank in range(2)]


def test_a_process_set_is_registered_once(groups: Groups) -> None:
    for messages in groups(2).run(f"{CASES}:twice_the_same_set"):
        assert "process_sets has ranks [0] twice" in messages[0]
        assert "process_sets has ranks [0, 1] twice, or it is the set of all" in messages[1]
        assert messages[2:] == ["ids [1, None, 0]"]
