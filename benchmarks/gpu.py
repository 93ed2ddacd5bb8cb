"""Measure a GPU in one command: the time of an epoch in several variants, and how many runs fit.

    python benchmarks/gpu.py gpu.json
    python benchmarks/gpu.py gpu.json --data data/cifar10.npz
    python benchmarks/gpu.py toy.json --toy --device cpu

Each part writes its results to the file when it ends, so that they are kept if a later part is cut off. Parts that
are expected to exceed --seconds are left out. Images are random; with --data, the last part trains on real ones.
"""

import contextlib
import io
import itertools
import json
import multiprocessing
import queue
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

import data
import sources
import train
from callbacks import make_schedule
from cli.command import command
from cli.errors import BadInput
from cli.parser import Parser, number
from metrics import Objective
from model import parameter_groups
from optim import OPTIMIZERS
from options import Options, parse
from running import arithmetic, files, machine
from running.directory import Run
from sources.source import Arrays

VARIANTS = {  # of the baseline, with options of train.py; `Training` makes the changes that are not options
    "as it is": [],
    "NCHW": [],
    "cudnn.benchmark": [],
    "TF32": ["--tf32"],
    "bfloat16": ["--mixed-precision"],
    "batches of 256": ["--batch-size", "256"],
    "batches of 1,024": ["--batch-size", "1024"],
}
RECIPES = {"baseline": [], "improved": ["--model", "improved"], "fast": ["--recipe", "fast"]}


class Size:
    """How much is measured: the full size, or just enough to show that each part runs."""

    def __init__(self, toy: bool, device: torch.device):
        self.device, self.toy = device, toy
        self.images, self.epochs, self.steps = (128, 1, 2) if toy else (50_000, 3, 50)
        self.beside, self.seconds = ([1, 2], 0.2) if toy else ([1, 2, 4, 8, 16], 3.0)


