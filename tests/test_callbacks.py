import itertools

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks import SCHEDULES, EarlyStopping, Lookahead, Plateau, make_schedule
from optim import OPTIMIZERS

# Most losses are whole multiples of 1/16384: neighbours are 6.1e-5 apart (less than min_delta) and next neighbours
# 1.2e-4 (more), and ties are common.
GRID = 16384


def curve(first, steps):
    return [value / GRID for value in itertools.accumulate(steps, lambda x, y: max(x + y, 0), initial=first)]


CURVES = st.one_of(
    st.builds(curve, st.integers(8_000, 60_000), st.lists(st.integers(-3, 3), max_size=40)),  # plateaus and ties
    st.builds(curve, st.integers(8_000, 60_000), st.lists(st.integers(-3_000, 2_500), max_size=40)),
    st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=1, max_size=40),
    # Improvements by multiples of min_delta, give or take what float32 can or cannot resolve.
    st.lists(st.builds(lambda k, j: 1 - 1e-4 * k + 2e-8 * j, st.integers(0, 3), st.integers(-2, 2)), min_size=1),
)


@pytest.fixture(scope="module")
def keras_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("adam", "mse")
    return model


def in_keras(model, losses, lr, patience, lr_patience, factor, min_lr):
    """Feed `losses` to the real callbacks; return epochs run, the restored epoch and the rate after each epoch."""
    early_stopping = keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=factor, patience=lr_patience, min_lr=min_lr)
    model.stop_training = False
    model.optimizer.learning_rate = lr
    rates = []
    for callback in (early_stopping, plateau):
        callback.set_model(model)
        callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        model.set_weights([np.array([[epoch]])])  # the weight tells which epoch it belongs to
        for callback in (early_stopping, plateau):
            callback.on_epoch_end(epoch, {"val_loss": loss})
        rates.append(float(model.optimizer.learning_rate.numpy()))
        if model.stop_training:
            break
    early_stopping.on_train_end()
    return len(rates), int(model.get_weights()[0].item()), rates


def in_ours(losses, lr, patience, lr_patience, factor, min_lr):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=float(np.float32(lr)))
    plateau = Plateau(optimizer, lr_factor=factor, lr_patience=lr_patience, min_lr=float(np.float32(min_lr)))
    early_stopping = EarlyStopping(patience, schedule=plateau)
    rates = []
    for epoch, loss in enumerate(losses):
        for callback in (plateau, early_stopping):
            callback.after_epoch(epoch, {"val_loss": loss})
        if early_stopping.improved:
            best = epoch
        rates.append(plateau.rate)
        if early_stopping.stop is not None:
            break
    assert best == early_stopping.best_epoch
    return len(rates), best, rates


@settings(max_examples=300, deadline=None)
@given(
    losses=CURVES, patience=st.integers(0, 6), lr_patience=st.integers(0, 4), min_lr=st.sampled_from([0, 1e-6, 2e-4])
)
def test_stops_restores_and_cuts_exactly_where_keras_does(keras_model, losses, patience, lr_patience, min_lr):
    settings = {"lr": 1e-3, "patience": patience, "lr_patience": lr_patience, "factor": 0.5, "min_lr": min_lr}
    assert in_ours(losses, **settings) == in_keras(keras_model, losses, **settings)


@settings(max_examples=100, deadline=None)
@given(losses=CURVES, factor=st.floats(0.05, 0.95), min_lr=st.sampled_from([1e-6, 2e-4]))
def test_cuts_by_any_factor_as_keras_does(keras_model, losses, factor, min_lr):
    settings = {"lr": 1e-3, "patience": 50, "lr_patience": 3, "factor": factor, "min_lr": min_lr}
    assert in_ours(losses, **settings) == in_keras(keras_model, losses, **settings)


@settings(max_examples=100, deadline=None)
@given(rates=st.integers(1, 30))
def test_the_rate_reaches_its_floor_and_stays_there(keras_model, rates):
    settings = {"lr": 1e-3, "patience": 100, "lr_patience": 1, "factor": 0.5, "min_lr": 1e-6}
    ours = in_ours([1.0] * rates, **settings)
    assert ours == in_keras(keras_model, [1.0] * rates, **settings)
    assert min(ours[2]) >= float(np.float32(1e-6))
    assert rates < 12 or ours[2][-1] == float(np.float32(1e-6))


