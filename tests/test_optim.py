import copy
import math

import keras
import numpy as np
import pytest
import torch

import optim
from callbacks import Plateau
from optim import SGD, Adam, Muon, orthogonalised

STEPS = 60


def gradients(dtype, steps=STEPS):
    """Gradients from 1e-9 to 1: epsilon matters for the small ones."""
    random = np.random.default_rng(0)
    scale = np.logspace(-9, 0, 50)
    return [(scale * random.standard_normal(50)).astype(dtype) for _ in range(steps)]


def trajectory(optimizer, parameter, grads):
    weights = []
    for gradient in grads:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        weights.append(parameter.detach().numpy().copy())
    return np.array(weights)


def start(dtype):
    return torch.nn.Parameter(torch.linspace(-1, 1, 50, dtype=dtype))


def keras_adam_in_numpy(weights, grads, lr, weight_decay=0.0):
    """Keras's update written out: float64, with the betas rounded to float32 where they are raised to a power."""
    weights = weights.copy()
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    power_1, power_2 = np.float64(np.float32(0.9)), np.float64(np.float32(0.999))
    history = []
    for t, gradient in enumerate(grads, start=1):
        gradient = gradient + weight_decay * weights
        alpha = lr * math.sqrt(1 - power_2**t) / (1 - power_1**t)
        m += (gradient - m) * (1 - 0.9)
        v += (gradient**2 - v) * (1 - 0.999)
        weights -= m * alpha / (np.sqrt(v) + 1e-7)
        history.append(weights.copy())
    return np.array(history)


@pytest.mark.parametrize("weight_decay", [0.0, 0.002])
def test_adam_follows_the_update_of_keras_written_out_in_numpy(weight_decay):
    parameter = start(torch.float64)
    expected = keras_adam_in_numpy(parameter.detach().numpy(), gradients(np.float64), 1e-3, weight_decay)
    optimizer = Adam([{"params": [parameter], "weight_decay": weight_decay}], lr=1e-3)
    # float64 both; what is left is the rounding of some ten operations a step.
    np.testing.assert_allclose(trajectory(optimizer, parameter, gradients(np.float64)), expected, rtol=0, atol=1e-14)


def test_adam_follows_real_keras_in_float32():
    parameter, variable = start(torch.float32), keras.Variable(start(torch.float32).detach().numpy())
    reference = keras.optimizers.Adam(1e-3)
    expected = []
    for gradient in gradients(np.float32):
        reference.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        expected.append(variable.numpy().copy())
    ours = trajectory(Adam([parameter], lr=float(np.float32(1e-3))), parameter, gradients(np.float32))
    # Weights up to 1 round by 6e-8 a step; over 60 steps the roundings of both sides stay below ten of those.
    np.testing.assert_allclose(ours, np.array(expected), rtol=0, atol=6e-7)


def test_the_adam_of_torch_differs_where_gradients_are_small():
    parameter = start(torch.float64)
    expected = keras_adam_in_numpy(parameter.detach().numpy(), gradients(np.float64), 1e-3)
    theirs = trajectory(torch.optim.Adam([parameter], lr=1e-3), parameter, gradients(np.float64))
    assert np.abs(theirs - expected)[0].max() > 5e-4  # half of a whole step, after one step


def test_the_rounded_betas_shorten_the_first_step_by_seven_millionths():
    parameter = start(torch.float64)
    before = parameter.detach().numpy().copy()
    gradient = np.ones(50)
    (after,) = trajectory(Adam([parameter], lr=1e-3), parameter, [gradient])
    # With exact betas m / sqrt(v) times the step size would be 1 for a constant gradient, except for epsilon.
    exact = 1e-3 * math.sqrt(1 - 0.999) / (1 - 0.9) * (1 - 0.9) / (math.sqrt(1 - 0.999) + 1e-7)
    np.testing.assert_allclose((before - after) / exact - 1, -6.676e-6, rtol=1e-3)


def test_a_step_leaves_learning_rate_and_epsilon_as_they_were():
    parameter = start(torch.float32)
    optimizer = Adam([parameter], lr=1e-3)
    before = (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"])
    trajectory(optimizer, parameter, gradients(np.float32, 3))
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"]) == before


def test_a_cut_by_the_scheduler_takes_effect_in_the_next_step():
    parameter = start(torch.float64)
    optimizer = Adam([parameter], lr=1e-3)
    plateau = Plateau(optimizer, lr_factor=0.5, lr_patience=1, min_lr=0.0)
    plateau.step(1.0)
    plateau.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    expected = keras_adam_in_numpy(parameter.detach().numpy(), gradients(np.float64, 1), 5e-4)
    np.testing.assert_allclose(trajectory(optimizer, parameter, gradients(np.float64, 1)), expected, rtol=0, atol=1e-14)


def test_the_step_count_survives_a_state_dict_so_that_resuming_gives_the_same_bits():
    whole_parameter = start(torch.float32)
    whole = trajectory(Adam([whole_parameter], lr=1e-3), whole_parameter, gradients(np.float32, 20))
    first_parameter = start(torch.float32)
    first = Adam([first_parameter], lr=1e-3)
    trajectory(first, first_parameter, gradients(np.float32, 20)[:10])
    second_parameter = torch.nn.Parameter(first_parameter.detach().clone())
    second = Adam([second_parameter], lr=1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = trajectory(second, second_parameter, gradients(np.float32, 20)[10:])
    assert np.array_equal(resumed, whole[10:])


def in_keras(optimizer, dtype=np.float32):
    variable = keras.Variable(start(torch.float32).detach().numpy())
    expected = []
    for gradient in gradients(dtype):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        expected.append(variable.numpy().copy())
    return np.array(expected)


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Adam, keras.optimizers.AdamW), (SGD, lambda *a, **k: keras.optimizers.SGD(*a, momentum=0.9, nesterov=True, **k))],
    ids=["adamw", "sgd"],
)
def test_each_optimizer_with_decoupled_decay_follows_real_keras(ours, theirs, decay):
    parameter = start(torch.float32)
    optimizer = ours([{"params": [parameter], "decoupled_decay": decay}], lr=float(np.float32(1e-2)))
    # float32 both: weights up to 1 round by 6e-8 a step, 60 steps.
    np.testing.assert_allclose(
        trajectory(optimizer, parameter, gradients(np.float32)), in_keras(theirs(1e-2, weight_decay=decay)), atol=2e-6
    )


