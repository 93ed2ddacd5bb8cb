"""CIFAR-10 as torchvision has it: found in a folder, or downloaded there, checksums verified."""

import contextlib
import http.client
import io
import math
import shutil
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.errors import BadInput, Unavailable
from harness.lock import Held, Lock, Unsupported

TIMEOUT = 60  # seconds without a byte


def cifar10(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images, uint8 (N, 32, 32, 3), and labels, int64 (N,), of the training and the test part.

    They are downloaded to `folder` if they are not there yet: of several processes one does it and the others wait.
    Raises BadInput for a folder or an archive that is of no use, Unavailable.
    """
    from torchvision.datasets import CIFAR10  # takes a second to import, and only this function needs it

    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            train = CIFAR10(folder.absolute(), train=True)
        except RuntimeError:  # torchvision's word for "not found or corrupted"
            train = _fetch_alone(folder)
        test = CIFAR10(folder.absolute(), train=False)
    except OSError as error:
        raise BadInput(
            f"--data {folder}: cannot be used ({error.strerror or error}); pass a folder that can be written"
        ) from None
    return [(np.ascontiguousarray(part.data), np.array(part.targets)) for part in (train, test)]


def _fetch_alone(folder: Path):
    """Do what `_fetch` does, one process at a time, as far as the file system can."""
    lock = Lock(folder / ".lock")
    try:
        lock.claim(patience=0)
    except Held:
        print(f"Waiting for another process that gets CIFAR-10 ready in {folder}.", flush=True)
        lock.claim(patience=math.inf)
    except Unsupported as error:
        print(f"No locks in {folder} ({error}): let no other process download CIFAR-10 there now.", flush=True)
    try:
        return _fetch(folder)
    finally:
        lock.release()


def _fetch(folder: Path):
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
            with _quiet_and_impatient():
                download_url(CIFAR10.url, partial, archive.name, CIFAR10.tgz_md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise Unavailable(
                f"CIFAR-10 is not in {folder} and could not be downloaded ({error}).\n"
                f"Put {archive.name} (MD5 {CIFAR10.tgz_md5}, from {CIFAR10.url}) into {folder},\n"
                f"or pass --data FILE.npz (x_train, y_train, x_test, y_test as in Keras's dataset files),\n"
                f"or pass --data synthetic for an offline stand-in that is not CIFAR-10."
            ) from None
        (partial / archive.name).replace(archive)
        shutil.rmtree(partial, ignore_errors=True)
    elif not check_md5(archive, CIFAR10.tgz_md5):
        raise BadInput(
            f"--data {folder}: {archive.name} in it is not CIFAR-10's, its MD5 is not {CIFAR10.tgz_md5}; "
            "delete it to have it downloaded, or put the right one there"
        )
    try:
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")  # older torchvisions would write outside the folder
        return CIFAR10(folder.absolute(), train=True)
    except (RuntimeError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"--data {folder}: {archive.name} in it cannot be extracted ({error}); delete it") from None


@contextlib.contextmanager
def _quiet_and_impatient() -> Iterator[None]:
    """Give a silent server up after a while, and keep torchvision's progress bar out of log files."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
