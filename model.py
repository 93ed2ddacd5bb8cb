"""The network, its initial weights, which of them carry L2, and their exchange with Keras."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BaselineCNN(nn.Module):
    """The notebook's CNN: images (N, 3, 32, 32) float in [0, 1] to logits (N, 10); softmax gives probabilities."""

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)  # Keras's "same" for a 3x3 kernel
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense1 = nn.Linear(8 * 8 * 64, 128)
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(128, 10)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        # Pool before ReLU: the maximum commutes with a monotone function, so values and gradients are those of
        # the notebook's ReLU-then-pool to the bit, on a quarter of the data.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (N, 32, 16, 16)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 64, 8, 8)
        # Difference 7: Keras flattens height, width, channel. In channels_last memory that is a view.
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, 4096)
        # Difference 8: no softmax here; Keras on TensorFlow, too, takes the loss from the logits.
        return self.dense2(self.dropout(F.relu(self.dense1(x))))


MODELS = {"baseline": BaselineCNN}


def build_model(name: str = "baseline", dropout: float = 0.5) -> nn.Module:
    """Return the network called `name`, freshly initialised from torch's global generator."""
    return MODELS[name](dropout)


def _initialise(layer: nn.Module) -> None:
    # Difference 6: torch's own initialisers draw kernels 0.4 to 0.7 times as wide as Keras's Glorot uniform (but
    # for the first, which is wider), and biases that are not zero.
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def l2_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that carry the L2 penalty: the convolution kernels, no bias, no dense layer."""
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def l2_penalty(model: nn.Module, l2: float) -> Tensor:
    """Keras's `l2(l2)` summed over the convolution kernels: a scalar `l2 * sum(W**2)`."""
    return _in_keras(l2) * torch.stack([weight.square().sum() for weight in l2_weights(model)]).sum()


def parameter_groups(model: nn.Module, l2: float) -> list[dict]:
    """Optimizer groups in which coupled weight decay has the gradient of `l2_penalty`."""
    decayed = l2_weights(model)
    kept = {id(weight) for weight in decayed}
    return [
        # Difference 2: the gradient of l2 * W**2 is 2 * l2 * W, and torch's weight_decay adds weight_decay * W.
        {"params": decayed, "weight_decay": 2 * _in_keras(l2)},
        {"params": [p for p in model.parameters() if id(p) not in kept], "weight_decay": 0.0},
    ]


def from_keras_weights(model: nn.Module, weights: Sequence[np.ndarray]) -> None:
    """Copy the arrays of Keras's `model.get_weights()` into `model`; the inverse of `to_keras_weights`.

    Raises ValueError, before anything is copied, naming the first array that does not fit.
    """
    parameters = dict(model.named_parameters())
    wanted = to_keras_weights(model)
    if len(weights) != len(wanted):
        raise ValueError(f"{len(weights)} arrays; this network has {len(wanted)}: a kernel and a bias for each layer")
    fitting = []
    for number, (name, array, like) in enumerate(zip(parameters, weights, wanted, strict=True)):
        which = f"array {number} ({name.replace('weight', 'kernel')})"
        if array.shape != like.shape:
            raise ValueError(f"{which} has shape {array.shape}; it must be {like.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{which} is {array.dtype}; it must be floats")
        with np.errstate(over="ignore"):
            fitting.append(_to_torch_axes(array).astype(like.dtype))
        if not np.isfinite(fitting[-1]).all():
            raise ValueError(f"{which} has a value that is not finite in {like.dtype}")
    with torch.no_grad():
        for parameter, array in zip(parameters.values(), fitting, strict=True):
            parameter.copy_(torch.from_numpy(array))


def to_keras_weights(model: nn.Module) -> list[np.ndarray]:
    """Return the weights as Keras's `model.get_weights()` would: HWIO kernels, (in, out) dense kernels, biases."""
    return [_to_keras_axes(parameter.detach().cpu().numpy()) for parameter in model.parameters()]


# Difference 7 makes a dense kernel's rows Keras's too, so that a transpose is all it takes.
def _to_torch_axes(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # a bias is its own transpose


def _to_keras_axes(array: np.ndarray) -> np.ndarray:
    return np.array(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, order="C")  # a copy, always


def _in_keras(l2: float) -> float:
    return float(np.float32(l2))  # Keras keeps the factor in float32, whatever the model's dtype
