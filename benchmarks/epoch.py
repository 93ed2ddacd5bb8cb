"""Time whole epochs of this project and of its peers, alternately, on the same images, against the hardware's ceiling.

    python benchmarks/epoch.py --data data/cifar10.npz

An epoch is one pass over the training part and one over the validation part. Each contender has a process of its own
and waits while the others run; on a busy machine only ratios count. Peers that are not installed are named and left
out: `pip install tensorflow-cpu jax lightning` for all of them. The ceiling is the rate of matrix products on the same
threads, taken in its turn in each round.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

# Whoever needs torch imports it: Keras's processes are not to have two libraries' threads.
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "reference")]

BATCH, L2, RATE = 64, 1e-3, 1e-3
PRODUCTS = (512, 1024, 2048)  # sizes of the square matrices, of which the fastest is the ceiling
PEERS = {
    "idiomatic PyTorch": (),
    "PyTorch Lightning": ("lightning",),
    "Keras on TensorFlow": ("keras", "tensorflow"),
    "Keras on torch": ("keras",),
    "Keras on JAX": ("keras", "jax"),
}
OURS, CEILING = "this project", "matrix products"


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


def parts_on(file: str, device: str):
    """Return the training and the validation part."""
    import data

    arrays = data.load(file)
    return [part.to(device) for part in data.split_validation(arrays.x_train, arrays.y_train, 0.2)]


def our_epoch(file: str, args: argparse.Namespace):
    """Return functions that train for an epoch, and validate, as train.py does."""
    import torch

    import data
    import train
    from callbacks import Plateau
    from metrics import Objective
    from model import build_model, parameter_groups
    from optim import Adam

    train.set_up_torch(threads=None, tf32=False, deterministic=False)
    training, validation = parts_on(file, args.device)
    model = build_model(args.model).to(args.device, memory_format=torch.channels_last)
    optimizer = Adam(parameter_groups(model, L2), RATE)
    objective = Objective(L2, mixed_precision=args.mixed_precision)
    schedule = Plateau(optimizer, min_lr=0.0, factor=0.5, patience=3)
    epochs = itertools.count()

    def learn() -> None:
        augmentation = data.Augmentation(32, 32) if model.augmented else None
        draws = data.draw(len(training), seed=0, epoch=next(epochs), augmentation=augmentation)
        train.train_epoch(model, data.batches(training, BATCH, *draws), objective, optimizer, schedule)

    return learn, lambda: train.evaluate(model, validation, objective)


def this_project(file: str, args: argparse.Namespace, turns: Turns) -> None:
    learn, validate = our_epoch(file, args)
    while True:
        turns.begin()
        learn()
        turns.trained()
        validate()
        turns.end()


def loaders(file: str, args: argparse.Namespace):
    """Return torch DataLoaders of the training and the validation part: PIL images through torchvision's transforms."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from model import MODELS

    augment = []
    if MODELS[args.model].augmented:
        augment = [transforms.RandomCrop(32, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]

    class Pictures(Dataset):
        """Images as `torchvision.datasets.CIFAR10` hands them out."""

        def __init__(self, part, transform):
            self.images, self.labels, self.transform = part.images.numpy(), part.labels.tolist(), transform

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int):
            return self.transform(Image.fromarray(self.images[index])), self.labels[index]

    training, validation = parts_on(file, "cpu")
    first = transforms.Compose([*augment, transforms.ToTensor()])
    return (
        DataLoader(Pictures(training, first), BATCH, shuffle=True, num_workers=args.workers),
        DataLoader(Pictures(validation, transforms.ToTensor()), BATCH, num_workers=args.workers),
    )


