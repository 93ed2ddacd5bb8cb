"""Images and labels as tensors: CIFAR-10, a Keras-style `.npz`, an offline stand-in; the split; batches."""

import contextlib
import fcntl
import hashlib
import http.client
import io
import math
import os
import shutil
import socket
import sys
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SYNTHETIC = "synthetic"
NPZ_LIMIT = 8 << 30  # bytes: 40 times CIFAR-10
DOWNLOAD_TIMEOUT = 60  # seconds without a byte


class DataError(ValueError):
    """The data named are not what they must be; the message names the value and the remedy."""


class DataUnavailableError(Exception):
    """CIFAR-10 is neither on disk nor reachable; the message names the ways on."""


class Arrays(NamedTuple):
    """A data set as stored: images uint8 (N, 32, 32, 3), labels int64 (N,), classes 0 to 9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Split(NamedTuple):
    """One part of a data set on one device: images uint8 (N, 32, 32, 3), labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


def load(source: str) -> Arrays:
    """Read the data set that `--data` names: `synthetic`, an `.npz` file, or torchvision's CIFAR-10 folder.

    Raises DataError for data that are wrong, DataUnavailableError for CIFAR-10 that cannot be had.
    """
    if source == SYNTHETIC:
        return synthetic()
    path = Path(source)
    if path.suffix == ".npz":
        return load_npz(path)
    if os.path.isfile(path):
        raise DataError(f"--data {source}: neither a folder nor an .npz file; pass one of them, or '{SYNTHETIC}'")
    return load_cifar10(path)


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 of the shapes and values: the same data have the same one, wherever they were read from."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def describe(source: str) -> str:
    """Name the data set of `--data` for people to read."""
    if source == SYNTHETIC:
        return "synthetic stand-in, NOT CIFAR-10"
    return f"data from {source}" if source.endswith(".npz") else f"CIFAR-10 in {source}"


def class_names(source: str) -> tuple[str, ...]:
    """The names of the classes 0 to 9 of `--data`: CIFAR-10's, but the stand-in's mean nothing."""
    return tuple(f"class {number}" for number in range(len(CLASSES))) if source == SYNTHETIC else CLASSES


def load_npz(path: Path) -> Arrays:
    """Read `x_train, y_train, x_test, y_test` from a file in the layout of Keras's dataset files."""
    arrays = read_npz("--data", path, NPZ_LIMIT)
    found = ", ".join(arrays) or "nothing"
    missing = [name for name in Arrays._fields if name not in arrays]
    if missing:
        raise DataError(f"--data {path}: no array {', '.join(missing)} in it (found: {found}); add it with np.savez")
    checked = {}
    for part in ("train", "test"):
        x, y = f"x_{part}", f"y_{part}"
        try:
            checked[x], checked[y] = _checked(x, arrays[x], y, arrays[y])
        except DataError as error:
            raise DataError(f"--data {path}: {error}") from None
    return Arrays(**checked)


