"""Images and labels as tensors: CIFAR-10, a Keras-style `.npz`, an offline stand-in; the split; batches."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.datasets import load_npz, numbered
from harness.download import cifar10, find
from harness.errors import BadInput

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SYNTHETIC, DEFAULT = "synthetic", "data"  # the default folder is the only one that is made


class Arrays(NamedTuple):
    """A data set as stored: images uint8 (N, H, W, C), labels int64 (N,) from 0, and the names of all classes."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = CLASSES

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.x_train.shape[1:]


class Split(NamedTuple):
    """One part of a data set on one device: images uint8 (N, H, W, C), labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


def load(source: str) -> Arrays:
    """Read the data set that `--data` names: `synthetic`, an `.npz` file, or a folder of CIFAR-10.

    Raises BadInput for data that are wrong, Unavailable for CIFAR-10 that cannot be had.
    """
    if source == SYNTHETIC:
        return synthetic()
    path = Path(source)
    if path.suffix == ".npz":
        parts, names = load_npz(path)
        return Arrays(*parts, names)
    if os.path.isfile(path):
        raise BadInput(f"--data {source}: neither a folder nor an .npz file; pass one of them, or '{SYNTHETIC}'")
    if source != DEFAULT and not os.path.exists(path):
        raise BadInput(f"--data {source}: no such folder; pass one that is there, or make it to have CIFAR-10 in it")
    (x_train, y_train), (x_test, y_test) = cifar10(path)
    return Arrays(x_train, y_train, x_test, y_test)


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 of the shapes and values: the same data have the same one, wherever they were read from."""
    digest = hashlib.sha256()
    for array in arrays[:4]:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def place(source: str) -> Path | None:
    """Where the data of `--data` lie, going by names: a file, or for CIFAR-10 what `find` returns."""
    path = Path(source)
    wrong = source != DEFAULT and not os.path.exists(path)  # then nothing is looked for elsewhere
    return path if wrong or path.suffix == ".npz" else find(path)


def stamp(source: str) -> list[list[int]] | None:
    """Size and time of each file of `--data`, which tell without reading that it is the same; None if it is gone."""
    if source == SYNTHETIC:
        return []
    try:
        found = place(source)
        if found is None:
            return None
        members = sorted(found.iterdir()) if found.is_dir() else [found]
        return [[file.stat().st_size, file.stat().st_mtime_ns] for file in members]
    except OSError:
        return None


def describe(source: str) -> str:
    """Name the data set of `--data` for people to read."""
    if source == SYNTHETIC:
        return "synthetic stand-in, NOT CIFAR-10"
    if source.endswith(".npz"):
        return f"data from {source}"
    found = place(source)
    elsewhere = found is not None and not found.is_relative_to(source)
    return f"CIFAR-10 in Keras's cache, {found}" if elsewhere else f"CIFAR-10 in {source}"


def unseen(training: Split, validation: Split, test: Split, classes: int) -> dict[str, list[int]]:
    """The classes that no training image has, by the part that has them; `no` is for those that no image has."""
    trained, others = {*training.labels.tolist()}, {}
    for part, split in (("validation", validation), ("test", test)):
        others[part] = sorted({*split.labels.tolist()} - trained)
    return others | {"no": sorted({*range(classes)} - trained.union(*others.values()))}


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


def synthetic() -> Arrays:
    """Draw the offline stand-in: 10 classes, 5,000 training and 1,000 test images, the same on every machine.

    A class is a coarse pattern of colours; an image shows it shifted, mixed with another class's and in noise.
    """
    # Integers from RandomState alone: numpy has frozen that stream, and nothing can round differently elsewhere.
    random = np.random.RandomState(10)
    patterns = random.randint(0, 256, (len(CLASSES), 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.permutation(n) % len(CLASSES)
        others = random.randint(0, len(CLASSES), n)
        share = random.randint(45, 101, (n, 1, 1, 1))  # per cent of the image's own class
        mixed = (share * patterns[labels] + (100 - share) * patterns[others]) // 100
        rows = (np.arange(32) + random.randint(0, 12, (n, 1))) % 32
        columns = (np.arange(32) + random.randint(0, 12, (n, 1))) % 32
        shifted = mixed[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        noise = random.randint(-64, 65, shifted.shape)
        return np.clip(shifted + noise, 0, 255).astype(np.uint8), labels.astype(np.int64)

    return Arrays(*draw(5_000), *draw(1_000), numbered(len(CLASSES)))  # CIFAR-10's names would mean nothing
