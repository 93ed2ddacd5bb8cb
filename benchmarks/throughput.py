"""Measure how many training images per second several runs on one machine, or one GPU, process together.

    python benchmarks/throughput.py --processes 1 2 4 8 16 --device cuda --data data/cifar10.npz
    python benchmarks/throughput.py --processes 1 2 --peer "Keras on TensorFlow" --data data/cifar10.npz

Each run has its own process, and on CUDA its own context; on a CPU, the runs divide the cores. All begin their timed
epochs, validation included, at the same time. With `--peer`, both are measured in turn, `--rounds` times.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import contenders
import measuring


class Together:
    """Replaces measuring.Turns: all runs begin together after a warm-up epoch; EOFError follows the timed epochs."""

    def __init__(self, barrier, seconds, epochs: int):
        self.barrier = barrier
        self.seconds = seconds
        self.epochs = epochs
        self.ended = 0

    def begin(self) -> None:
        if self.ended > self.epochs:
            raise EOFError

    def trained(self) -> None:
        pass

    def end(self) -> None:
        self.ended += 1
        if self.ended == 1:
            self.barrier.wait()
            self.started = time.perf_counter()
        elif self.ended > self.epochs:
            self.seconds.put(time.perf_counter() - self.started)


def work(name: str, file: str, args: argparse.Namespace, barrier, seconds) -> None:
    with contextlib.suppress(EOFError):
        contenders.CONTENDERS[name](file, args, Together(barrier, seconds, args.epochs))


def rate(name: str, count: int, threads: int, file: str, args: argparse.Namespace) -> float:
    """Return the total training images per second of `count` concurrent runs of the contender `name`."""
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[variable] = str(threads)  # read when the libraries are imported
    contenders.choose_backend(name)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count, timeout=600)
    seconds = context.Queue()
    processes = [context.Process(target=work, args=(name, file, args, barrier, seconds)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"{name}, {count} processes: one of them failed, see above")
    return count * args.epochs * args.images / max(seconds.get() for _ in processes)


def main() -> None:
    import torch

    from cli.parser import Parser, number

    whole = number(int, "[1, 10000]")
    parser = Parser("throughput.py", __doc__)
    measuring.add_flags(parser)
    parser.add_argument("--processes", type=whole, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of runs at once")
    parser.add_argument("--epochs", type=whole, default=3, help="timed epochs, after a warm-up epoch")
    parser.add_argument("--rounds", type=whole, default=1, help="measurements of each")
    peers = [name for name in contenders.PEERS if name.startswith("Keras on ")]
    parser.add_argument("--peer", choices=peers, help="also measure this peer")
    args = measuring.parse(parser)
    if args.peer and not contenders.installed([args.peer])[0]:
        parser.error(f"--peer {args.peer}: install what it needs, as docs/speed.md says, or leave it out")
    cores = torch.get_num_threads()
    names = [contenders.OURS, args.peer] if args.peer else [contenders.OURS]
    rates = {each: [] for each in itertools.product(args.processes, names)}
    with measuring.images_of(args, parser) as (file, args.images):
        for _, (count, name) in itertools.product(range(args.rounds), rates):
            rates[count, name].append(rate(name, count, max(1, cores // count), file, args))
            print(f"{count} of {name}: {rates[count, name][-1]:,.0f} images per second", flush=True)
    print("\n| processes | threads each | | images per second, together | times the first row |\n|---|---|---|---|---|")
    base = statistics.median(next(iter(rates.values())))
    for (count, name), measured in rates.items():
        times = statistics.median(measured) / base
        print(f"| {count} | {max(1, cores // count)} | {name} | {measuring.spread(measured, 0)} | {times:.2f} |")


if __name__ == "__main__":
    main()
