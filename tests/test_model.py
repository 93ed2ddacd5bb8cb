import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import stand_in

import model
import train
from comparing import histories
from model import Network, build_model, from_keras_weights, l2_penalty, parameter_groups, to_keras_weights
from reference import notebook


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model(dropout=0.0)


@pytest.fixture
def images():
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.arange(16) % 10


def test_the_network_has_as_many_parameters_as_the_keras_model_of_the_notebook(network):
    assert sum(p.numel() for p in network.parameters()) == notebook.build_model().count_params() == 545_098


def test_the_network_computes_what_the_keras_model_computes_from_the_same_weights(network, images, labels):
    reference = notebook.build_model()
    reference.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    from_keras_weights(network, reference.get_weights())
    channels_last = images.permute(0, 2, 3, 1).numpy()
    with torch.inference_mode():
        logits = network(images)
    # float32 on both sides: sums of up to 4,096 products in different orders differ by a few units of 1e-7.
    np.testing.assert_allclose(logits.softmax(1), reference.predict(channels_last, verbose=0), rtol=1e-5, atol=1e-6)
    loss, _ = reference.evaluate(channels_last, labels.numpy(), verbose=0)
    ours = F.cross_entropy(logits, labels) + l2_penalty(network, 1e-3)
    assert ours.item() == pytest.approx(loss, rel=1e-6)


def test_memory_layout_does_not_change_the_result_beyond_rounding(network, images):
    expected = network(images)
    network.to(memory_format=torch.channels_last)
    # A different kernel sums in a different order.
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), expected, rtol=1e-5, atol=1e-6)


def test_pooling_before_relu_gives_the_values_and_gradients_of_relu_before_pooling_to_the_bit(network, images, labels):
    def relu_then_pool(x):
        x = F.max_pool2d(F.relu(network.conv1(x)), 2)
        x = F.max_pool2d(F.relu(network.conv2(x)), 2)
        return network.dense2(F.relu(network.dense1(x.permute(0, 2, 3, 1).flatten(1))))

    images[0] = 0.5  # constant: every window is a tie
    results = []
    for forward in (network, relu_then_pool):
        network.zero_grad()
        logits = forward(images)
        F.cross_entropy(logits, labels).backward()
        results.append([logits, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert all(theirs.abs().max() > 0 for theirs in results[1])


def test_initial_kernels_spread_as_in_keras_and_initial_biases_are_zero(network):
    reference = notebook.build_model().get_weights()
    for (name, ours), theirs in zip(network.named_parameters(), reference, strict=True):
        if name.endswith("bias"):
            assert not ours.any()
            assert not theirs.any()
            continue
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(ours)
        limit = math.sqrt(6 / (fan_in + fan_out))
        for values in (ours.detach().numpy(), theirs):
            assert np.abs(values).max() <= limit * (1 + 1e-6)
            # A uniform sample of n has a standard deviation of limit / sqrt(3), to within 0.45 / sqrt(n) of it;
            # four of those.
            assert values.std() == pytest.approx(limit / math.sqrt(3), rel=4 * 0.45 / math.sqrt(values.size))


def test_the_first_loss_and_its_penalty_have_their_expected_values():
    losses, penalties = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        network = build_model()
        images = torch.rand(64, 3, 32, 32)
        labels = torch.arange(64) % 10
        penalty = l2_penalty(network, 1e-3)
        penalties.append(penalty.item())
        losses.append((F.cross_entropy(network(images), labels) + penalty).item())
    assert np.mean(penalties) == pytest.approx(0.0482, rel=0.01)  # expected over seeds: 0.001 * n * limit**2 / 3
    assert 2.2 < np.mean(losses) < 2.6  # ln 10 + 0.048, plus what the random logits cost


def test_l2_covers_the_convolution_kernels_and_nothing_else(network):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(weight)] for weight in network.l2_weights()] == ["conv1.weight", "conv2.weight"]
    groups = parameter_groups(network, 1e-3)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())


def test_weight_decay_of_the_groups_has_the_gradient_of_the_explicit_penalty(network, images, labels):
    network.double()
    optimizer = torch.optim.SGD(parameter_groups(network, 1e-3), lr=1.0)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    loss = F.cross_entropy(network(images.double()), labels)
    explicit = torch.autograd.grad(loss + l2_penalty(network, 1e-3), list(network.parameters()), retain_graph=True)
    loss.backward()
    optimizer.step()  # plain SGD with rate 1: the weights move by minus the gradient it saw
    for old, new, gradient in zip(before, network.parameters(), explicit, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-12, atol=1e-14)  # rounding of one subtraction


