"""What the learning-rate callbacks make of an epoch, a batch and a number of workers."""

import math
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import tfddl.horovod.keras as hvd
from tfddl._src.cluster import Cluster
from tfddl._src.keras_hooks import FitState
from tfddl.callbacks import LearningRateScaling, LearningRateSchedule, LearningRateWarmup
from tfddl.errors import UnsupportedError

VELOCITY = np.array([[2.0], [-4.0]], "float32")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rank and the number of workers, which a test may change."""
    numbers = [0, 4]

    def current() -> Any:
        addresses = tuple(f"a:{1 + rank}" for rank in range(numbers[1]))
        return SimpleNamespace(cluster=Cluster(addresses, numbers[0]))

    for module in ("callbacks.learning_rate", "keras_hooks.optimizer"):
        monkeypatch.setattr(f"tfddl._src.{module}.current", current)
    return numbers


def _model(optimizer: Any = None, **compiled: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = optimizer or keras.optimizers.SGD(0.5, momentum=0.9)
    model.compile(optimizer, "mse", **compiled)
    optimizer.build(model.trainable_variables)
    for velocity in getattr(optimizer, "momentums", []):
        velocity.assign(VELOCITY)
    return model


def _begun(
    callback: keras.callbacks.Callback, model: keras.Model, steps: int | None = 4
) -> keras.callbacks.Callback:
    callback.set_params({"steps": steps})
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def _rate(model: keras.Model) -> float:
    return float(model.optimizer.learning_rate)


def _rates(callback: Any, model: keras.Model, *, epochs: int, steps: int = 4) -> list[list[float]]:
    """The learning rate of each step of each epoch."""
    found: list[list[float]] = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        found.append([])
        for batch in range(steps):
            callback.on_train_batch_begin(batch)
            found[-1].append(_rate(model))
        callback.on_epoch_end(epoch, {})
    return found


def test_a_constant_acts_in_its_epochs() -> None:
    model = _model()
    callback: Any = _begun(LearningRateSchedule(0.25, 0.5, start_epoch=1, end_epoch=3), model)
    assert _rates(callback, model, epochs=2, steps=2) == [[0.5, 0.5], [0.125, 0.125]]
    model.optimizer.learning_rate = 1.0
    # The second epoch of it is the last; after it the learning rate is whoever changes it.
    assert _rates(callback, model, epochs=1, steps=1) == [[1.0]]
    callback.on_epoch_begin(2)
    callback.on_train_batch_begin(0)
    assert _rate(model) == 0.125
    model.optimizer.learning_rate = 1.0
    callback.on_train_batch_begin(1)  # A constant is set at the beginnings of epochs only,
    assert _rate(model) == 1.0  # … so that others may change it in between.
    callback.on_epoch_begin(3)
    callback.on_train_batch_begin(0)
    assert _rate(model) == 1.0


def test_horovods_constant_multiplies_every_epoch() -> None:
    """As in Horovod since 0.23; where `initial_lr` could be left out, it was one factor."""
    model = _model()
    given = {"multiplier": 0.5, "start_epoch": 1, "end_epoch": 4}
    callback = _begun(hvd.callbacks.LearningRateScheduleCallback(0.25, **given), model)
    assert _rates(callback, model, epochs=4, steps=1) == [[0.5], [0.25], [0.125], [0.0625]]
    model.optimizer.learning_rate = 0.5
    with pytest.warns(DeprecationWarning, match="without initial_lr is of Horovod before 0.21"):
        old = hvd.callbacks.LearningRateScheduleCallback(**given)
    assert _rates(_begun(old, model), model, epochs=3, steps=1) == [[0.5], [0.25], [0.25]]


def test_it_acts_from_the_first_epoch_on_and_for_ever() -> None:
    model = _model()
    callback = _begun(LearningRateSchedule(0.25, lambda epoch: 1 / (1 + epoch)), model)
    expected = [[pytest.approx(0.25 / (1 + epoch))] * 2 for epoch in range(3)]
    assert _rates(callback, model, epochs=3, steps=2) == expected
    callback.on_epoch_begin(10**6)
    callback.on_train_batch_begin(0)
    assert _rate(model) == pytest.approx(0.25 / (1 + 10**6))


@pytest.mark.parametrize("given", [None, 4])
def test_without_staircase_each_batch_has_its_own(given: int | None) -> None:
    """The number of steps comes from `fit`, unless it is given."""
    model = _model()
    seen = []

    def multiplier(epoch: float) -> float:
        seen.append(epoch)
        return 1 + epoch

    made = LearningRateSchedule(0.25, multiplier, staircase=False, steps_per_epoch=given)
    callback = _begun(made, model, steps=99 if given else 4)
    expected = [[0.25 * (1 + epoch + batch / 4) for batch in range(4)] for epoch in range(2)]
    assert _rates(callback, model, epochs=2) == expected
    assert seen == [epoch + batch / 4 for epoch in range(2) for batch in range(4)]


def test_after_a_resume_within_an_epoch_the_first_batch_sets_it() -> None:
    model = _model()
    callback = _begun(LearningRateSchedule(0.25, lambda epoch: 2.0), model)
    callback.on_epoch_begin(5)
    callback.on_train_batch_begin(3)
    assert _rate(model) == 0.5


def test_steps_are_needed_where_each_batch_has_its_own() -> None:
    for callback in (
        LearningRateSchedule(0.25, lambda epoch: 1.0, staircase=False),
        LearningRateWarmup(0.25),
    ):
        name = type(callback).__name__
        with pytest.raises(UnsupportedError, match=f"{name} changes .* give it steps_per_epoch"):
            _begun(callback, _model(), steps=None)
    _begun(LearningRateSchedule(0.25, lambda epoch: 1.0), _model(), steps=None)
    _begun(LearningRateSchedule(0.25, 1.0, staircase=False), _model(), steps=None)
    _begun(LearningRateWarmup(0.25, steps_per_epoch=3), _model(), steps=None)


def _velocity(model: keras.Model) -> np.ndarray:
    return np.asarray(model.optimizer.momentums[0])


def test_the_velocity_is_scaled_along(workers: list[int]) -> None:
    """Keras' velocity has the learning rate in it: v = momentum * v - rate * gradient."""
    model = _model()
    callback = _begun(LearningRateSchedule(0.5, lambda epoch: [0.5, 0.5, 4.0][int(epoch)]), model)
    _rates(callback, model, epochs=1)
    np.testing.assert_allclose(_velocity(model), VELOCITY / 2)
    _rates(callback, model, epochs=3)
    np.testing.assert_allclose(_velocity(model), VELOCITY * 4)
    model = _model()
    _rates(_begun(LearningRateWarmup(0.5, warmup_epochs=1), model), model, epochs=1)
    np.testing.assert_allclose(_velocity(model), VELOCITY, rtol=1e-6)  # It ends where it began.
    model = _model()
    callback = _begun(LearningRateWarmup(0.5, warmup_epochs=1), model)
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    np.testing.assert_allclose(_velocity(model), VELOCITY * (1 + 3 / 4) / 4, rtol=1e-6)


