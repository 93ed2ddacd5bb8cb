"""What a batch costs, and how batches add up to the figures that Keras logs."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch
from harness import distributed
from harness.errors import Diverged
from model import Network, l2_penalty

CHECK_EVERY = {"cpu": 1, "cuda": 100}  # batches between two looks at the loss: each look waits for a GPU


class Objective(NamedTuple):
    """The loss of a batch, and how it is computed; `l2` is the factor of the penalty that figures show besides."""

    l2: float
    label_smoothing: float = 0.0
    mixed_precision: bool = False

    def __call__(self, network: nn.Module, batch: Batch, mirrored: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits and the sum of the losses; `mirrored` averages logits with those of the mirror image."""
        images = batch.images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed_precision):
            logits = network(images).to(images.dtype)
            if mirrored:
                logits = (logits + network(images.flip(3)).to(images.dtype)) / 2
        return logits, F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="sum")


class Figures(NamedTuple):
    """Loss per image, with its L2 penalty, and how many images of each `[true class][predicted class]` there are."""

    loss: float
    confusion: list[list[int]]

    @property
    def accuracy(self) -> float:
        right = sum(row[number] for number, row in enumerate(self.confusion))
        return right / sum(map(sum, self.confusion))

    def logs(self, dtype: torch.dtype, prefix: str = "") -> dict[str, float]:
        """The figures under Keras's names, values of `dtype` as Keras logs them."""
        return {f"{prefix}accuracy": rounded(self.accuracy, dtype), f"{prefix}loss": rounded(self.loss, dtype)}


class Tally:
    """Adds up the batches of all processes, each image counting alike; the sums stay on the device."""

    def __init__(self, model: Network, l2: float, what: str = "batch"):
        self.model, self.l2, self.what = model, l2, what
        self.batches = self.classes = 0
        self.sums: Tensor | None = None  # of losses, and of batches with a finite one
        self.pairs: Tensor | None = None  # of images by true and predicted class

    @torch.no_grad()
    def add(self, logits: Tensor, loss: Tensor, labels: Tensor) -> None:
        """Take this process's part of a batch, `loss` being a sum. Raises Diverged if it is seen not to be finite."""
        if self.sums is None:
            self.classes = logits.shape[1]
            self.sums = torch.zeros(2, dtype=torch.float64, device=labels.device)
            self.pairs = labels.new_zeros(self.classes**2)
        # Difference 3: weight decay gives the gradient of the penalty, but Keras's loss shows the penalty itself.
        loss = loss.double() + l2_penalty(self.model, self.l2).double() * len(labels)
        self.sums += torch.stack([loss, loss.isfinite()])
        which = labels * self.classes + logits.argmax(1)
        self.pairs.index_add_(0, which, torch.ones_like(labels))  # bincount waits for a GPU
        self.batches += 1
        if self.batches % CHECK_EVERY[labels.device.type] == 0:
            self._read_loss()

    def total(self) -> Figures:
        """Read the sums off the device, once. Raises Diverged."""
        loss = self._read_loss()
        confusion = distributed.total(self.pairs).reshape(self.classes, self.classes).tolist()
        return Figures(loss / sum(map(sum, confusion)), confusion)

    def _read_loss(self) -> float:
        loss, finite = distributed.total(self.sums).tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the loss is not finite in {self.what} {finite // distributed.size() + 1:.0f}")
        return loss


def rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()