@pytest.mark.parametrize(
    ("losses", "epochs", "restored"),
    [([1.0] * 20, 6, 0), ([5.0, 4.0, 3.0, 2.0] + [3.0] * 20, 9, 3), ([5.0, 4.0, 3.0], 3, 2)],
    ids=["flat", "best in the middle", "still improving at the end"],
)
def test_early_stopping_on_curves_worked_out_by_hand(losses, epochs, restored):
    settings = {"lr": 1e-3, "patience": 5, "lr_patience": 3, "factor": 0.5, "min_lr": 1e-6}
    assert in_ours(losses, **settings)[:2] == (epochs, restored)


def test_the_plateau_schedule_of_torch_at_its_defaults_differs_from_that_of_keras(keras_model):
    random = np.random.default_rng(0)
    disagreements = 0
    for _ in range(100):
        losses = [
            round(value * GRID) / GRID for value in 1 + 0.5 * 0.9 ** np.arange(30) + 0.02 * random.standard_normal(30)
        ]
        *_, expected = in_keras(keras_model, losses, 1e-3, 100, 3, 0.5, 1e-6)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=float(np.float32(1e-3)))
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3, min_lr=1e-6)
        rates = []
        for loss in losses:
            plateau.step(loss)
            rates.append(optimizer.param_groups[0]["lr"])
        disagreements += rates != expected
    assert disagreements > 50


def test_improvements_are_judged_in_float32_as_in_keras(keras_model):
    # In float64 the second loss is more than min_delta below the first, by 2e-8, and the third is below the first.
    losses = [1.0, float(np.float32(0.9999)), 1.0 - 1e-9]
    settings = {"lr": 1e-3, "patience": 50, "lr_patience": 2, "factor": 0.5, "min_lr": 1e-6}
    assert in_ours(losses, **settings) == in_keras(keras_model, losses, **settings)
    assert in_ours(losses, **settings)[2][-1] == float(np.float32(5e-4))
    losses = [1.0, 1.0 - 1e-9]  # no improvement for early stopping
    assert in_ours(losses, **settings)[:2] == in_keras(keras_model, losses, **settings)[:2] == (2, 0)


def test_the_rate_of_a_float64_model_is_not_rounded_but_is_compared_with_its_lower_limit_in_float32():
    weight = torch.zeros(1, dtype=torch.float64)
    plateau = Plateau(torch.optim.SGD([weight], lr=0.2), lr_factor=0.1, lr_patience=1, min_lr=0.02)
    said = [plateau.after_epoch(epoch, {"val_loss": 1.0}) for epoch in range(4)]
    assert plateau.rate == 0.2 * 0.1 != 0.02  # one more cut would be by 3e-18
    assert [message is not None for message in said] == [False, True, False, False]


def test_early_stopping_watches_the_metric_it_is_told_to():
    early_stopping = EarlyStopping(patience=1, monitor="loss")
    for epoch, logs in enumerate([{"loss": 2.0, "val_loss": 1.0}, {"loss": 1.0, "val_loss": 9.0}]):
        assert early_stopping.after_epoch(epoch, logs) is None
        assert early_stopping.improved
    assert early_stopping.stop is None
    assert early_stopping.after_epoch(2, {"loss": 1.5, "val_loss": 0.5}) == early_stopping.stop.reason
    assert not early_stopping.improved


# The options that schedules take, at their defaults except for the floor.
OPTIONS = {"min_lr": 0.0, "lr_factor": 0.5, "lr_patience": 3}


