"""The networks, what each of them needs from training, and weights in Keras's layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnorm import BatchNorm2d
from cli.errors import BadInput
from running import files

Shape = tuple[int, int, int]  # of an image: height, width, channels
CIFAR10_SHAPE = (32, 32, 3)
WHITENING_PIXELS = 5000 * 32 * 32  # in the images that set the whitening layer; their patches take 1.4 GB
VARIANCE_FLOOR = 3e-5  # keeps directions of mere rounding small; airbench's 5e-4 is for pixels of unit variance


class Network(nn.Module):
    """Maps images, float (N, C, H, W) in [0, 1], to logits (N, classes).

    The constructor is called as `MODELS[name](image_shape, classes, dropout)`, where `image_shape` is (H, W, C), as in
    Keras. A subclass overrides the members below to declare what it needs from training. `self.apply(_initialise)`
    gives it Keras's initial weights.
    """

    augmented: ClassVar[bool] = False  # whether training images are mirrored and shifted by default
    smallest: ClassVar[int] = 1  # minimum height and width of the images

    def l2_weights(self) -> list[nn.Parameter]:
        """Return the weights with an L2 penalty: the convolution kernels, but no bias and no dense layer."""
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.Conv2d)]

    def prepare(self, images: Tensor) -> None:
        """Set what is computed from the training images, uint8 (N, H, W, C); not called with --init-weights."""


class BaselineCNN(Network):
    """The notebook's CNN; softmax of its logits gives probabilities."""

    smallest = 4  # halved twice

    def __init__(self, image_shape: Shape = CIFAR10_SHAPE, classes: int = 10, dropout: float = 0.5):
        super().__init__()
        height, width, channels = image_shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)  # Keras's "same" for a 3x3 kernel
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense1 = nn.Linear((height // 4) * (width // 4) * 64, 128)
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(128, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        # Pool before ReLU: the maximum commutes with a monotone function, so values and gradients are those of
        # the notebook's ReLU-then-pool to the bit, on a quarter of the data.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (N, 32, H // 2, W // 2)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 64, H // 4, W // 4)
        # Difference 7: Keras flattens in the order height, width, channel. In channels_last memory, that is a view.
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, 4096) for CIFAR-10
        # Difference 8: no softmax here; Keras on TensorFlow also computes the loss from the logits.
        return self.dense2(self.dropout(F.relu(self.dense1(x))))


class ImprovedCNN(Network):
    """The second experiment's network: three stages of two convolutions with BatchNorm."""

    augmented = True
    smallest = 8  # halved three times

    def __init__(self, image_shape: Shape = CIFAR10_SHAPE, classes: int = 10, dropout: float = 0.5):
        super().__init__()
        self.stages = nn.Sequential(Stage(image_shape[2], 48), Stage(48, 96), Stage(96, 192))
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(192, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(images)  # (N, 192, H // 8, W // 8)
        return self.dense(self.dropout(x.amax((2, 3))))


class Stage(nn.Module):
    """Convolution, pooling to half the size, BatchNorm, ReLU; convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)  # BatchNorm would cancel a bias
        self.norm1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.relu(self.norm2(self.conv2(x)))


class WhitenedCNN(ImprovedCNN):
    """ImprovedCNN behind a whitening layer: uncorrelated patches of 2x2 pixels, and their negatives.

    `prepare` sets the layer, and training changes only its bias. From K. Jordan's airbench (arXiv:2404.00498).
    """

    smallest = 9  # a 2x2 convolution without padding takes off one row and one column

    def __init__(self, image_shape: Shape = CIFAR10_SHAPE, classes: int = 10, dropout: float = 0.5):
        height, width, channels = image_shape
        patches = 2 * 4 * channels  # a patch and its negative for each direction
        super().__init__((height - 1, width - 1, patches), classes, dropout)
        self.register_buffer("kernel", torch.zeros(patches, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(patches))

    def forward(self, images: Tensor) -> Tensor:
        patches = F.relu(F.conv2d(images, self.kernel, self.bias))  # (N, 8 * C, H - 1, W - 1)
        return super().forward(patches)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the layer from the 2x2 patches of the first images; all but the faintest directions get unit variance."""
        # In float64 on the CPU, each eigenvector with its largest entry positive: the same result on every device.
        count = max(1, WHITENING_PIXELS // (images.shape[1] * images.shape[2]))
        pixels = images[:count].cpu().double().permute(0, 3, 1, 2) / 255
        patches = F.unfold(pixels, 2).transpose(1, 2).reshape(-1, self.kernel[0].numel())
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        directions *= directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        kernel = (directions / (variances + VARIANCE_FLOOR).sqrt()).T
        kernel = torch.cat([kernel, -kernel])
        self.kernel.copy_(kernel.reshape(self.kernel.shape))
        self.bias.copy_(-kernel @ mean)


MODELS = {"baseline": BaselineCNN, "improved": ImprovedCNN, "whitened": WhitenedCNN}


def build_model(
    name: str = "baseline", image_shape: Shape = CIFAR10_SHAPE, classes: int = 10, dropout: float = 0.5
) -> Network:
    """Return the network called `name`, with initial weights from torch's global generator.

    Raises BadInput if images of `image_shape`, (H, W, C), are too small for it.
    """
    height, width, _ = image_shape
    if min(height, width) < MODELS[name].smallest:
        raise BadInput(
            f"--data: its images are {height}x{width}, and {name} needs at least "
            f"{MODELS[name].smallest}x{MODELS[name].smallest}; pass larger ones"
        )
    return MODELS[name](image_shape, classes, dropout)


def _initialise(layer: nn.Module) -> None:
    # Difference 6: torch's default initialisers draw kernels 0.4 to 0.7 times as wide as Keras's Glorot uniform
    # (except the first kernel, which is wider), and biases that are not zero.
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def l2_penalty(model: Network, l2: float) -> Tensor:
    """Return the sum of Keras's `l2(l2)` over the weights with a penalty: a scalar, `l2 * sum(W**2)`."""
    weights = model.l2_weights()
    if not weights:
        return next(model.parameters()).new_zeros(())
    # On a GPU, one launch squares them all.
    return _in_keras(l2) * torch.stack([square.sum() for square in torch._foreach_mul(weights, weights)]).sum()


def parameter_groups(model: Network, l2: float, decay: float = 0.0) -> list[dict]:
    """Return the optimizer's groups of trainable weights, all with decoupled weight decay `decay`, as in Keras.

    torch's own `weight_decay` is coupled, and adds the gradient of `l2_penalty`.
    """
    penalised = [weight for weight in model.l2_weights() if weight.requires_grad]
    ids = {id(weight) for weight in penalised}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in ids]
    groups = [
        # Difference 2: the gradient of l2 * W**2 is 2 * l2 * W, and torch's weight_decay adds weight_decay * W.
        {"params": penalised, "weight_decay": 2 * _in_keras(l2), "decoupled_decay": decay},
        {"params": others, "weight_decay": 0.0, "decoupled_decay": decay},
    ]
    return [group for group in groups if group["params"]]


def from_keras_weights(model: nn.Module, weights: Sequence[np.ndarray]) -> None:
    """Copy the arrays of Keras's `model.get_weights()` into `model`; the inverse of `to_keras_weights`.

    Raises ValueError, before anything is copied, naming the first array that does not fit.
    """
    tensors = _keras_tensors(model)
    wanted = to_keras_weights(model)
    if len(weights) != len(wanted):
        raise ValueError(f"{len(weights)} arrays; this network has {len(wanted)}, as get_weights() orders them")
    fitting = []
    for number, (name, array, like) in enumerate(zip(tensors, weights, wanted, strict=True)):
        which = f"array {number} ({name.replace('weight', 'kernel')})"
        if array.shape != like.shape:
            raise ValueError(f"{which} has shape {array.shape}; it must be {like.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{which} is {array.dtype}; it must be floating-point")
        with np.errstate(over="ignore"):
            fitting.append(_to_torch_axes(array).astype(like.dtype))
        if not np.isfinite(fitting[-1]).all():
            raise ValueError(f"{which} has a value that is not finite in {like.dtype}")
    for tensor, array in zip(tensors.values(), fitting, strict=True):
        tensor.copy_(torch.from_numpy(array))


def load_keras_weights(model: nn.Module, path: Path) -> None:
    """Load the arrays that `np.savez(path, *weights)` wrote into `model`. Raises BadInput.

    The Keras model must be channels_last: with channels_first, dense rows have another order, which no array shows.
    """
    arrays = files.read_npz("--init-weights", path)
    try:
        from_keras_weights(model, [arrays[f"arr_{number}"] for number in range(len(arrays))])
    except (KeyError, ValueError) as error:
        what = f"no array {error}" if isinstance(error, KeyError) else error
        raise BadInput(
            f"--init-weights {path}: {what}; write the file with np.savez(FILE, *model.get_weights())"
        ) from None


def to_keras_weights(model: nn.Module) -> list[np.ndarray]:
    """Return the weights as Keras's `model.get_weights()` would: HWIO kernels, (in, out) dense kernels, biases;
    gamma, beta, moving mean and variance of a BatchNorm.
    """
    return [_to_keras_axes(tensor.cpu().numpy()) for tensor in _keras_tensors(model).values()]


def _keras_tensors(model: nn.Module) -> dict[str, Tensor]:
    # Keras's BatchNorm does not count batches; torch's uses its count only if momentum is None.
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


# BaselineCNN flattens in Keras's order, so a dense kernel only needs to be transposed.
def _to_torch_axes(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # a bias is its own transpose


def _to_keras_axes(array: np.ndarray) -> np.ndarray:
    return np.array(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, order="C")  # always a copy


def _in_keras(l2: float) -> float:
    return float(np.float32(l2))  # Keras keeps the factor in float32, whatever the model's dtype
