"""What the benchmarks share: their flags, the images they train on, the form of their figures."""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory

import numpy as np


class Turns:
    """A contender's side of the pipe: it waits for its turn, and tells what the two parts of its epoch took."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe

    def begin(self) -> None:
        """Wait; raises EOFError after the last round."""
        self.pipe.recv()
        self.started = time.perf_counter()

    def trained(self) -> None:
        self.middle = time.perf_counter()

    def end(self) -> None:
        self.pipe.send((self.middle - self.started, time.perf_counter() - self.middle))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what is trained on what: the flags that `images_of` and the contenders read."""
    from harness import environment
    from harness.console import number

    parser.add_argument("--data", default="synthetic", help="as for train.py")
    parser.add_argument("--model", choices=("baseline", "improved"), default="baseline", help="network")
    parser.add_argument("--device", type=environment.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 for all of them")
    whole = number(int, "[1, 1000000]")
    parser.add_argument("--images", type=whole, help="so many training images at most, validation's among them")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    args.device = str(args.device)
    return args


@contextmanager
def images_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[tuple[str, int]]:
    """Have the images in a file for as long as the block lasts; give its path, and how many are trained on."""
    import data
    from harness.errors import BadInput, Unavailable

    try:
        arrays = data.load(args.data)
        arrays = arrays._replace(x_train=arrays.x_train[: args.images], y_train=arrays.y_train[: args.images])
        training, _ = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
    except (BadInput, Unavailable) as error:
        parser.error(str(error))
    with TemporaryDirectory() as folder:
        np.savez(f"{folder}/images.npz", **arrays._asdict())
        yield f"{folder}/images.npz", len(training)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