def test_sgd_follows_nesterov_momentum_with_the_rate_in_its_velocity_written_out_in_numpy():
    parameter = start(torch.float64)
    weights, velocity, expected = parameter.detach().numpy().copy(), 0.0, []
    momentum = float(np.float32(0.9))
    optimizer, ours = SGD([parameter], lr=0.01), []
    for number, gradient in enumerate(gradients(np.float64)):
        lr = 0.01 if number < 30 else 0.005  # the cut affects new gradients only
        velocity = momentum * velocity - lr * gradient
        weights = weights + momentum * velocity - lr * gradient
        expected.append(weights)
        optimizer.param_groups[0]["lr"] = lr
        ours.extend(trajectory(optimizer, parameter, [gradient]))
    np.testing.assert_allclose(ours, np.array(expected), rtol=0, atol=1e-14)  # rounding


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_l2_uses_the_weights_before_decoupled_decay_even_if_that_decays_them_to_zero(kind):
    decayed, by_hand = start(torch.float64), start(torch.float64)
    before = by_hand.detach().clone()
    (gradient,) = gradients(np.float64, 1)
    group = {"params": [decayed], "weight_decay": 0.1, "decoupled_decay": 100.0}
    ours = trajectory(kind([group], lr=0.01), decayed, [gradient])
    by_hand.data.zero_()  # 1 - 0.01 * 100
    expected = trajectory(kind([by_hand], lr=0.01), by_hand, [gradient + 0.1 * before.numpy()])
    # float64: a product and a sum, rounded once or twice, in Adam's first step over a gradient as small as 1e-9.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-15)


def kernel_and_bias():
    random = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((8, 3, 3, 3), (8,))]


def test_muon_moves_a_kernel_as_the_muon_of_torch_moves_a_matrix_except_for_its_norm():
    kernel, bias = kernel_and_bias()
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.6, ns_steps=3, adjust_lr_fn="original")
    ours, random = Muon([{"params": [kernel, bias]}], lr=0.1), torch.Generator().manual_seed(1)
    ours.mixed_precision = True  # torch's iteration is in bfloat16, always
    for _ in range(5):
        kernel.grad = torch.randn(kernel.shape, generator=random)
        bias.grad, matrix.grad = torch.zeros(8), kernel.grad.flatten(1).clone()
        with torch.no_grad():
            matrix.mul_(8**0.5 / matrix.norm())
        theirs.step()
        ours.step()
        # Entries up to 1 in bfloat16, whose numbers are 0.004 apart there, times a rate of 0.1: the iteration's input
        # is rounded from sums that are 1 - momentum times each other.
        torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=2e-3)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_the_direction_of_muon_has_singular_values_near_1_whichever_side_is_longer(precision):
    random = torch.Generator().manual_seed(0)
    for shape in ((48, 216), (216, 48)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=random), precision))[:48]
        assert 0.5 < values.min() < values.max() < 1.3


@pytest.mark.precision
@pytest.mark.parametrize(
    ("mixed", "dtype", "expected"),
    [
        (True, torch.float32, torch.bfloat16),
        (False, torch.float32, torch.float32),
        (False, torch.float64, torch.float64),
    ],
)
def test_muon_multiplies_in_bfloat16_only_with_mixed_precision(mixed, dtype, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(optim, "orthogonalised", lambda matrix, precision: seen.append(precision) or matrix)
    kernel = torch.nn.Parameter(torch.ones(2, 1, 3, 3, dtype=dtype))
    kernel.grad = torch.ones_like(kernel)
    ours = Muon([{"params": [kernel]}], lr=0.1)
    ours.mixed_precision = mixed
    ours.step()
    assert seen == [expected]


def test_muon_updates_all_other_parameters_by_sgd_at_two_thirds_of_its_rate():
    kernel, bias = kernel_and_bias()
    alone = torch.nn.Parameter(bias.detach().clone())
    ours = Muon([{"params": [kernel, bias]}], lr=0.3)
    sgd = torch.optim.SGD([alone], lr=0.2, momentum=0.85, nesterov=True)
    for gradient in torch.randn(5, 8, generator=torch.Generator().manual_seed(1)):
        kernel.grad, bias.grad, alone.grad = torch.zeros_like(kernel), gradient.clone(), gradient.clone()
        ours.step()
        sgd.step()
    torch.testing.assert_close(bias, alone)  # float32; the rate is multiplied in at another point


def test_muon_adds_the_gradient_of_l2_before_it_computes_the_direction():
    decayed, by_hand = kernel_and_bias()[0], kernel_and_bias()[0]
    gradient = torch.randn(decayed.shape, generator=torch.Generator().manual_seed(1))
    decayed.grad, by_hand.grad = gradient.clone(), gradient + 0.5 * by_hand.detach()
    Muon([{"params": [decayed], "weight_decay": 0.5}], lr=0.1).step()
    Muon([{"params": [by_hand]}], lr=0.1).step()
    torch.testing.assert_close(decayed, by_hand)
    assert not torch.allclose(decayed, kernel_and_bias()[0])
