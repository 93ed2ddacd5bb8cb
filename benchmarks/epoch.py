"""Time whole epochs of this project and its peers in turn, on the same images, and compare with the hardware's ceiling.

    python benchmarks/epoch.py --data data/cifar10.npz

An epoch is one pass over the training part and one over the validation part. Each contender has its own process and
waits while the others run; on a busy machine, only ratios are meaningful. Peers that are not installed are listed and
left out; `pip install tensorflow-cpu jax lightning` installs all of them. The ceiling is the highest rate of matrix
products on the same threads, measured in every round.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))

import contenders
import measuring
from contenders import BATCH, OURS
from measuring import Turns

PRODUCTS = (512, 1024, 2048)  # sizes of the square matrices; the fastest is the ceiling
CEILING = "matrix products"


def matrix_products(file: str, args: argparse.Namespace, turns: Turns) -> None:
    """Send the rate of float32 (or bfloat16) matrix products, in FLOP per second, instead of times."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.bfloat16 if args.mixed_precision else torch.float32
    pairs = [torch.randn(2, size, size, device=args.device).to(dtype) for size in PRODUCTS]
    while True:
        turns.begin()
        rates = []
        for left, right in pairs:
            count, started = 0, time.perf_counter()
            while count < 3 or time.perf_counter() - started < 0.5:
                left @ right
                if args.device != "cpu":
                    torch.cuda.synchronize()
                count += 1
            rates.append(2 * count * len(left) ** 3 / (time.perf_counter() - started))
        turns.pipe.send((max(rates), 0.0))


def serve(name: str, file: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Run one contender in its own process, like a user's run, until the pipe closes."""
    contender = matrix_products if name == CEILING else contenders.CONTENDERS[name]
    with contextlib.suppress(EOFError):
        contender(file, args, Turns(pipe))


def flop_per_step(name: str) -> int:
    """Return the FLOP of one step's matrix products and convolutions, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model import build_model

    with FlopCounterMode(display=False) as counter:
        build_model(name)(torch.zeros(BATCH, 3, 32, 32)).sum().backward()
    return counter.get_total_flops()


def profile(file: str, args: argparse.Namespace) -> None:
    """Print the ten most expensive operations of our training step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    learn, _ = contenders.our_epoch(file, args)
    learn()
    kinds = [ProfilerActivity.CPU]
    if args.device != "cpu":
        kinds.append(ProfilerActivity.CUDA)
    with profiler(activities=kinds) as recorded:
        learn()
    device = "cpu" if args.device == "cpu" else "cuda"
    print(recorded.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=10, max_name_column_width=50))


def alternate(names: list[str], file: str, args: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Give each contender its turn in each round, after a warm-up round, and return the answers of each."""
    processes = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        contenders.choose_backend(name)
        pipes[name], theirs = processes.Pipe()
        processes.Process(target=serve, args=(name, file, args, theirs), daemon=True).start()
        theirs.close()
    timings = {name: [] for name in names}
    for round_ in range(args.rounds + 1):
        for name in list(pipes):
            try:
                pipes[name].send(True)
                answer = pipes[name].recv()
            except (EOFError, OSError):
                print(f"{name}: ended with an error, see above; left out", flush=True)
                del pipes[name], timings[name]
                continue
            if round_:
                timings[name].append(answer)
                shown = f"{answer[0] / 1e9:.0f} GFLOP/s" if name == CEILING else f"{sum(answer):.1f} s"
                print(f"round {round_}: {name} {shown}", flush=True)
    for pipe in pipes.values():
        pipe.close()
    return timings


def table(timings: dict, steps: int, flop: int) -> str:
    """Return a Markdown table of the contenders' times: medians and ranges, and ratios computed round by round."""
    ceiling = max(rate for rate, _ in timings[CEILING])
    ours = [sum(parts) for parts in timings[OURS]]
    lines = [
        "| | ms per step | epoch, s | epoch, relative to this project | share of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name, epochs in timings.items():
        if name == CEILING:
            continue
        ratios = [sum(parts) / own for parts, own in zip(epochs, ours, strict=True)]
        step = [training / steps * 1e3 for training, _ in epochs]
        share = flop / (statistics.median(step) / 1e3) / ceiling
        epoch = measuring.spread([sum(parts) for parts in epochs], 1)
        lines.append(
            f"| {name} | {measuring.spread(step, 1)} | {epoch} | {measuring.spread(ratios, 2)} | {share:.2f} |"
        )
    rates = measuring.spread([rate / 1e9 for rate, _ in timings[CEILING]], 0)
    floor = f"{flop / 1e9:.2f} GFLOP a step take {flop / ceiling * 1e3:.1f} ms at the highest of these rates"
    return "\n".join([*lines, "", f"Matrix products: {rates} GFLOP/s; the network's {floor}."])


def picture(timings: dict, title: str, path: Path) -> None:
    """Draw a bar for each contender's fastest epoch, training and validation apart, and a point for each epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    totals = {name: np.sum(epochs, axis=1) for name, epochs in timings.items() if name != CEILING}
    names = sorted(totals, key=lambda name: totals[name].min())
    training, validation = np.array([timings[name][totals[name].argmin()] for name in names]).T
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(names, training, color="tab:blue", label="fastest round: training")
    axes.barh(names, validation, left=training, color="tab:orange", label="fastest round: validation")
    for place, name in enumerate(names):
        label = "each round" if place == 0 else None
        axes.plot(totals[name], [place] * len(totals[name]), "o", color="black", mfc="white", ms=5, label=label)
        shown = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "color": "white"}
        axes.annotate(f"{totals[name].min():.1f} s", (0, place), **shown)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds per epoch; the figures are those of the fastest round")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    import torch

    from cli.parser import Parser, number
    from running import files, machine

    parser = Parser("epoch.py", __doc__)
    measuring.add_flags(parser)
    peers = contenders.PEERS
    parser.add_argument("--rounds", type=number(int, "[1, 1000]"), default=5, help="timed rounds, after a warm-up")
    parser.add_argument("--workers", type=number(int, "[0, 256]"), default=0, help="DataLoader workers")
    parser.add_argument("--only", nargs="+", choices=peers, metavar="PEER", help=f"all or some of: {', '.join(peers)}")
    parser.add_argument("--profile", action="store_true", help="only print our step's ten most expensive operations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the bars in this file")
    args = measuring.parse(parser)
    with measuring.images_of(args, parser) as (file, images):
        if args.profile:
            return profile(file, args)
        names, versions = contenders.installed(args.only or list(peers))
        described = machine.describe(torch.device(args.device))
        versions |= described["versions"]
        packages = ", ".join(f"{package} {version}" for package, version in versions.items())
        where = f"{described['device_name']}, {described['threads']} threads"
        name = f"{args.model}, bfloat16" if args.mixed_precision else args.model
        print(f"{name}, {args.described}, {images:,} training images, batch {BATCH}; {where}")
        print(f"{packages}, {args.workers} DataLoader workers", flush=True)
        timings = alternate([OURS, *names, CEILING], file, args)

    flop = flop_per_step(args.model)
    print("", table(timings, -(-images // BATCH), flop), sep="\n")
    if args.json:
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        figures = {"arguments": arguments, **described, "versions": versions, "flop_per_step": flop, "seconds": timings}
        files.write_json(args.json, figures)
    if args.picture:
        title = f"{name}, {images:,} training images, {where}, {args.rounds} alternating rounds"
        picture(timings, title, args.picture)
    return None


if __name__ == "__main__":
    main()
