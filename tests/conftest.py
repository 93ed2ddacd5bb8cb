"""What several test modules share; Keras runs on its torch backend, so TensorFlow is not needed."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # with two threads each, two workers would wait for each other on two cores
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import functools
import multiprocessing
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plots
from sources.stand_in import synthetic

ROOT = Path(__file__).parent.parent
SHAPE = (16, 16, 3)  # of the images of the small data set
stand_in = functools.cache(synthetic)  # which takes a second to draw

# A shell starts what it runs in the background with Ctrl-C ignored, and runs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


PICTURES = ("curves", "confusion", "overlay")  # the functions of `plots` that draw


def sketch(*content):
    """Stand in for a picture with this content: drawing would take more than half of the time of a small run."""
    return plots.Picture(b"\x89PNG" + repr(content).encode())


def pytest_configure(config):
    """Hide GPUs from all tests except those of `-m cuda`: the others are for a CPU, and some compare bit for bit."""
    if not re.match(r"cuda\b", config.option.markexpr or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used


@pytest.fixture(scope="session", autouse=True)
def quick_pictures():
    """Draw no pictures, not even in fixtures that tests share; yields the functions that would draw them."""
    drawing = {name: getattr(plots, name) for name in PICTURES}
    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(plots, name, sketch)
        yield drawing


@pytest.fixture(autouse=True)
def true_pictures(request, quick_pictures):
    """Draw real pictures in a test that is marked with `pictures`."""
    with pytest.MonkeyPatch.context() as patch:  # its own context, because a test may undo its patches
        if request.node.get_closest_marker("pictures") is not None:
            for name, draw in quick_pictures.items():
                patch.setattr(plots, name, draw)
        yield


@pytest.fixture(scope="session")
def cli():
    """Run `python train.py ARGS` as a user does; returns the finished process with its text output."""

    def run(*args, **options):
        command = [sys.executable, ROOT / "train.py", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run


def child(arguments, log, environment, before=None):
    import train

    os.environ.update(environment)
    if before is not None:
        before()
    for name in PICTURES:  # as in the test's own process
        setattr(plots, name, sketch)

    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(train.main(arguments))


@pytest.fixture(scope="session")
def start():
    """Start `train.main(ARGS)` on one thread in a process of its own, output appended to `log`; returns the process.

    `environment` is added to that process's own; `before`, a function of a test module, is called there first.

    It is forked from a process that has imported everything and computed nothing, which saves 4 seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "torchvision.datasets"])
    started = []

    def run(arguments, log, before=None, **environment):
        arguments = [*map(str, arguments), "--threads", "1"]
        process = context.Process(target=child, args=(arguments, str(log), environment, before))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def arrays():
    """A small data set that can be learnt, as the colour tells the class: 320 training and 100 test images of 16x16."""
    random = np.random.default_rng(0)

    def draw(n):
        labels = np.arange(n) % 10
        colour = (labels[:, None] * np.array([25, 13, 7]) % 200).astype(np.uint8)
        return random.integers(0, 56, (n, *SHAPE), np.uint8) + colour[:, None, None, :], labels

    (x_train, y_train), (x_test, y_test) = draw(320), draw(100)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    """The small data set as a file in the layout of Keras's dataset files."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def little(arrays, tmp_path_factory):
    """A file with part of the small data set: 64 images for training, 16 for validation, 20 for the test."""
    path = tmp_path_factory.mktemp("data") / "little.npz"
    np.savez(path, **{name: array[: 80 if "train" in name else 20] for name, array in arrays.items()})
    return path


@pytest.fixture(scope="session")
def finished(npz, tmp_path_factory):
    """The directory of a run of two epochs on the small data set, to be copied, not changed."""
    import train

    out = tmp_path_factory.mktemp("finished") / "run"
    assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def real_npz():
    """The real images, from the file that CIFAR10_NPZ names."""
    path = os.environ.get("CIFAR10_NPZ")
    if not path:
        pytest.skip("needs real images: set CIFAR10_NPZ to an .npz with x_train, y_train, x_test, y_test of CIFAR-10")
    return Path(path).resolve(strict=True)
