"""Measure how many training images a second several runs on one machine, or one GPU, get through together.

    python benchmarks/throughput.py --processes 1 2 4 8 16 --device cuda --data data/cifar10.npz

Each run is a process of its own (on CUDA with a context of its own); on a CPU they share its cores out. All begin
their timed epochs together.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent)]


def work(file: str, args: argparse.Namespace, threads: int, barrier, seconds) -> None:
    """Train after the others are ready; put the time that it took into `seconds`."""
    import epoch
    import torch

    torch.set_num_threads(threads)
    learn, _ = epoch.our_epoch(file, args)
    learn()
    barrier.wait()
    started = time.perf_counter()
    for _ in range(args.epochs):
        learn()
    seconds.put(time.perf_counter() - started)


def main() -> None:
    import torch

    import data
    from harness import environment
    from harness.console import Parser, number
    from harness.errors import BadInput, Unavailable

    whole = number(int, "[1, 1000000]")
    parser = Parser(prog="throughput.py", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=whole, nargs="+", default=[1, 2, 4, 8, 16], help="how many")
    parser.add_argument("--data", default="synthetic", help="as for train.py")
    parser.add_argument("--model", choices=("baseline", "improved"), default="baseline", help="network")
    parser.add_argument("--device", type=environment.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--epochs", type=whole, default=3, help="timed ones, after one to warm up")
    args = parser.parse_args()
    args.device = str(args.device)
    try:
        arrays = data.load(args.data)
        training, _ = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
    except (BadInput, Unavailable) as error:
        parser.error(str(error))
    cores, context, base = torch.get_num_threads(), multiprocessing.get_context("spawn"), None
    print("| processes | threads each | images per second, together | times the first row |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/images.npz"
        np.savez(file, **arrays._asdict())
        for count in args.processes:
            threads = max(1, cores // count)
            barrier, seconds = context.Barrier(count, timeout=600), context.Queue()
            processes = [
                context.Process(target=work, args=(file, args, threads, barrier, seconds)) for _ in range(count)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                sys.exit(f"{count} processes: one of them failed, see above")
            slowest = max(seconds.get() for _ in processes)
            rate = count * args.epochs * len(training) / slowest
            base = base or rate
            print(f"| {count} | {threads} | {rate:,.0f} | {rate / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