def test_the_velocity_stays_where_that_is_wanted_or_it_is_another_kind(workers: list[int]) -> None:
    callbacks = [
        LearningRateSchedule(0.5, 0.5, momentum_correction=False),
        LearningRateWarmup(0.5, warmup_epochs=1, momentum_correction=False),
    ]
    for callback in callbacks:
        model = _model()
        _rates(_begun(callback, model), model, epochs=1, steps=1)
        assert _rate(model) != 0.5
        assert np.array_equal(_velocity(model), VELOCITY)
    # SGD without momentum has no velocity, Adam's and Nadam's have no learning rate in them.
    for optimizer in (
        keras.optimizers.SGD(0.5),
        keras.optimizers.Adam(0.5),
        keras.optimizers.RMSprop(0.5, momentum=0.9),
    ):
        model = _model(optimizer)
        before = [np.asarray(v) for v in optimizer.variables if "learning_rate" not in v.path]
        _rates(_begun(LearningRateSchedule(0.5, 0.5), model), model, epochs=1)
        after = [np.asarray(v) for v in optimizer.variables if "learning_rate" not in v.path]
        assert _rate(model) == 0.25
        assert all(map(np.array_equal, before, after))


def test_from_a_rate_of_nothing_the_velocity_stays() -> None:
    model = _model(keras.optimizers.SGD(0.0, momentum=0.9))
    _rates(_begun(LearningRateSchedule(0.5, 1.0), model), model, epochs=1)
    assert _rate(model) == 0.5
    assert np.array_equal(_velocity(model), VELOCITY)


def test_an_optimizer_that_is_not_built_has_no_velocity() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "mse")
    _rates(_begun(LearningRateSchedule(0.5, 0.5), model), model, epochs=1)
    assert _rate(model) == 0.25


def test_a_warm_up_grows_with_every_batch(workers: list[int]) -> None:
    model = _model()
    callback = _begun(LearningRateWarmup(0.8, warmup_epochs=2), model)
    found = np.ravel(_rates(callback, model, epochs=2))
    np.testing.assert_allclose(found, 0.8 * (1 + 3 * np.arange(1, 9) / 8) / 4, rtol=1e-6)
    model.optimizer.learning_rate = 0.1
    callback.on_epoch_begin(2)
    callback.on_train_batch_begin(0)
    assert _rate(model) == pytest.approx(0.1)  # After its epochs it does nothing.


def test_a_warm_up_has_five_epochs(workers: list[int]) -> None:
    model = _model()
    found = np.ravel(_rates(_begun(LearningRateWarmup(0.8), model), model, epochs=6, steps=4))
    np.testing.assert_allclose(found[19:], 0.8, rtol=1e-6)
    assert found[18] < 0.79


def test_a_warm_up_of_one_worker_does_nothing(workers: list[int]) -> None:
    workers[1] = 1
    model = _model()
    found = np.ravel(
        _rates(_begun(LearningRateWarmup(0.8, warmup_epochs=1), model), model, epochs=1)
    )
    np.testing.assert_allclose(found, 0.8, rtol=1e-6)