def test_weights_taken_to_keras_and_back_keep_every_bit(network):
    reference = notebook.build_model()
    network.to(memory_format=torch.channels_last)
    reference.set_weights(to_keras_weights(network))
    other = build_model()
    from_keras_weights(other, reference.get_weights())
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(to_keras_weights(network), reference.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_weights_loaded_from_keras_and_exported_again_keep_every_bit(network):
    network.to(memory_format=torch.channels_last)
    random = np.random.default_rng(0)
    weights = [random.standard_normal(array.shape).astype(np.float32) for array in to_keras_weights(network)]
    from_keras_weights(network, weights)
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(map(np.array_equal, to_keras_weights(network), weights))


def test_weights_for_keras_are_copies_that_training_does_not_change(network):
    before = to_keras_weights(network)
    kept = [array.copy() for array in before]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(map(np.array_equal, before, kept))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w[:7], "7 arrays; this network has 8"),
        (
            lambda w: [*w[:2], w[2].transpose(3, 2, 0, 1), *w[3:]],
            r"array 2 \(conv2.kernel\) has shape \(64, 32, 3, 3\)",
        ),
        (lambda w: [*w[:4], w[4].T, *w[5:]], r"array 4 .* \(128, 4096\); it must be \(4096, 128\)"),
        (lambda w: [*w[:7], w[7] * np.nan], r"array 7 \(dense2.bias\) .*not finite in float32"),
        (lambda w: [*w[:7], w[7].astype(int)], r"array 7 \(dense2.bias\) is int64"),
        (lambda w: [*w[:7], w[7].astype(object)], r"array 7 \(dense2.bias\) is object"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_copied(spoil, message, network):
    before = to_keras_weights(network)
    with pytest.raises(ValueError, match=message):
        from_keras_weights(network, spoil([array + 1 for array in before]))
    assert all(map(np.array_equal, to_keras_weights(network), before))


def test_the_whitening_layer_gives_uncorrelated_outputs_of_unit_variance_and_their_negatives():
    images = torch.from_numpy(stand_in().x_train[:500])
    network = build_model("whitened").double()
    network.prepare(images)
    seen = F.conv2d(images.permute(0, 3, 1, 2).double() / 255, network.kernel, network.bias)
    first, second = seen.transpose(0, 1).flatten(1).split(12)
    # The bias cancels the mean; what is added to small variances leaves the rest within 2 % of 1.
    torch.testing.assert_close(first.mean(1), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(first.cov(), torch.eye(12, dtype=torch.float64), rtol=0, atol=0.02)
    assert torch.equal(first, -second)


def test_the_whitening_layer_is_saved_and_not_trained():
    network = build_model("whitened")
    assert "kernel" in network.state_dict()
    assert "kernel" not in dict(network.named_parameters())
    assert len(network.l2_weights()) == 6
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.fixture
def patches():
    torch.manual_seed(0)
    return torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)


def test_whitening_uses_only_the_first_images_and_computes_in_float64(patches, monkeypatch):
    monkeypatch.setattr(model, "WHITENING_PIXELS", 8 * 32 * 32)
    kernels = []
    for images in (patches, patches[:8], patches[:9]):
        network = build_model("whitened").double()
        network.prepare(images)
        kernels.append(network.kernel)
    assert torch.equal(kernels[0], kernels[1])
    assert torch.equal(kernels[0], kernels[2])
    assert not torch.equal(kernels[0].float().double(), kernels[0])
    single = build_model("whitened")
    single.prepare(patches)
    assert torch.equal(single.kernel, kernels[0].float())  # computed alike, rounded once
    larger = patches.repeat(1, 2, 2, 1)  # it uses two of these
    whole, part = (build_model("whitened", (64, 64, 3)) for _ in range(2))
    whole.prepare(larger)
    part.prepare(larger[:2])
    assert torch.equal(whole.kernel, part.kernel)


def test_the_sign_of_whitening_directions_does_not_depend_on_the_machine(patches):
    network = build_model("whitened").double()
    network.prepare(patches)
    directions = network.kernel[:12].flatten(1)
    greatest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert (greatest > 0).all()  # eigenvectors have either sign, as the library likes


def test_whitening_amplifies_a_direction_without_variance_only_up_to_a_limit(patches):
    network = build_model("whitened").double()
    network.prepare(torch.zeros_like(patches))
    # What the floor alone gives: 1 / sqrt(3e-5) is 183.
    assert network.kernel.flatten(1).norm(dim=1).max().item() == pytest.approx(1 / math.sqrt(3e-5))


class Dense(Network):
    """A network without a convolution, so that no weight carries L2."""

    def __init__(self, image_shape, classes, dropout):
        super().__init__()
        self.dense = torch.nn.Linear(image_shape[2], classes)

    def forward(self, images):
        return self.dense(images.mean((2, 3)))


def test_a_network_without_convolutions_has_no_penalty_and_is_trained(npz, tmp_path, monkeypatch):
    monkeypatch.setitem(model.MODELS, "dense", Dense)
    arguments = ["--data", str(npz), "--model", "dense", "--epochs", "1", "--lr", "1e-30", "--l2", "100"]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    loss = histories.read(tmp_path / "run").history["loss"][0]
    assert loss == pytest.approx(math.log(10), rel=0.5)
    groups = parameter_groups(Dense((32, 32, 3), 10, 0.0), 1e-3, 0.1)
    (group,) = groups
    assert (len(group["params"]), group["weight_decay"], group["decoupled_decay"]) == (2, 0.0, 0.1)
