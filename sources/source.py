"""The base class for sources of images, and the arrays that they return."""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """A data set as stored: images uint8 (N, H, W, C), labels int64 (N,) from 0, and the names of all classes."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.x_train.shape[1:]


def fingerprint(arrays: Arrays) -> str:
    """Return the SHA-256 of shapes and values: the same for the same data, wherever they were read from."""
    digest = hashlib.sha256()
    for array in arrays[:4]:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class Source:
    """A source of images; one subclass for each kind of `--data`. `sources.choose` creates it from that option."""

    scales = False  # whether it accepts --image-size
    uneven = "the last training images are for validation, so shuffle sorted arrays first"  # if a part lacks a class

    def __init__(self, text: str):
        self.text = text

    def load(self) -> Arrays:
        """Read the images. Raises BadInput for data that are wrong, Unavailable if CIFAR-10 cannot be obtained."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the name of the data for messages; call it after `load`."""
        return f"data from {self.text}"

    def title(self) -> str:
        """Return the name of the data for a picture, where a path is too long."""
        return Path(self.text).name

    def short_name(self) -> str:
        """Return the name of the data for the name of a run's directory."""
        return re.sub(r"[^\w.-]+", "_", os.path.basename(os.path.abspath(self.text)))[:40]  # also for "."

    def for_keras(self) -> str | None:
        """Return the `--data` for Keras's side, "" for Keras's own CIFAR-10; None if it cannot read these data."""
        return None


def numbered(classes: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(f"class {number}" for number in range(classes))
