"""The loss of a batch, and how batches add up to the metrics that Keras logs."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli.errors import Diverged
from data import Batch
from model import Network, l2_penalty
from running import distributed

CHECK_EVERY = {"cpu": 1, "cuda": 100}  # batches between two checks of the loss: each check waits for the GPU


class Objective(NamedTuple):
    """The loss of a batch, without the L2 penalty; `l2` is the factor of that penalty, which `Tally` adds."""

    l2: float
    label_smoothing: float = 0.0
    mixed_precision: bool = False

    def __call__(self, network: nn.Module, batch: Batch, mirrored: bool = False) -> tuple[Tensor, Tensor]:
        """Return the logits and the summed loss; `mirrored` averages logits with those of the mirror images."""
        images = batch.images
        # No cache: within another autocast, it would outlive the step and serve the previous step's weights.
        with torch.autocast(images.device.type, torch.bfloat16, self.mixed_precision, cache_enabled=False):
            logits = network(images).to(images.dtype)
            if mirrored:
                logits = (logits + network(images.flip(3)).to(images.dtype)) / 2
        return logits, F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="sum")


class Figures(NamedTuple):
    """Mean loss per image, including the L2 penalty, and image counts by `[true class][predicted class]`.

    LOGGED names the metrics of an epoch that are logged, printed and plotted.
    """

    loss: float
    confusion: list[list[int]]

    LOGGED = ("accuracy", "loss")

    @property
    def accuracy(self) -> float:
        right = sum(row[number] for number, row in enumerate(self.confusion))
        return right / sum(map(sum, self.confusion))

    def logs(self, dtype: torch.dtype, prefix: str = "") -> dict[str, float]:
        """Return the metrics by Keras's names, rounded to `dtype` as Keras logs them."""
        return {f"{prefix}{name}": rounded(getattr(self, name), dtype) for name in self.LOGGED}

    @classmethod
    def columns(cls) -> list[str]:
        """Return the names of everything that is logged for an epoch."""
        return [*cls.LOGGED, *(f"val_{name}" for name in cls.LOGGED), "learning_rate"]


class Tally:
    """Adds up the batches of all processes, with equal weight for each image; the sums stay on the device.

    Batches are kept, and added up only when the loss is checked, so that a GPU launches the twenty or so kernels for
    this once rather than at every step.
    """

    def __init__(self, model: Network, l2: float, what: str = "batch"):
        self.model, self.l2, self.what = model, l2, what
        self.classes = 0
        self.batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # loss, penalty, predicted and true classes
        self.sums: Tensor | None = None  # of losses, and of batches before the first non-finite loss
        self.pairs: Tensor | None = None  # image counts by true and predicted class

    @torch.no_grad()
    def add(self, logits: Tensor, loss: Tensor, labels: Tensor) -> None:
        """Add this process's part of a batch; `loss` is a sum. Raises Diverged if a check shows it not finite."""
        self.classes = logits.shape[1]
        self.batches.append((loss.detach(), l2_penalty(self.model, self.l2), logits.argmax(1), labels))
        if len(self.batches) == CHECK_EVERY[labels.device.type]:
            self._read_loss()

    def total(self) -> Figures:
        """Return the metrics of all batches so far. Raises Diverged."""
        loss = self._read_loss()
        confusion = distributed.total(self.pairs).reshape(self.classes, self.classes).tolist()
        return Figures(loss / sum(map(sum, confusion)), confusion)

    @torch.no_grad()
    def _add_up(self) -> None:
        losses, penalties, predicted, labels = zip(*self.batches, strict=True)
        self.batches = []
        # Difference 3: weight decay gives the gradient of the penalty, but Keras's loss includes the penalty itself.
        images = [float(len(of_batch)) for of_batch in labels]
        penalties = torch.stack(torch._foreach_mul(torch.stack(penalties).double().unbind(), images))
        losses = torch.stack(losses).double() + penalties
        labels, predicted = torch.cat(labels), torch.cat(predicted)
        if self.sums is None:
            self.sums, self.pairs = losses.new_zeros(2), labels.new_zeros(self.classes**2)
        self.sums += torch.stack([losses.sum(), losses.isfinite().cumprod(0).sum()])
        # bincount would wait for the GPU
        self.pairs.index_add_(0, labels * self.classes + predicted, torch.ones_like(labels))

    def _read_loss(self) -> float:
        if self.batches:
            self._add_up()
        loss, before = distributed.total(self.sums).tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the loss is not finite in {self.what} {before // distributed.size() + 1:.0f}")
        return loss


def rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()