def read_npz(flag: str, path: Path, limit: int) -> dict[str, np.ndarray]:
    """Read every array of the `.npz` file that `flag` names; raises DataError if that cannot be done.

    A file that claims to hold more than `limit` bytes is not read.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        # Quiet: a header that is no Python makes numpy warn before it raises.
        with (
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as source,
            np.load(source, allow_pickle=False) as file,
        ):
            size = sum(member.file_size for member in file.zip.infolist())
            if size > limit:
                raise ValueError(f"its arrays take {size:,} bytes, more than {limit:,}")
            arrays = dict(file)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy gives what is not its own back as bytes
                raise ValueError(f"{name} in it is no array")
        return arrays
    except FileNotFoundError:
        raise DataError(f"{flag} {path}: no such file; pass an .npz that exists") from None
    except Exception as error:  # bytes that are damaged or hostile can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{flag} {path}: not a readable .npz of plain arrays ({reason:.200}); write it with np.savez"
        ) from None


def _checked(x: str, images: np.ndarray, y: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8:
        raise DataError(f"{x} is {images.dtype}; images must be uint8, 0 to 255")
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise DataError(f"{x} has shape {images.shape}; images must be (N, 32, 32, 3) with N of at least 1")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{y} is {labels.dtype}; labels must be whole numbers from 0 to {len(CLASSES) - 1}")
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(f"{y} has shape {labels.shape}; {x} asks for ({len(images)},) or ({len(images)}, 1)")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= len(CLASSES):
        raise DataError(f"{y} has labels from {low} to {high}; they must lie in 0 to {len(CLASSES) - 1}")
    return images, labels.reshape(-1).astype(np.int64)


def load_cifar10(folder: Path) -> Arrays:
    """Read torchvision's CIFAR-10 from `folder`, checksums verified; download it there if it is not there yet.

    Of several processes one downloads and the others wait for it.
    """
    from torchvision.datasets import CIFAR10  # takes a second to import, and only this function needs it

    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            train = CIFAR10(folder.absolute(), train=True)
        except RuntimeError:  # torchvision's word for "not found or corrupted"
            with _alone(folder):
                train = _fetch_cifar10(folder)
        test = CIFAR10(folder.absolute(), train=False)
    except OSError as error:
        raise DataError(
            f"--data {folder}: cannot be used ({error.strerror or error}); pass a folder that can be written"
        ) from None
    images = (np.ascontiguousarray(part.data) for part in (train, test))
    labels = (np.array(part.targets) for part in (train, test))
    x_train, x_test, y_train, y_test = *images, *labels
    return Arrays(x_train, y_train, x_test, y_test)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock of a process that died is free."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that gets CIFAR-10 ready in {folder}.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_cifar10(folder: Path):
    """Return torchvision's training part after extracting the archive in `folder`, downloaded if it is not there."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5, download_url

    with contextlib.suppress(RuntimeError):
        return CIFAR10(folder.absolute(), train=True)  # another process was first

    archive = folder / Path(CIFAR10.url).name
    if not archive.exists():
        # A download that breaks off leaves its part in there, where nobody takes it for the archive.
        partial = folder / ".partial"
        print(f"Downloading CIFAR-10 to {folder} (170 MB).", flush=True)
        try:
            with _download_manners():
                download_url(CIFAR10.url, partial, archive.name, CIFAR10.tgz_md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataUnavailableError(
                f"CIFAR-10 is not in {folder} and could not be downloaded ({error}).\n"
                f"Put {archive.name} (MD5 {CIFAR10.tgz_md5}, from {CIFAR10.url}) into {folder},\n"
                f"or pass --data FILE.npz (x_train, y_train, x_test, y_test as in Keras's dataset files),\n"
                f"or pass --data {SYNTHETIC} for an offline stand-in that is not CIFAR-10."
            ) from None
        (partial / archive.name).replace(archive)
        shutil.rmtree(partial, ignore_errors=True)
    elif not check_md5(archive, CIFAR10.tgz_md5):
        raise DataError(
            f"--data {folder}: {archive.name} in it is not CIFAR-10's, its MD5 is not {CIFAR10.tgz_md5}; "
            "delete it to have it downloaded, or put the right one there"
        )
    try:
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")  # older torchvisions would write outside the folder
        return CIFAR10(folder.absolute(), train=True)
    except (RuntimeError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"--data {folder}: {archive.name} in it cannot be extracted ({error}); delete it") from None


@contextlib.contextmanager
def _download_manners() -> Iterator[None]:
    """Give a silent server up after a while, and keep torchvision's progress bar out of log files."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)


def split_validation(images: np.ndarray, labels: np.ndarray, fraction: float) -> tuple[Split, Split]:
    """Cut the *last* `fraction` off for validation, as Keras's `validation_split` does: unshuffled, rounded alike."""
    cut = math.floor(len(labels) * (1.0 - fraction))
    if not 0 < cut < len(labels):
        part = "training" if cut == 0 else "validation"
        raise DataError(
            f"--validation-split {fraction}: leaves no {part} image of {len(labels)}; "
            f"pass a {'smaller' if cut == 0 else 'larger'} part or more images"
        )
    return as_split(images[:cut], labels[:cut]), as_split(images[cut:], labels[cut:])


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


class Views(NamedTuple):
    """One augmented view of each image: the stored rows and columns that it is made of, int64 (N, 32) each."""

    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device) -> "Views":
        return Views(self.rows.to(device), self.columns.to(device))


def random_views(count: int, shift: int = 4) -> Views:
    """Draw a view of each of `count` images from torch's CPU generator, all equally likely (162 for a shift of 4).

    Mirrored or not, and moved by up to `shift` pixels each way; pixels next to the edge, mirrored at it, fill the gap.
    """
    shifts = torch.randint(-shift, shift + 1, (2, count, 1))
    rows, columns = 31 - (31 - (torch.arange(32) + shifts).abs()).abs()  # mirrored at 0, then at 31
    flipped = torch.randint(0, 2, (count, 1), dtype=torch.bool)
    return Views(rows, torch.where(flipped, columns.flip(1), columns))


def batches(
    split: Split,
    batch_size: int,
    order: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    views: Views | None = None,
    rank: int = 0,
    size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) in `order` (int64 indices; None: as stored), the short last batch included.

    Images come as `dtype` (B, 3, 32, 32) in [0, 1], channels_last in memory: the stored layout seen through a permute.
    With `views` (one per stored image) each is seen through its own. With a `size` above 1 each batch is cut into so
    many slices, as even as can be and some of them empty if need be, and slice number `rank` comes.
    """
    for start in range(0, len(split), batch_size):
        count = min(batch_size, len(split) - start)
        start, stop = start + count * rank // size, start + count * (rank + 1) // size
        if order is None:
            images, labels = (part[start:stop] for part in split)
        else:
            images, labels = (part.index_select(0, order[start:stop]) for part in split)  # (B, 32, 32, 3) uint8, (B,)
        if views is not None:
            rows, columns = (part[start:stop] if order is None else part[order[start:stop]] for part in views)
            which = torch.arange(stop - start, device=images.device)
            images = images[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        yield images.permute(0, 3, 1, 2).to(dtype).div_(255), labels


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

    return Arrays(*draw(5_000), *draw(1_000))
