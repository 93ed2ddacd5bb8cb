"""Images and labels as tensors: the validation split, an epoch's order and augmented views, batches."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cli.errors import BadInput


class Split(NamedTuple):
    """One part of a data set on one device: images uint8 (N, H, W, C), labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


def unseen(training: Split, validation: Split, test: Split, classes: int) -> dict[str, list[int]]:
    """Return the classes that no training image has, by the part that has them; `no` is for those that no image has.

    `not validation` and `not test` have those that training has and these parts lack.
    """
    trained, others, lacking = {*training.labels.tolist()}, {}, {}
    for part, split in (("validation", validation), ("test", test)):
        labels = {*split.labels.tolist()}
        others[part], lacking[f"not {part}"] = sorted(labels - trained), sorted(trained - labels)
    others["no"] = sorted({*range(classes)} - trained.union(*others.values()))
    return others | lacking


def repeated(training: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, int]:
    """Return how many of each part's images are, pixel by pixel, among the images `training`; all (N, H, W, C)."""
    hashes = {hash(image.tobytes()) for image in training}  # of 64 bits: 50,000 with 10,000 meet by chance once in 4e10
    return {part: sum(hash(image.tobytes()) in hashes for image in images) for part, images in others.items()}


def split_validation(images: np.ndarray, labels: np.ndarray, fraction: float) -> tuple[Split, Split]:
    """Cut the *last* `fraction` off for validation, as Keras's `validation_split` does: unshuffled, rounded alike."""
    cut = math.floor(len(labels) * (1.0 - fraction))
    if not 0 < cut < len(labels):
        part, other = ("training", "smaller") if cut == 0 else ("validation", "larger")
        raise BadInput(
            f"--validation-split {fraction}: leaves no {part} image of {len(labels)}; "
            f"pass a {other} part or more images"
        )
    return as_split(images[:cut], labels[:cut]), as_split(images[cut:], labels[cut:])


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


class Views(NamedTuple):
    """The stored rows, int64 (N, H), and columns, int64 (N, W), that each augmented image is made of."""

    rows: Tensor
    columns: Tensor


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Views of images of `height` and `width`: moved by up to `shift` pixels each way, and mirrored or not.

    Raises BadInput for a shift as large as the images.
    """

    height: int
    width: int
    shift: int = 4
    mirror: bool = True

    def __post_init__(self):
        if self.shift >= min(self.height, self.width):
            raise BadInput(
                f"--shift {self.shift}: images are {self.height}x{self.width}; "
                f"pass {min(self.height, self.width) - 1} at most"
            )

    def draw(self, count: int) -> Views:
        """Draw a view of each of `count` images from torch's CPU generator, all equally likely (162 by default).

        Pixels next to the edge, mirrored at it, fill the gap.
        """
        shifts = torch.randint(-self.shift, self.shift + 1, (2, count, 1))
        rows, columns = (
            last - (last - (torch.arange(last + 1) + shift).abs()).abs()  # mirrored at 0, then at the last one
            for last, shift in zip((self.height - 1, self.width - 1), shifts, strict=True)
        )
        if self.mirror:
            flipped = torch.randint(0, 2, (count, 1), dtype=torch.bool)
            columns = torch.where(flipped, columns.flip(1), columns)
        return Views(rows, columns)


def draw(
    count: int, seed: int, epoch: int, shuffle: bool = True, augmentation: Augmentation | None = None, rank: int = 0
) -> tuple[Tensor | None, Views | None]:
    """Draw the order of `count` images, int64 (N,) (None: as stored), and their views (None without augmentation).

    Both are functions of `seed` and `epoch` (from 0) alone, the same on each process and device. torch's generators are
    left as seed, epoch and `rank` alone decide it, so that a process draws dropout masks of its own.
    """
    seed_torch(seed, epoch + 1)
    order = torch.randperm(count) if shuffle else None
    views = None if augmentation is None else augmentation.draw(count)
    if rank:
        seed_torch(seed, epoch + 1, rank)
    return order, views


def seed_torch(*entropy: int) -> None:
    """Seed every torch generator with a function of `entropy`: (seed, 0) before the start, (seed, epoch from 1)."""
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class Batch(NamedTuple):
    """Images (B, C, H, W) in [0, 1] and labels (B,) of this process's part of a batch of `size` images."""

    images: Tensor
    labels: Tensor
    size: int


def batches(
    split: Split,
    batch_size: int,
    order: Tensor | None = None,
    views: Views | None = None,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yield batches of `split` in `order` (int64 indices; None: as stored), the short last one included.

    Images come as `dtype`, channels_last in memory: the stored layout seen through a permute. With `views` (one per
    stored image) each is seen through its own. Each batch is cut for so many `processes` as evenly as can be, some
    parts empty if need be, and part number `rank` comes.
    """
    device = split.labels.device
    order = None if order is None else order.to(device)
    views = None if views is None else Views(*(indices.to(device) for indices in views))
    for first in range(0, len(split), batch_size):
        size = min(batch_size, len(split) - first)
        mine = slice(first + size * rank // processes, first + size * (rank + 1) // processes)
        if order is None:
            images, labels = split.images[mine], split.labels[mine]  # (B, H, W, C) uint8, (B,)
        else:
            mine = order[mine]
            images, labels = split.images.index_select(0, mine), split.labels.index_select(0, mine)
        if views is not None:
            rows, columns = views.rows[mine], views.columns[mine]
            which = torch.arange(len(labels), device=device)
            images = images[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        yield Batch(images.permute(0, 3, 1, 2).to(dtype).div_(255), labels, size)
