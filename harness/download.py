"""CIFAR-10 as torchvision and Keras keep it on disk: found there, or downloaded; checksums verified."""

import contextlib
import hashlib
import http.client
import io
import math
import os
import pickle
import shutil
import socket
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from harness import files
from harness.console import say
from harness.errors import BadInput, CannotWrite, Unavailable
from harness.lock import Held, Lock, Unsupported

TIMEOUT = 60  # seconds without a byte
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN, TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
NAMES = (*TRAIN, *TEST, "batches.meta")


class Unusable(Exception):
    """A file is not CIFAR-10's, or cannot be read; its arguments are the fault and the remedy."""


def cifar10(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images, uint8 (N, 32, 32, 3), and labels, int64 (N,), of the training and the test part.

    They are read where `find` finds them, or else downloaded to `folder`: of several processes one does it and the
    others wait. Raises BadInput for a folder or a file that is of no use, Unavailable.
    """
    try:
        place = _lying_in(folder)
        cached = None if place else _in_keras_cache()
        if cached:
            try:
                return _decoded(_read(cached))
            except Unusable as error:  # nobody has named it
                say(f"CIFAR-10 in Keras's cache is left out: {error.args[0]}.")
        if place and os.path.isdir(place):
            return _decoded(_read(place))
        return _decoded(_unpack_alone(folder))
    except Unusable as error:
        fault, remedy = error.args
        raise BadInput(f"--data {folder}: {fault}; {remedy}") from None
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"--data {folder}: cannot be used ({reason}); pass a folder that can be written") from None


def find(folder: Path) -> Path | None:
    """Return where CIFAR-10 lies, going by names: in `folder`, or else in Keras's cache; None if in neither.

    It is a folder of batches or an archive. Raises OSError for a folder that cannot be looked into.
    """
    return _lying_in(folder) or _in_keras_cache()


def _in_keras_cache() -> Path | None:
    home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
    with contextlib.suppress(OSError):
        return _lying_in(Path(home, "datasets"))
    return None


def _lying_in(folder: Path) -> Path | None:
    """Return all the batches in `folder`, or else an archive, or else a part of the batches."""
    if not os.path.isdir(folder):
        return None
    # Keras 2 leaves FOLDER and FOLDER.tar.gz, Keras 3 FOLDER-target/FOLDER and FOLDER-target_archive.
    entries = sorted(entry for entry in folder.iterdir() if entry.name.startswith(FOLDER))
    places = [folder, *entries, *(entry / FOLDER for entry in entries)]
    found = {place: [os.path.isfile(place / name) for name in NAMES] for place in places}
    archives = [path for path in (folder / ARCHIVE, *entries) if os.path.isfile(path)]
    whole, part = ([place for place in places if test(found[place])] for test in (all, any))
    return next(iter([*whole, *archives, *part]), None)


def _read(place: Path) -> dict[str, bytes]:
    """Return the files that a folder or an archive holds, by name, each with its MD5 verified. Raises Unusable."""
    from torchvision.datasets import CIFAR10  # takes a second to import

    if os.path.isdir(place):
        checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
        again = f"put the right one there, or delete {place} to have it made anew"
        return {name: _verified(place / name, checksums[name], again) for name in NAMES}
    again = "put the right one there, or delete it to have it downloaded"
    archive, contents = io.BytesIO(_verified(place, CIFAR10.tgz_md5, again)), {}
    with tarfile.open(fileobj=archive) as members:
        for member in members:  # in the archive's order: a step back unpacks it from its beginning
            path = PurePosixPath(member.name)
            if member.isfile() and path.parent == PurePosixPath(FOLDER) and path.name in NAMES:
                contents[path.name] = members.extractfile(member).read()
    missing = [name for name in NAMES if name not in contents]
    if missing:
        raise Unusable(f"{place} cannot be extracted (no {', '.join(missing)} in it)", again)
    return contents


def _verified(path: Path, md5: str, remedy: str) -> bytes:
    if not os.path.isfile(path):
        raise Unusable(f"{path} is missing", remedy)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unusable(
            f"{path} cannot be read ({error.strerror})", "make it readable, or pass another --data"
        ) from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise Unusable(f"{path} is not CIFAR-10's, its MD5 is not {md5} but {found}", remedy)
    return content


def _decoded(contents: dict[str, bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
    parts = []
    for names in (TRAIN, TEST):  # pickles, but known ones: their MD5 was verified
        batches = [pickle.loads(contents.pop(name), encoding="latin1") for name in names]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
        parts.append((np.ascontiguousarray(images), labels))
    return parts


def _unpack_alone(folder: Path) -> dict[str, bytes]:
    """Do what `_unpack` does, one process at a time, as far as the file system can."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / ".lock")
    try:
        lock.claim(patience=0)
    except Held:
        print(f"Waiting for another process that gets CIFAR-10 ready in {folder}.", flush=True)
        lock.claim(patience=math.inf)
    except Unsupported as error:
        print(f"No locks in {folder} ({error}): let no other process download CIFAR-10 there now.", flush=True)
    except OSError as error:
        archive = _lying_in(folder)
        if archive is None:
            raise
        say(f"Reading {archive} without extracting it ({error.strerror}).")
        return _read(archive)
    try:
        return _unpack(folder)
    finally:
        lock.release()


def _unpack(folder: Path) -> dict[str, bytes]:
    """Return what the archive in `folder` holds, downloaded if it is not there, and leave it extracted beside it."""
    place = _lying_in(folder) or _download(folder)
    contents = _read(place)
    if os.path.isfile(place):  # else another process was first
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            for name, content in contents.items():
                files.write_bytes(folder / FOLDER / name, content)
        except (OSError, CannotWrite) as error:
            say(f"{place} is read, but not extracted: {error}.")
    return contents


def _download(folder: Path) -> Path:
    """Return the archive, downloaded to `folder`. Raises Unavailable."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    # A download that breaks off leaves its part in there, where nobody takes it for the archive.
    partial = folder / ".partial"
    print(f"Downloading CIFAR-10 to {folder} (170 MB).", flush=True)
    try:
        with _quiet_and_impatient():
            download_url(CIFAR10.url, partial, ARCHIVE, CIFAR10.tgz_md5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise Unavailable(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}).\n"
            f"Put {ARCHIVE} (MD5 {CIFAR10.tgz_md5}, from {CIFAR10.url}) into {folder},\n"
            f"or pass --data FILE.npz (x_train, y_train, x_test, y_test as in Keras's dataset files),\n"
            f"or pass --data synthetic for an offline stand-in that is not CIFAR-10."
        ) from None
    (partial / ARCHIVE).replace(folder / ARCHIVE)
    shutil.rmtree(partial, ignore_errors=True)
    return folder / ARCHIVE


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