def tutorial_network(name: str):
    """Return the network as a tutorial writes it: NCHW, ReLU then pool."""
    from torch import nn

    from model import Network, build_model

    class Tutorial(nn.Sequential, Network):
        """What parameter_groups asks of a network."""

    if name != "baseline":
        return build_model(name)
    return Tutorial(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


def idiomatic(file: str, args: argparse.Namespace, turns: Turns) -> None:
    """Train as tutorials do: DataLoader, `loss.item()` in each step, torch's own Adam."""
    import torch
    import torch.nn.functional as F

    from model import parameter_groups

    model = tutorial_network(args.model).to(args.device)
    optimizer = torch.optim.Adam(parameter_groups(model, L2), lr=RATE)
    training, validation = loaders(file, args)

    def pass_over(loader, learning: bool) -> None:
        model.train(learning)
        loss_sum = correct = 0
        with torch.set_grad_enabled(learning):
            for images, labels in loader:
                images, labels = images.to(args.device), labels.to(args.device)
                with torch.autocast(args.device, torch.bfloat16, enabled=args.mixed_precision):
                    logits = model(images)
                loss = F.cross_entropy(logits, labels)
                if learning:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                loss_sum += loss.item() * len(labels)
                correct += (logits.argmax(1) == labels).sum().item()

    while True:
        turns.begin()
        pass_over(training, True)
        turns.trained()
        pass_over(validation, False)
        turns.end()


def pytorch_lightning(file: str, args: argparse.Namespace, turns: Turns) -> None:
    import lightning
    import torch
    import torch.nn.functional as F

    from model import parameter_groups

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = tutorial_network(args.model)

        def training_step(self, batch, index):
            return self.figures("", *batch)

        def validation_step(self, batch, index):
            self.figures("val_", *batch)

        def figures(self, prefix: str, images, labels):
            logits = self.network(images)
            loss = F.cross_entropy(logits, labels)
            accuracy = (logits.argmax(1) == labels).float().mean()
            self.log_dict({f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(parameter_groups(self.network, L2), lr=RATE)

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, *_):
            turns.begin()

        def on_validation_start(self, *_):
            turns.trained()

        def on_train_epoch_end(self, *_):
            turns.end()

    settings = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings |= {"accelerator": "cpu" if args.device == "cpu" else "gpu", "devices": 1, "num_sanity_val_steps": 0}
    if args.mixed_precision:
        settings["precision"] = "bf16-mixed"
    trainer = lightning.Trainer(max_epochs=-1, callbacks=[Clock()], **settings)
    trainer.fit(Module(), *loaders(file, args))


def keras_notebook(file: str, args: argparse.Namespace, turns: Turns) -> None:
    """Train as the notebook does, on the backend that KERAS_BACKEND names; without augmentation."""
    import keras
    import notebook

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, *_):
            turns.begin()

        def on_test_begin(self, *_):
            turns.trained()

        def on_epoch_end(self, *_):
            turns.end()

    if args.mixed_precision:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    x_train, y_train, *_ = notebook.prepare(*notebook.load_data(file))
    model = notebook.MODELS[args.model]()
    notebook.compile_model(model)
    model.fit(x_train, y_train, batch_size=BATCH, validation_split=0.2, epochs=10**6, verbose=0, callbacks=[Clock()])


def matrix_products(file: str, args: argparse.Namespace, turns: Turns) -> None:
    """Tell how many FLOP a second products of float32 (or bfloat16) matrices reach, in place of times."""
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


def serve(contender, file: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Be one contender, in a process of its own as a user's run is, until the pipe closes."""
    with contextlib.suppress(EOFError):
        contender(file, args, Turns(pipe))


def flop_per_step(name: str) -> int:
    """Count the additions and multiplications of one step's products and convolutions, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model import build_model

    with FlopCounterMode(display=False) as counter:
        build_model(name)(torch.zeros(BATCH, 3, 32, 32)).sum().backward()
    return counter.get_total_flops()


def profile(file: str, args: argparse.Namespace) -> None:
    """Print the ten costliest operations of our training step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    learn, _ = our_epoch(file, args)
    learn()
    kinds = [ProfilerActivity.CPU]
    if args.device != "cpu":
        kinds.append(ProfilerActivity.CUDA)
    with profiler(activities=kinds) as recorded:
        learn()
    device = "cpu" if args.device == "cpu" else "cuda"
    print(recorded.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=10, max_name_column_width=50))


def choose_backend(name: str) -> None:
    """Let the contender `name`, if it is a Keras, find its backend: KERAS_BACKEND is read when keras is imported."""
    if name.startswith("Keras on "):
        os.environ["KERAS_BACKEND"] = name.removeprefix("Keras on ").lower()


def alternate(contenders: dict, file: str, args: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Let each contender have its turn in each round, after one to warm up; return what each told."""
    processes, pipes = multiprocessing.get_context("spawn"), {}
    for name, contender in contenders.items():
        choose_backend(name)
        pipes[name], theirs = processes.Pipe()
        processes.Process(target=serve, args=(contender, file, args, theirs), daemon=True).start()
        theirs.close()
    told = {name: [] for name in contenders}
    for round_ in range(args.rounds + 1):
        for name in list(pipes):
            try:
                pipes[name].send(True)
                answer = pipes[name].recv()
            except (EOFError, OSError):
                print(f"{name}: ended with an error, see above; left out", flush=True)
                del pipes[name], told[name]
                continue
            if round_:
                told[name].append(answer)
                shown = f"{answer[0] / 1e9:.0f} GFLOP/s" if name == CEILING else f"{sum(answer):.1f} s"
                print(f"round {round_}: {name} {shown}", flush=True)
    for pipe in pipes.values():
        pipe.close()
    return told


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(told: dict, steps: int, flop: int) -> str:
    """Say what each contender took: medians and ranges, and the ratios of rounds."""
    ceiling = statistics.median(rate for rate, _ in told[CEILING])
    ours = [sum(parts) for parts in told[OURS]]
    lines = [
        "| | ms per step | epoch, s | times as long as this project | share of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name, epochs in told.items():
        if name == CEILING:
            continue
        ratios = [sum(parts) / own for parts, own in zip(epochs, ours, strict=True)]
        step = [training / steps * 1e3 for training, _ in epochs]
        share = flop / (statistics.median(step) / 1e3) / ceiling
        epoch = spread([sum(parts) for parts in epochs], 1)
        lines.append(f"| {name} | {spread(step, 1)} | {epoch} | {spread(ratios, 2)} | {share:.2f} |")
    rates = spread([rate / 1e9 for rate, _ in told[CEILING]], 0)
    floor = f"{flop / 1e9:.2f} GFLOP a step take {flop / ceiling * 1e3:.1f} ms at that rate"
    return "\n".join([*lines, "", f"Matrix products: {rates} GFLOP/s; the network's {floor}."])


def picture(told: dict, title: str, path: Path) -> None:
    """Draw a bar for each contender's median epoch, with its range, validation apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted((name for name in told if name != CEILING), key=lambda name: np.median(np.sum(told[name], 1)))
    training, validation = (np.array([np.median(np.array(told[name])[:, part]) for name in names]) for part in (0, 1))
    totals = [np.sum(told[name], 1) for name in names]
    middle = np.array([np.median(total) for total in totals])
    reach = np.abs(np.array([(total.min(), total.max()) for total in totals]).T - middle)
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(names, training, color="tab:blue", label="training")
    axes.barh(names, validation, left=training, color="tab:orange", label="validation")
    axes.errorbar(middle, names, xerr=reach, fmt="none", ecolor="black", capsize=3, label="median and range")
    for name, value, high in zip(names, middle, middle + reach[1], strict=True):
        axes.annotate(
            f"{value:.1f} s", (max(value, high), name), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds per epoch")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    import torch

    import data
    from harness import environment, files
    from harness.console import Parser, number
    from harness.errors import BadInput, Unavailable

    whole = number(int, "[1, 1000000]")
    parser = Parser(prog="epoch.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic", help="as for train.py")
    parser.add_argument("--model", choices=("baseline", "improved"), default="baseline", help="network")
    parser.add_argument("--device", type=environment.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 for all of them")
    parser.add_argument("--rounds", type=whole, default=5, help="timed rounds, after one to warm up")
    parser.add_argument("--images", type=whole, help="so many training images at most, validation's among them")
    parser.add_argument("--workers", type=number(int, "[0, 256]"), default=0, help="the DataLoaders'")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="PEER", help=f"of: {', '.join(PEERS)}; None: all")
    parser.add_argument("--profile", action="store_true", help="print the ten costliest operations of our step instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the bars there")
    args = parser.parse_args()
    args.device = str(args.device)
    try:
        arrays = data.load(args.data)
        arrays = arrays._replace(x_train=arrays.x_train[: args.images], y_train=arrays.y_train[: args.images])
        training, _ = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
    except (BadInput, Unavailable) as error:
        parser.error(str(error))
    steps = -(-len(training) // BATCH)
    machine = environment.describe(torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/images.npz"
        np.savez(file, **arrays._asdict())
        if args.profile:
            return profile(file, args)

        contenders = {OURS: this_project}
        peers = {
            "idiomatic PyTorch": idiomatic,
            "PyTorch Lightning": pytorch_lightning,
            **{name: keras_notebook for name in PEERS if name.startswith("Keras")},
        }
        versions, installed = {}, importlib.metadata.packages_distributions()
        for name in args.only or PEERS:
            missing = [package for package in PEERS[name] if importlib.util.find_spec(package) is None]
            if missing:
                print(f"{name}: not installed: {', '.join(missing)}; left out")
            else:
                contenders[name] = peers[name]
                wheels = {package: installed[package][0] for package in PEERS[name]}  # tensorflow's is tensorflow-cpu
                versions |= {wheel: importlib.metadata.version(wheel) for wheel in wheels.values()}
        contenders[CEILING] = matrix_products
        versions |= machine["versions"]
        said = ", ".join(f"{package} {version}" for package, version in versions.items())
        where = f"{machine['device_name']}, {machine['threads']} threads"
        name = f"{args.model}, bfloat16" if args.mixed_precision else args.model
        print(f"{name}, {data.describe(args.data)}, {len(training):,} training images, batch {BATCH}; {where}")
        print(f"{said}, {args.workers} DataLoader workers", flush=True)
        told = alternate(contenders, file, args)

    flop = flop_per_step(args.model)
    print("", table(told, steps, flop), sep="\n")
    if args.json:
        figures = {"arguments": vars(args) | {"json": str(args.json), "picture": str(args.picture)}, **machine}
        files.write_json(args.json, figures | {"versions": versions, "flop_per_step": flop, "seconds": told})
    if args.picture:
        title = f"{name}, {len(training):,} training images, {where}, {args.rounds} alternating rounds"
        picture(told, title, args.picture)
    return None


if __name__ == "__main__":
    main()
