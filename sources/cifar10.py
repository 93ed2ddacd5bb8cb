"""CIFAR-10 through torchvision: read where torchvision or Keras left it, or downloaded once."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cli.errors import BadInput, Unavailable
from cli.messages import say_everywhere
from sources.source import Arrays, Source

DEFAULT = "data"  # the default folder; the only one that is created
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
LOCK = ".lock"  # of a download that is running or has failed: a folder that contains only this counts as empty
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(Source):
    """The folder FOLDER, or a folder that contains it or ARCHIVE; also the default folder, and an empty one.

    For these two, CIFAR-10 is read from Keras's cache if it is there, and otherwise downloaded to the folder.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.folder = Path(text)
        self.root = self._root()

    def _root(self) -> Path | None:
        """Return the folder that contains FOLDER; None if there is none yet."""
        roots = [self.folder.parent] if self.folder.name == FOLDER else [self.folder]
        if self.may_download() and not (self.folder / ARCHIVE).exists():
            roots += _keras_caches()
        return next((root for root in roots if os.path.isdir(root / FOLDER)), None)

    def is_in_cache(self) -> bool:
        return self.root in _keras_caches()

    def _is_default(self) -> bool:
        return os.path.abspath(self.text) == os.path.abspath(DEFAULT)  # a run's config.json has the absolute path

    def may_download(self) -> bool:
        if self._is_default():
            return True
        return os.path.isdir(self.folder) and {path.name for path in self.folder.iterdir()} <= {LOCK}

    def load(self) -> Arrays:
        try:
            if self.root is None:
                self._refuse_other_folders()
                _download(self.folder)
                self.root = self.folder
            try:
                parts = _read(self.root)
            except RuntimeError:
                if not (self.root / ARCHIVE).exists():
                    raise
                _download(self.root)  # its extraction was interrupted
                parts = _read(self.root)
        except (OSError, RuntimeError, EOFError) as error:  # RuntimeError is torchvision's, for a wrong checksum
            place = self.root or self.folder
            reason = " ".join(str(error).split())
            raise BadInput(
                f"--data {self.text}: no CIFAR-10 can be read from {place} ({reason:.200}); "
                f"delete {FOLDER} there to download it again, or pass another folder"
            ) from None
        images = [np.ascontiguousarray(part.data) for part in parts]  # uint8 (N, 32, 32, 3)
        labels = [np.array(part.targets, np.int64) for part in parts]
        return Arrays(images[0], labels[0], images[1], labels[1], CLASSES)

    def _refuse_other_folders(self) -> None:
        """Raise BadInput for a folder that does not exist or that holds something else."""
        if not self.folder.exists() and not self._is_default():
            raise BadInput(f"--data {self.text}: no such folder; pass one that exists, or an empty one to download to")
        if not self.may_download() and not (self.folder / ARCHIVE).exists():
            raise BadInput(
                f"--data {self.text}: holds neither {FOLDER} nor {ARCHIVE}; pass the folder of CIFAR-10, an empty one "
                "to download to, an .npz file, or a folder with a folder of pictures for each class"
            )

    def describe(self) -> str:
        if self.is_in_cache():
            return f"CIFAR-10 in Keras's cache, {self.root / FOLDER}"
        return f"CIFAR-10 in {self.text}"

    def title(self) -> str:
        return "CIFAR-10"

    def short_name(self) -> str:
        """Return "" for the default folder: a run's directory is named only after other data."""
        return "" if self._is_default() else super().short_name()

    def for_keras(self) -> str | None:
        return "" if self.short_name() == "" else None


def _read(root: Path) -> list:
    """Return torchvision's training and test parts. Raises RuntimeError for a file that is missing or wrong."""
    from torchvision.datasets import CIFAR10  # takes a second to import

    return [CIFAR10(root, train=train) for train in (True, False)]


def _keras_caches() -> tuple[Path, Path]:
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"
    return cache, cache / f"{FOLDER}-target"  # Keras 2's and Keras 3's


def _download(folder: Path) -> None:
    """Download CIFAR-10 to `folder` and extract it. Raises Unavailable, or BadInput if the folder is not writable."""
    from torchvision.datasets import CIFAR10

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            if not (folder / ARCHIVE).exists():
                say_everywhere(f"Downloading CIFAR-10 to {folder} (170 MB).")
            hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
            with hidden:  # torchvision's progress bar, which a log file does not need
                CIFAR10(folder, download=True)
    except PermissionError as error:
        raise BadInput(
            f"--data {folder}: cannot be used ({error.strerror}); pass a folder that can be written"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise Unavailable(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}).\n"
            f"Put {ARCHIVE} (MD5 {CIFAR10.tgz_md5}, from {CIFAR10.url}) into {folder},\n"
            f"or pass --data FILE.npz (x_train, y_train, x_test, y_test as in Keras's dataset files),\n"
            f"or pass --data synthetic for an offline stand-in that is not CIFAR-10."
        ) from None


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` within the block: one process downloads, and any others wait until it has finished."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say_everywhere(f"Waiting for another process to prepare CIFAR-10 in {folder}.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