def rates_of(schedule, steps, lr=1e-2, min_lr=1e-4):
    """The rates of `steps` optimizer steps, and the rate after them."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = make_schedule(schedule, optimizer, OPTIONS | {"min_lr": min_lr}, epochs=1, steps_per_epoch=steps)
    rates = [scheduler.rate]
    for _ in range(steps):
        optimizer.step()
        scheduler.after_step()
        rates.append(scheduler.rate)
    return rates


def test_the_cosine_schedule_equals_the_cosine_decay_of_keras():
    decay = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=40, alpha=1e-2)
    # Keras computes it in float32.
    np.testing.assert_allclose(rates_of("cosine", 40), [float(decay(step)) for step in range(41)], rtol=2e-5)


@pytest.mark.parametrize("steps", [39, 40, 1000])
def test_the_onecycle_schedule_rises_linearly_for_a_twentieth_of_the_steps_then_falls_linearly_almost_to_zero(steps):
    corners = [0, max(0.05 * (steps + 1), 1.5) - 1, steps]
    expected = np.interp(range(steps + 1), corners, [1e-2 / 25, 1e-2, 1e-2 / 25 / 1e4])
    np.testing.assert_allclose(rates_of("onecycle", steps), expected, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_schedule_of_only_a_few_steps_has_finite_positive_rates(schedule, steps):
    rates = rates_of(schedule, steps)
    assert np.isfinite(rates).all()
    assert min(rates) > 0


class Rising:
    rising = True


def test_epochs_before_the_highest_rate_do_not_count_towards_the_patience():
    schedule = Rising()
    early_stopping = EarlyStopping(patience=2, schedule=schedule)
    for epoch, loss in enumerate([1.0, 1.1, 1.2, 1.3]):
        early_stopping.after_epoch(epoch, {"val_loss": loss})
        assert early_stopping.improved is (epoch == 0)
    assert early_stopping.stop is None
    schedule.rising = False
    early_stopping.after_epoch(4, {"val_loss": 1.4})
    assert not early_stopping.improved
    assert early_stopping.stop is None
    early_stopping.after_epoch(5, {"val_loss": 1.5})
    assert early_stopping.stopped_epoch == 5
    assert early_stopping.stop.final


@pytest.mark.parametrize(("schedule", "rising"), [("plateau", 0), ("cosine", 0), ("onecycle", 2)])
def test_a_schedule_tells_whether_its_highest_rate_is_still_to_come(schedule, rising):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    scheduler = make_schedule(schedule, optimizer, OPTIONS, epochs=3, steps_per_epoch=13)
    rates, said = [], []
    for _ in range(39):
        rates.append(scheduler.rate)
        said.append(scheduler.rising)
        optimizer.step()
        scheduler.after_step()
    assert said == [True] * (rising - 1) + [False] * (40 - max(rising, 1))
    assert rates[said.index(False)] == max(rates)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values())
def test_a_schedule_changes_no_setting_of_the_optimizer_except_the_rate(schedule, optimizer):
    def settings():
        unlike = ("params", "taken", "lr", "initial_lr", "max_lr", "min_lr")
        return [{name: value for name, value in group.items() if name not in unlike} for group in made.param_groups]

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    made = optimizer([{"params": [weight]}], lr=1e-2)
    before = settings()
    scheduler = make_schedule(schedule, made, OPTIONS | {"lr_patience": 1}, epochs=4, steps_per_epoch=1)
    for epoch in range(4):
        made.step()
        scheduler.after_step()
        scheduler.after_epoch(epoch, {"val_loss": 1.0})
        assert settings() == before


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_keeps_the_rates_of_groups_in_proportion(schedule):
    kernel, bias = torch.nn.Parameter(torch.ones(2, 1, 3, 3)), torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["muon"]([{"params": [kernel, bias], "weight_decay": 0.0}], lr=0.08)
    scheduler = make_schedule(schedule, optimizer, OPTIONS | {"lr_patience": 1}, epochs=40, steps_per_epoch=1)
    for epoch in range(39):
        kernels, others = (group["lr"] for group in optimizer.param_groups)
        assert others == pytest.approx(kernels * 2 / 3, rel=1e-6)
        kernel.grad, bias.grad = torch.ones_like(kernel), torch.ones_like(bias)
        optimizer.step()
        scheduler.after_step()
        scheduler.after_epoch(epoch, {"val_loss": 1.0})


def test_the_plateau_schedule_reports_only_its_cuts():
    plateau = Plateau(torch.optim.SGD([torch.zeros(1)], lr=1.0), lr_factor=0.5, lr_patience=2, min_lr=0.5)
    said = "ReduceLROnPlateau reducing learning rate to 0.5."
    lines = [plateau.after_epoch(epoch, {"val_loss": 1.0}) for epoch in range(6)]
    assert lines == [None, None, said, None, None, None]


def test_lookahead_moves_the_weights_halfway_back_every_five_steps_even_after_it_is_restored():
    def moved(weight, steps):
        """Yield the weight after each step, which moves it by 1 from where the step before left it."""
        for _ in range(steps):
            weight += 1
            lookahead.after_step()
            yield weight.item()

    weight = torch.zeros(1)
    lookahead = Lookahead([weight])
    assert [*moved(weight, 7)] == [1, 2, 3, 4, 2.5, 3.5, 4.5]
    state = lookahead.state_dict()
    lookahead = Lookahead([weight])  # the second five steps began at 2.5
    lookahead.load_state_dict(state)
    assert [*moved(weight, 4)] == [5.5, 6.5, 5.0, 6.0]