@pytest.mark.parametrize(("stride", "given"), [(2, None), (3, 4)])
def test_a_warm_up_arrives_where_steps_are_executed_together(
    workers: list[int], stride: int, given: int | None
) -> None:
    """Keras tells of the first of them; the last batches have the whole learning rate."""
    model = _model(steps_per_execution=stride)
    made = LearningRateWarmup(0.8, warmup_epochs=1, steps_per_epoch=given)
    callback = _begun(made, model, steps=9 if given else 4)
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    assert _rate(model) == pytest.approx(0.8 * (1 + 3 * stride / 4) / 4)
    callback.on_train_batch_begin(stride)
    assert _rate(model) == pytest.approx(0.8)  # And no more than that.


@pytest.mark.parametrize(("verbose", "rank"), [(1, 0), (0, 0), (1, 1)])
def test_rank_0_says_that_it_is_warm(
    workers: list[int], capsys: pytest.CaptureFixture[str], verbose: int, rank: int
) -> None:
    workers[0] = rank
    model = _model()
    callback = _begun(LearningRateWarmup(0.8, warmup_epochs=2, verbose=verbose), model)
    _rates(callback, model, epochs=4)
    text = "\nEpoch 2: the learning rate is warmed up to 0.8\n"
    assert capsys.readouterr().out == (text if verbose and not rank else "")
    _rates(_begun(LearningRateWarmup(0.8, warmup_epochs=2), model), model, epochs=4)
    assert capsys.readouterr().out == ""


def test_the_logs_have_the_rate() -> None:
    model = _model()
    callback = _begun(LearningRateSchedule(0.5, 0.5), model)
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    logs: dict[str, Any] = {"loss": 1.0}
    callback.on_epoch_end(0, logs)
    assert logs == {"loss": 1.0, "learning_rate": 0.25}
    callback.on_epoch_end(0, None)


def test_the_logs_of_a_warm_up_have_it_too(workers: list[int]) -> None:
    model = _model()
    callback = _begun(LearningRateWarmup(0.8, warmup_epochs=1), model)
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(3)
    logs: dict[str, Any] = {}
    callback.on_epoch_end(0, logs)
    assert logs == {"learning_rate": pytest.approx(0.8)}


REFUSED: dict[str, Any] = {
    "initial_lr is 0; expected a positive number": lambda: LearningRateSchedule(0, 1.0),
    "initial_lr is nan; expected a positive number": lambda: LearningRateWarmup(math.nan),
    "warmup_epochs is 0; expected at least 1": lambda: LearningRateWarmup(1.0, warmup_epochs=0),
    "base_lr is -1.0; expected a positive number": lambda: LearningRateScaling(-1.0),
    "base_lr is 0; expected a positive number": lambda: LearningRateScaling(0),
    "rule is 'cubic'; expected one of linear, sqrt, none": lambda: LearningRateScaling(
        1.0, rule="cubic"
    ),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.items(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(message: str, make: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        make()
    assert message in str(caught.value)


def test_an_optimizer_with_a_schedule_is_refused(workers: list[int]) -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for callback in (LearningRateSchedule(0.5, 0.5), LearningRateScaling(0.5)):
        with pytest.raises(UnsupportedError, match="was given a schedule .ExponentialDecay."):
            _begun(callback, _model(keras.optimizers.SGD(schedule)))


@pytest.mark.parametrize(
    ("rule", "at_start", "after_resume"),
    [("linear", 4.0, 2.0), ("sqrt", 2.0, math.sqrt(2)), ("none", 1.0, 1.0)],
)
def test_scaling_follows_the_number_of_workers(
    workers: list[int], rule: str, at_start: float, after_resume: float
) -> None:
    """4 workers; where a checkpoint comes in between, it is of 2."""
    model = _model()
    callback: Any = _begun(LearningRateScaling(0.25, rule=rule), model)
    assert _rate(model) == pytest.approx(0.25 * at_start)
    new = FitState(model=model, together=True, shard=None)
    callback.after_epoch_begin(new)
    assert _rate(model) == pytest.approx(0.25 * at_start)
    # Another fit, of a run whose rate somebody has lowered meanwhile.
    callback.on_train_begin()
    model.optimizer.learning_rate = 0.01
    resumed = FitState(model=model, together=True, shard=None, restored_size=2)
    callback.after_epoch_begin(resumed)
    assert _rate(model) == pytest.approx(0.01 * after_resume)
    callback.after_epoch_begin(resumed)  # Once, not in every epoch.
    assert _rate(model) == pytest.approx(0.01 * after_resume)
    workers[1] = 1
    callback.on_train_begin()
    model.optimizer.learning_rate = 0.01
    callback.after_epoch_begin(resumed)
    assert _rate(model) == pytest.approx(0.01 / {"linear": 2, "sqrt": 2**0.5, "none": 1}[rule])


def test_scaling_is_linear_by_default(workers: list[int]) -> None:
    model = _model()
    _begun(LearningRateScaling(0.25), model)
    assert _rate(model) == 1.0
