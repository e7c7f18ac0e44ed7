"""Models made under ``tfddl.strategy().scope()`` train with an ordinary `fit`.

`tests/test_exact.py` compares this API with one process; here it is compared with Horovod's, which
it has to equal bit for bit where two workers train.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.group import Groups
from tfddl._src.keras_hooks import scope, script_strategies
from tfddl.errors import UnsupportedError

CASES = "tests.cases.scope"
N = 47

DOORS: list[Any] = [
    (3, "own train_step", {}),
    (2, "dictionaries", {}),
    pytest.param(2, "sequential", {"steps_per_execution": 3}, marks=pytest.mark.long),
    pytest.param(2, "subclassed", {"run_eagerly": True}, marks=pytest.mark.long),
    pytest.param(3, "sequential", {}, marks=pytest.mark.long),
    pytest.param(3, "dictionaries", {"steps_per_execution": 2}, marks=pytest.mark.long),
]


def _equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("size", "kind", "compiled"), DOORS)
def test_both_apis_arrive_at_the_same(
    groups: Groups, size: int, kind: str, compiled: dict[str, Any]
) -> None:
    """With dropout, BatchNormalization, validation, stock callbacks, evaluate and predict."""
    ranks = groups(size).run(f"{CASES}:both_apis", kind=kind, options=compiled)
    # Keras divides the loss by the number of workers, which is exact for powers of two.
    tolerance = 0 if size == 2 else 1e-5
    for rank in ranks:
        for one, other in (rank["weights"], rank["predictions"]):
            for a, b in zip(one, other, strict=True):
                assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
        assert rank["history"] == ranks[0]["history"]
        assert rank["history"][0].keys() == rank["history"][1].keys()
        for name, values in rank["history"][0].items():
            np.testing.assert_allclose(rank["history"][1][name], values, rtol=tolerance)
        first, second = rank["results"]
        np.testing.assert_allclose(first, second, rtol=tolerance)
        assert all(len(rows) == N for rows in rank["predictions"][1])
        assert _equal(rank["weights"][1], ranks[0]["weights"][1])


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("arrays", 12),
        ("batches", 8),
        pytest.param("arrays, split", 8, marks=pytest.mark.long),
        pytest.param("repeated", 8, marks=pytest.mark.long),
        pytest.param("distributed", 8, marks=pytest.mark.long),
    ],
)
def test_data_as_one_process_has_it(groups: Groups, what: str, steps: int) -> None:
    """It goes through the plan, or as it was distributed; nothing is lost."""
    ranks = groups(2).run(f"{CASES}:given", what=what)
    for rank in ranks:
        assert rank["iterations"] == steps
        assert rank["history"] == ranks[0]["history"]
        assert rank["results"] == ranks[0]["results"]
        assert _equal(rank["weights"], ranks[0]["weights"])
    [one] = groups(1).run(f"{CASES}:given", what=what)
    if what in ("arrays, split", "distributed"):  # Shuffled; and another part of the data.
        return
    for a, b in zip(ranks[0]["weights"], one["weights"], strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    for name, value in one["results"].items():
        assert ranks[0]["results"][name] == pytest.approx(value, rel=1e-5), name


def test_a_batch_of_fewer_examples_than_workers(groups: Groups) -> None:
    ranks = groups(3).run(f"{CASES}:few")
    [(loss, weights)] = groups(1).run(f"{CASES}:few")
    for own_loss, own_weights in ranks:
        assert own_loss == pytest.approx(loss, rel=1e-5)
        for a, b in zip(own_weights, weights, strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("a model from outside", "UnsupportedError", "the model was made outside of it"),
        ("an optimizer from outside", "UnsupportedError", "its SGD was not. HINT: make the opti"),
        ("a distributed optimizer", "UnsupportedError", "would be averaged twice"),
        ("other arrays", "DisagreementError", "HINT: give fit the same whole arrays"),
        ("auto-sharding", "UnsupportedError", "cuts batches again and loses examples"),
        ("single examples", "DataError", "HINT: dataset.batch("),
        ("a mirrored strategy", "UnsupportedError", "each of the 2 workers would train by itself"),
        ("another resolver", "UnsupportedError", "SimpleClusterResolver, but tfddl.init() has fo"),
        ("other collectives", "UnsupportedError", "was asked for NCCL, but TensorFlow's col"),
        ("other orders", "DisagreementError", "data: rank 0: "),
    ],
)
def test_refusals(groups: Groups, what: str, error: str, text: str) -> None:
    for kind, message, _ in groups(2).run(f"{CASES}:refused", what=what):
        assert kind == error
        assert text in message


def test_one_rank_s_overflow_skips_the_step_on_all(groups: Groups) -> None:
    ranks = groups(2).run(f"{CASES}:overflow")
    for rank in ranks:
        assert _equal(rank["before"], rank["after"])
        assert not _equal(rank["after"], rank["last"])
        assert all(np.isfinite(w).all() for w in rank["last"])
        assert _equal(rank["last"], ranks[0]["last"])


def test_a_saved_model_is_gone_on_with(groups: Groups, tmp_path: Path) -> None:
    ranks = groups(2).run(f"{CASES}:saved", path=str(tmp_path))
    for rank in ranks:
        assert _equal(rank["gone on"], rank["loaded"])
        assert rank["iterations"] == 12
        assert rank["optimizer"] == "Adam"


def test_a_strategy_from_before_init_is_refused() -> None:
    """In this process no job has begun: what a script makes then is TensorFlow's own."""
    alone = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec({}))
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=alone)
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    script_strategies.refuse_other_strategies(model)
    job: Any = SimpleNamespace(cluster=SimpleNamespace(size=2), started_strategy=None)
    with contextlib.ExitStack() as stack:
        for module in (script_strategies, scope):
            stack.enter_context(mock.patch.object(module, "is_started", return_value=True))
            stack.enter_context(mock.patch.object(module, "current", return_value=job))
        with pytest.raises(UnsupportedError, match=r"made before tfddl.init\(\). HINT: call"):
            script_strategies.refuse_other_strategies(model)
        job.started_strategy = strategy
        script_strategies.refuse_other_strategies(model)
