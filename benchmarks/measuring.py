"""What the benchmarks share: flags, images, turns, and the format of figures."""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory

import numpy as np


class Turns:
    """A contender's side of the pipe: waits for its turn, and sends the seconds of training and of validation."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe

    def begin(self) -> None:
        """Wait for the next turn; raises EOFError after the last round."""
        self.pipe.recv()
        self.started = time.perf_counter()

    def trained(self) -> None:
        self.middle = time.perf_counter()

    def end(self) -> None:
        self.pipe.send((self.middle - self.started, time.perf_counter() - self.middle))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `images_of` and the contenders read."""
    from cli.parser import number
    from running import machine

    parser.add_argument("--data", default="synthetic", help="as for train.py")
    parser.add_argument("--model", choices=("baseline", "improved"), default="baseline", help="network")
    parser.add_argument("--device", type=machine.device_name, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 for all contenders")
    whole = number(int, "[1, 1000000]")
    parser.add_argument("--images", type=whole, help="maximum number of training images, those for validation included")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    from running import machine

    args = parser.parse_args()
    args.device = str(machine.device(args.device))
    return args


@contextmanager
def images_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[tuple[str, int]]:
    """Write the images to a temporary file; yield its path and the number of training images, without validation.

    Sets `args.described` to a description of the images.
    """
    import data
    import sources
    from cli.errors import BadInput, Unavailable

    try:
        source = sources.choose(args.data)
        arrays = source.load()
        if arrays.image_shape != (32, 32, 3) or len(arrays.class_names) != 10:
            raise BadInput(f"--data {args.data}: the peers' networks are for 10 classes of 32x32x3; pass such images")
        arrays = arrays._replace(x_train=arrays.x_train[: args.images], y_train=arrays.y_train[: args.images])
        training, _ = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
        args.described = source.describe()
    except (BadInput, Unavailable) as error:
        parser.error(str(error))
    with TemporaryDirectory() as folder:
        np.savez(f"{folder}/images.npz", **arrays._asdict())
        yield f"{folder}/images.npz", len(training)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