def random_images(count: int) -> Arrays:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % 10
    few = max(10, count // 5)
    return Arrays(images, labels, images[:few], labels[:few], tuple("0123456789"))


class Training:
    """Training on random images, with options of train.py, one epoch at a time."""

    def __init__(self, flags: list[str], size: Size, variant: str = ""):
        self.options = parse(["--device", str(size.device), *flags]).checked()
        self.arrays = random_images(size.images)
        self.model = train.initial_network(self.options, self.arrays, None)
        if variant == "NCHW":
            self.model.to(memory_format=torch.contiguous_format)
        parts = data.split_validation(self.arrays.x_train, self.arrays.y_train, 0.2)
        self.training, self.validation = (part.to(size.device) for part in parts)
        self.model.prepare(self.training.images)
        groups = parameter_groups(self.model, self.options.l2, self.options.weight_decay)
        self.optimizer = OPTIMIZERS[self.options.optimizer](groups, lr=self.options.lr)
        self.optimizer.mixed_precision = self.options.mixed_precision
        self.steps = -(-len(self.training) // self.options.batch_size)
        settings = vars(self.options)
        self.schedule = make_schedule(self.options.schedule, self.optimizer, settings, 99, self.steps)
        self.objective = Objective(self.options.l2, self.options.label_smoothing, self.options.mixed_precision)
        if variant == "NCHW":
            self.objective = in_nchw(self.objective)
        if variant == "cudnn.benchmark":
            torch.backends.cudnn.benchmark = True
        self.network = self.model
        self.epochs = 0

    def batches(self):
        augmentation = train.augmentation_of(self.options, self.arrays)
        order, views = data.draw(len(self.training), 0, self.epochs, True, augmentation)
        self.epochs += 1
        return data.batches(self.training, self.options.batch_size, order, views)

    def train(self, batches=None) -> float:
        """Train on `batches` (None: an epoch, its draws included), and return the seconds that this took."""
        synchronize(self.options.device)
        start = time.perf_counter()
        batches = self.batches() if batches is None else batches
        train.train_epoch(self.network, batches, self.objective, self.optimizer, [self.schedule])
        synchronize(self.options.device)
        return time.perf_counter() - start

    def validate(self) -> float:
        start = time.perf_counter()
        train.evaluate(self.model, self.validation, self.objective)
        return time.perf_counter() - start


def in_nchw(objective: Objective) -> Objective:
    class Nchw(Objective):
        def __call__(self, network, batch, mirrored=False):
            return super().__call__(network, batch._replace(images=batch.images.contiguous()), mirrored)

    return Nchw(*objective)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def arithmetic_of(flags: list[str], size: Size):
    with arithmetic.of_run(size.device, None, "--tf32" in flags, "--deterministic" in flags):
        yield


def timed(flags: list[str], size: Size, variant: str = "") -> dict:
    """Return the median seconds of the parts of an epoch, after a warm-up epoch."""
    with arithmetic_of(flags, size):
        training = Training(flags, size, variant)
        rounds = [(training.train(), training.validate()) for _ in range(size.epochs + 1)]
    trained, validated = zip(*rounds[1:], strict=True)
    return {
        "training": statistics.median(trained),
        "validation": statistics.median(validated),
        "first": sum(rounds[0]),
        "images per second": len(training.training) / statistics.median(trained),
    }


# --- the parts --------------------------------------------------------------------------------------------------------


def of_the_machine(size: Size, _: str | None) -> dict:
    compilers = {name: shutil.which(name) for name in ("gcc", "g++")}
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    of_gpu = {}
    if size.device.type == "cuda":
        properties = torch.cuda.get_device_properties(size.device)
        of_gpu = {"capability": f"{properties.major}.{properties.minor}", "memory": properties.total_memory}
    return machine.describe(size.device) | of_gpu | compilers | {"Python.h": header.exists(), "cores": machine.cores()}


def of_the_tests(size: Size, _: str | None) -> dict:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-m", "cuda", "tests/test_cuda.py"]
    command += ["--collect-only"] if size.toy else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()[-15:]
    return {"exit code": done.returncode, "said": lines} | ({"failed": "see said"} if done.returncode else {})


def of_waits(size: Size, _: str | None) -> dict:
    """Train for a few steps of each recipe; on CUDA, anything that waits for the GPU raises an error."""
    steps = {}
    for name, flags in RECIPES.items():
        with arithmetic_of(flags, size):
            training = Training(flags, size)
            training.train(itertools.islice(training.batches(), 2))
            some = [*itertools.islice(training.batches(), size.steps)]
            network, objective, optimizer = training.network, training.objective, training.optimizer
            if size.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                tally = train.Tally(training.model, objective.l2)
                for batch in some:  # fewer than the hundred after which the tally reads the loss
                    logits, loss = objective(network, batch)
                    if size.device.type == "cuda":
                        tally.add(logits, loss, batch.labels)
                    optimizer.zero_grad()
                    (loss / batch.size).backward()
                    optimizer.step()
                    training.schedule.after_step()
            finally:
                if size.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            steps[name] = len(some)
    return {"steps without a wait": steps}


def of_the_baseline(size: Size, _: str | None) -> dict:
    return {name: timed(flags, size, name) for name, flags in VARIANTS.items()}


def of_files(size: Size, _: str | None) -> dict:
    """Train a whole run, and return its seconds, those of each epoch, and those of writing an epoch's files."""
    spent = []
    keep = Run.keep

    def keeping(*args):
        start = time.perf_counter()
        keep(*args)
        spent.append(time.perf_counter() - start)

    Run.keep = keeping
    try:
        with TemporaryDirectory() as folder:
            own = Options(
                data="synthetic", epochs=size.epochs, device=str(size.device), out=f"{folder}/run", quiet=True
            )
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                _, history = train.train(own)
            whole = time.perf_counter() - start
    finally:
        Run.keep = keep
    return {"whole": whole, "epochs": history.seconds, "files of an epoch": statistics.median(spent)}


def of_compile(size: Size, _: str | None) -> dict:
    results = {}
    for name, mode in {"default": None, "reduce-overhead": "reduce-overhead"}.items():
        flags = ["--compile"]
        try:
            with arithmetic_of(flags, size):
                training = Training(flags, size)
                how = {"backend": "eager"} if size.toy else {"mode": mode}
                training.network = torch.compile(training.model, dynamic=False, **how)
                seconds = [training.train() for _ in range(size.epochs + 1)]
        except BadInput as error:
            return {"left out": str(error)}
        results[name] = {"compiling": seconds[0], "training": statistics.median(seconds[1:])}
    return results


def of_others(size: Size, _: str | None) -> dict:
    return {name: timed(flags, size) for name, flags in RECIPES.items() if name != "baseline"}


def of_the_profile(size: Size, _: str | None) -> dict:
    """Return the seconds of 20 steps and of their kernels, the launches per step, and the costliest kernels."""
    steps = min(20, size.steps)
    activity = torch.profiler.ProfilerActivity
    wanted = [activity.CPU, activity.CUDA] if size.device.type == "cuda" else [activity.CPU]
    with arithmetic_of([], size):
        training = Training([], size)
        training.train(itertools.islice(training.batches(), 2))
        batches = training.batches()
        with torch.profiler.profile(activities=wanted) as profile:
            wall = training.train(itertools.islice(batches, steps))
    events = profile.key_averages()
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_gpu if not event.is_user_annotation]  # which span kernels
    shown = sorted(kernels or events, key=lambda event: -(event.self_device_time_total or event.self_cpu_time_total))
    return {
        "wall": wall,
        "kernels": sum(event.self_device_time_total for event in kernels) / 1e6,
        "launches a step": sum(event.count for event in kernels) / steps,
        "costliest": [[event.key[:80], event.count] for event in shown[:10]],
    }


def beside_others(size: Size, barrier, figures) -> None:
    """Train as one of several concurrent runs until the time is up, and send its images per second and memory."""
    torch.set_num_threads(1)
    with arithmetic.of_run(size.device, 1, False, False):
        training = Training([], size)
        training.train(itertools.islice(training.batches(), 5))
        barrier.wait()
        start = time.perf_counter()
        images = 0
        while time.perf_counter() - start < size.seconds:
            some = [*itertools.islice(training.batches(), size.steps)]
            training.train(some)
            images += sum(batch.size for batch in some)
        seconds = time.perf_counter() - start
    memory = torch.cuda.max_memory_reserved(size.device) if size.device.type == "cuda" else 0
    figures.put((images / seconds, memory))


def of_side_by_side(size: Size, _: str | None) -> dict:
    context = multiprocessing.get_context("spawn")
    results = {}
    for count in size.beside:
        barrier = context.Barrier(count, timeout=60)
        figures = context.Queue()
        processes = [context.Process(target=beside_others, args=(size, barrier, figures)) for _ in range(count)]
        try:
            for process in processes:
                process.start()
            rates, memory = zip(*(figures.get(timeout=90) for _ in processes), strict=True)
            results[f"{count} runs"] = {"images per second": sum(rates), "memory of a run": max(memory)}
        except queue.Empty:
            return results | {"failed": f"{count} runs: one of them did not answer within 90 s, see its error above"}
        finally:
            for process in processes:
                process.kill()
                process.join()
    return results


def of_real_images(size: Size, images: str | None) -> dict:
    """Train `fast`, and the baseline twice with --deterministic, which should give bit-identical weights."""
    if images is None:
        return {"left out": "no --data"}
    weights = []
    common = {"data": images, "device": str(size.device), "quiet": True}
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        fewer = {"epochs": size.epochs} if size.toy else {}
        start = time.perf_counter()
        metrics, history = train.train(Options(recipe="fast", out=f"{folder}/fast", **common, **fewer))
        seconds = time.perf_counter() - start
        for name in ("a", "b"):
            train.train(Options(deterministic=True, epochs=1, out=f"{folder}/{name}", **common))
            weights.append((Path(folder) / name / "best_weights.npz").read_bytes())
    return {
        "fast": {name: metrics[name] for name in ("test_accuracy", "test_accuracy_mirrored")}
        | {"seconds": seconds, "training": sum(history.seconds)},
        "deterministic: the same bits": weights[0] == weights[1],
    }


# Each part, and the seconds that it is expected to take.
PARTS: dict[str, tuple[Callable[[Size, str | None], dict], int]] = {
    "machine": (of_the_machine, 5),
    "waits": (of_waits, 5),
    "baseline": (of_the_baseline, 45),
    "files": (of_files, 5),
    "others": (of_others, 10),
    "profile": (of_the_profile, 5),
    "side by side": (of_side_by_side, 45),
    "tests": (of_the_tests, 55),
    "compile": (of_compile, 35),
    "real images": (of_real_images, 20),
}


@command("gpu.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = Parser("gpu.py", __doc__)
    parser.add_argument("file", type=Path, help="output file (JSON)")
    parser.add_argument("--data", help="real images, an .npz file")
    parser.add_argument("--device", type=machine.device, default="cuda", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--seconds",
        type=number(float, "(0, 100000]"),
        default=235,
        help="time budget; parts that would exceed it are left out",
    )
    parser.add_argument("--toy", action="store_true", help="smoke test: run each part at its smallest size")
    args = parser.parse_args(argv)
    size = Size(args.toy, args.device)
    figures = {}
    start = time.perf_counter()
    if args.data is not None:
        sources.choose(args.data).load()  # refuse bad data now, not after four minutes
    files.write_json(args.file, figures)  # and a file that cannot be written
    for name, (part, expected) in PARTS.items():
        began = time.perf_counter()
        if began - start + expected > args.seconds:
            figures[name] = {"left out": f"it takes some {expected} s, and {args.seconds:g} s are the limit"}
        else:
            try:
                figures[name] = part(size, args.data)
            except Exception as error:  # the other parts are still measured
                figures[name] = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        figures[name]["seconds of this part"] = time.perf_counter() - began
        files.write_json(args.file, figures)
        print(f"{name}: {json.dumps(figures[name])}"[:2000], flush=True)
    return int(any("failed" in of_part for of_part in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
