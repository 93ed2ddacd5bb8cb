"""Time whole epochs of this project and of an idiomatic PyTorch loop, alternately, on the same images.

    python benchmarks/epoch.py --data data/cifar10.npz

An epoch is one pass over the training part and one over the validation part. Each contender has a process of its own
and waits while the other runs; on a busy machine only the ratio counts.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import train
from model import build_model, parameter_groups
from optim import Adam

BATCH, L2 = 64, 1e-3


def this_project(training: data.Split, validation: data.Split, device: torch.device, workers: int):
    """Return a function that runs one epoch as train.py does."""
    train.prepare_cpu()
    model = build_model().to(device, memory_format=torch.channels_last)
    optimizer = Adam(parameter_groups(model, L2), lr=1e-3)
    training, validation = training.to(device), validation.to(device)

    def epoch() -> None:
        order = torch.randperm(len(training)).to(device)
        train.train_epoch(model, optimizer, training, order, BATCH, train.Objective(L2), train.tqdm(disable=True))
        train.evaluate(model, validation, train.Objective(L2))

    return epoch


class Pictures(torch.utils.data.Dataset):
    """Images as `torchvision.datasets.CIFAR10` hands them out: one PIL image at a time through a transform."""

    def __init__(self, part: data.Split):
        self.images, self.labels, self.transform = part.images.numpy(), part.labels.tolist(), ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def idiomatic(training: data.Split, validation: data.Split, device: torch.device, workers: int):
    """Return a function that runs one epoch as tutorials do: DataLoader, NCHW, ReLU then pool, torch's own Adam."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(parameter_groups(model, L2), lr=1e-3)
    loaders = [
        DataLoader(Pictures(part), BATCH, shuffle=part is training, num_workers=workers)
        for part in (training, validation)
    ]

    def epoch() -> None:
        for loader in loaders:
            learning = loader is loaders[0]
            model.train(learning)
            loss_sum = correct = 0
            with torch.set_grad_enabled(learning):
                for images, labels in loader:
                    images, labels = images.to(device), labels.to(device)
                    logits = model(images)
                    loss = F.cross_entropy(logits, labels)
                    if learning:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    loss_sum += loss.item() * len(labels)
                    correct += (logits.argmax(1) == labels).sum().item()

    return epoch


CONTENDERS = {"this project": this_project, "idiomatic PyTorch": idiomatic}


def serve(name: str, pipe: Connection, args: argparse.Namespace) -> None:
    """In a process of its own, as a user's run is: time one epoch for each request, until the pipe closes."""
    arrays = data.load(args.data)
    parts = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
    epoch = CONTENDERS[name](*parts, args.device, args.workers)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            started = time.perf_counter()
            epoch()
            pipe.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="as for train.py (default: %(default)s)")
    parser.add_argument("--device", type=train.device_type, default="cpu", help="as for train.py (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up (default: 5)")
    parser.add_argument("--workers", type=int, default=0, help="the DataLoader's (default: 0)")
    args = parser.parse_args()
    print(f"{data.describe(args.data)}, batch {BATCH}, {args.device}, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads, {args.workers} DataLoader workers", flush=True)

    processes = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], theirs = processes.Pipe()
        processes.Process(target=serve, args=(name, theirs, args)).start()
        theirs.close()
    seconds = {name: [] for name in CONTENDERS}
    for round_ in range(args.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            if round_:
                seconds[name].append(taken)
                print(f"round {round_}: {name} {taken:.1f} s", flush=True)
    for pipe in pipes.values():
        pipe.close()

    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.1f} s an epoch ({min(values):.1f} to {max(values):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
