"""What several test modules share; Keras runs on its torch backend, so TensorFlow is not needed."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def cli():
    """Run `python train.py ARGS` as a user does; returns the finished process with its text output."""

    def run(*args, **options):
        command = [sys.executable, ROOT / "train.py", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)

    return run


@pytest.fixture(scope="session")
def arrays():
    """A small data set that can be learnt: the colour tells the class; 320 training and 100 test images."""
    random = np.random.default_rng(0)

    def draw(n):
        labels = np.arange(n) % 10
        colour = (labels[:, None] * np.array([25, 13, 7]) % 200).astype(np.uint8)
        return random.integers(0, 56, (n, 32, 32, 3), np.uint8) + colour[:, None, None, :], labels

    (x_train, y_train), (x_test, y_test) = draw(320), draw(100)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    """The small data set as a file in the layout of Keras's dataset files."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def real_npz():
    """The real images, from the file that CIFAR10_NPZ names."""
    path = os.environ.get("CIFAR10_NPZ")
    if not path:
        pytest.skip("needs real images: set CIFAR10_NPZ to an .npz with x_train, y_train, x_test, y_test of CIFAR-10")
    return Path(path).resolve(strict=True)
