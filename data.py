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
    """Return the classes that are missing from some part, as sorted labels.

    Under `validation` and `test`: classes in that part but not in training. Under `not validation` and `not test`:
    classes in training but not in that part. Under `no`: classes in no part.
    """
    trained = {*training.labels.tolist()}
    others = {}
    lacking = {}
    for part, split in (("validation", validation), ("test", test)):
        labels = {*split.labels.tolist()}
        others[part], lacking[f"not {part}"] = sorted(labels - trained), sorted(trained - labels)
    others["no"] = sorted({*range(classes)} - trained.union(*others.values()))
    return others | lacking


def repeated(training: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, int]:
    """Return how many images of each part have the same pixels as one in `training`; all are (N, H, W, C)."""
    hashes = {hash(image.tobytes()) for image in training}  # 64 bits: 50,000 and 10,000 collide by chance once in 4e10
    return {part: sum(hash(image.tobytes()) in hashes for image in images) for part, images in others.items()}


def split_validation(images: np.ndarray, labels: np.ndarray, fraction: float) -> tuple[Split, Split]:
    """Split off the *last* `fraction` for validation, unshuffled and rounded like Keras's `validation_split`."""
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
    """Random views of images of `height` and `width`: shifted by up to `shift` pixels each way, and mirrored or not.

    Raises BadInput if `shift` is not smaller than the images.
    """

    height: int
    width: int
    shift: int = 4
    mirror: bool = True

    def __post_init__(self):
        if self.shift >= min(self.height, self.width):
            raise BadInput(
                f"--shift {self.shift}: images are {self.height}x{self.width}; "
                f"pass at most {min(self.height, self.width) - 1}"
            )

    def draw(self, count: int) -> Views:
        """Draw a view of each of `count` images from torch's CPU generator; all (162 by default) are equally likely."""
        shifts = torch.randint(-self.shift, self.shift + 1, (2, count, 1))
        rows, columns = _shifted(self.height, shifts[0]), _shifted(self.width, shifts[1])
        if self.mirror:
            flipped = torch.randint(0, 2, (count, 1), dtype=torch.bool)
            columns = torch.where(flipped, columns.flip(1), columns)
        return Views(rows, columns)


def _shifted(size: int, shifts: Tensor) -> Tensor:
    """Return indices (N, size) moved by `shifts` (N, 1) and reflected at both ends, like torch's `reflect` padding."""
    last = size - 1
    return last - (last - (torch.arange(size) + shifts).abs()).abs()


def draw(
    count: int, seed: int, epoch: int, shuffle: bool = True, augmentation: Augmentation | None = None, rank: int = 0
) -> tuple[Tensor | None, Views | None]:
    """Draw the order of `count` images, int64 (N,) (None: as stored), and their views (None without augmentation).

    Both depend only on `seed` and `epoch` (from 0), so they are the same in every process and on every device. The
    state in which torch's generators are left depends on `rank` too, so that each process draws its own dropout masks.
    """
    seed_torch(seed, epoch + 1)
    order = torch.randperm(count) if shuffle else None
    views = None if augmentation is None else augmentation.draw(count)
    if rank:
        seed_torch(seed, epoch + 1, rank)
    return order, views


def seed_torch(*entropy: int) -> None:
    """Seed all torch generators from `entropy`: (seed, 0) for initial weights, then (seed, epoch from 1[, rank])."""
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
    """Yield batches of `split` in `order` (int64 indices; None: as stored), including a short last one.

    Images have `dtype` and are channels_last in memory, which is the stored layout, permuted. `views`, one per stored
    image, augments them. Each batch is divided among `processes` as evenly as possible, and only part `rank`, which may
    be empty, is yielded.
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
