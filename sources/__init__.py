"""Where images come from: a module and a class for each kind of `--data`."""

import os
import re
from pathlib import Path

from cli.errors import BadInput
from cli.messages import shortened
from sources import class_folders, pictures
from sources.cifar10 import Cifar10
from sources.class_folders import ClassFolders
from sources.npz import NpzFile
from sources.source import Source
from sources.stand_in import SYNTHETIC, StandIn

LINES = "docs/usage.md has the lines that make an .npz of it"
PARQUET = f"Parquet, which is not read; {LINES}"


def choose(text: str, image_size: str | None = None) -> Source:
    """Return the source that `--data` names: the word `synthetic`, an `.npz` file, a folder of class folders, or a
    CIFAR-10 folder.

    `image_size` is `--image-size`, which only class folders accept. Raises BadInput for anything else.
    """
    source = _choose(text, image_size)
    if image_size is not None and not source.scales:
        raise BadInput(f"--image-size {image_size}: {text} has no pictures to scale; leave it out")
    return source


def _choose(text: str, image_size: str | None) -> Source:
    path = Path(text)
    if text == SYNTHETIC:
        return StandIn(text)
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise BadInput(f"--data {text}: is an address; download it, and pass the file or folder")
    if path.suffix.lower() == ".npz":
        return NpzFile(text)
    fault = _other_kind(text)
    if fault:
        raise BadInput(f"--data {text}: is {fault}")
    if os.path.isfile(path) and re.search(r"\.(zip|tar|tar\.gz|tgz|7z|rar)$", path.name.lower()):
        raise BadInput(f"--data {text}: is an archive; unpack it, and pass the folder")
    if os.path.isfile(path):
        raise BadInput(f"--data {text}: neither a folder nor an .npz file; pass one of them, or '{SYNTHETIC}'")
    source = Cifar10(text)
    if source.root is not None and not source.is_in_cache():
        return source
    if class_folders.holds(path):
        return ClassFolders(text, class_folders.size(image_size) if image_size else None)
    if source.root is not None:
        return source
    if os.path.isdir(path) and any(path.rglob("*.parquet")):  # only now: a folder of pictures may have very many files
        raise BadInput(f"--data {text}: is {PARQUET}")
    endings = [] if source.may_download() or not os.path.isdir(path) else class_folders.endings(path)
    if endings:
        wanted = ", ".join(sorted(pictures.ENDINGS))
        raise BadInput(
            f"--data {text}: no pictures in its folders, whose files end in {shortened(endings)}; "
            f"convert them to {wanted}"
        )
    return source


def _other_kind(text: str) -> str | None:
    """Name a known kind of data that is not read, with a remedy; return None for any other."""
    path = Path(text)
    if path.suffix == ".parquet":
        return PARQUET
    if path.name == "trainLabels.csv" or os.path.exists(path / "trainLabels.csv"):
        return f"Kaggle's form of CIFAR-10, which is not read; {LINES}"
    if path.name == "cifar-10-batches-bin" or os.path.exists(path / "cifar-10-batches-bin"):
        return f"CIFAR-10's binary version, which is not read; {LINES}, or pass the version for Python"
    if os.path.exists(path / "config.json") and os.path.exists(path / "history.csv"):
        return "a run's directory; pass the data that it was trained on, or --resume with that directory"
    if os.path.exists(path / "x_train.npy"):
        return "a folder of .npy files; np.savez('data.npz', x_train=np.load('x_train.npy'), ...) puts them into one"
    return None
