"""The contenders: this project and its peers, each training for an epoch at a time on the same images."""

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import sys
from pathlib import Path

from measuring import Turns

# Only the functions that need torch import it, so that Keras's processes do not have two libraries' threads.
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "reference")]

BATCH, L2, RATE = 64, 1e-3, 1e-3
OURS = "this project"


def parts_on(file: str, device: str):
    """Return the training and the validation part, on `device`."""
    import data
    import sources

    arrays = sources.choose(file).load()
    return [part.to(device) for part in data.split_validation(arrays.x_train, arrays.y_train, 0.2)]


def our_epoch(file: str, args: argparse.Namespace):
    """Return a function that trains for an epoch and one that validates, both as train.py does."""
    import torch

    import data
    import train
    from callbacks import make_schedule
    from metrics import Objective
    from model import build_model, parameter_groups
    from optim import Adam
    from options import Options

    training, validation = parts_on(file, args.device)
    model = build_model(args.model).to(args.device, memory_format=torch.channels_last)
    optimizer = Adam(parameter_groups(model, L2), RATE)
    objective = Objective(L2, mixed_precision=args.mixed_precision)
    callbacks = [make_schedule("plateau", optimizer, vars(Options()), epochs=1, steps_per_epoch=1)]
    epochs = itertools.count()

    def learn() -> None:
        augmentation = data.Augmentation(32, 32) if model.augmented else None
        draws = data.draw(len(training), seed=0, epoch=next(epochs), augmentation=augmentation)
        train.train_epoch(model, data.batches(training, BATCH, *draws), objective, optimizer, callbacks)

    return learn, lambda: train.evaluate(model, validation, objective)


def this_project(file: str, args: argparse.Namespace, turns: Turns) -> None:
    import torch

    from running import arithmetic

    with arithmetic.of_run(torch.device(args.device), threads=None, tf32=False, deterministic=False):
        take_turns(file, args, turns)


def take_turns(file: str, args: argparse.Namespace, turns: Turns) -> None:
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
        """Images as `torchvision.datasets.CIFAR10` returns them."""

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
    """Return the network as tutorials write it: NCHW, and ReLU before pooling."""
    from torch import nn

    from model import Network, build_model

    class Tutorial(nn.Sequential, Network):
        """A `Network`, which `parameter_groups` requires."""

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
    # On TensorFlow, `fit` frees an epoch's iterator when the next epoch begins. It then waits for a thread of tf.data
    # that sleeps for twice as long each time, for up to a minute in a process that is kept waiting. So each epoch has a
    # `fit` of its own, and that wait lies between two turns.
    while True:
        model.fit(x_train, y_train, batch_size=BATCH, validation_split=0.2, verbose=0, callbacks=[Clock()])


PEERS = {
    "idiomatic PyTorch": ((), idiomatic),
    "PyTorch Lightning": (("lightning",), pytorch_lightning),
    "Keras on TensorFlow": (("keras", "tensorflow"), keras_notebook),
    "Keras on torch": (("keras",), keras_notebook),
    "Keras on JAX": (("keras", "jax"), keras_notebook),
}
CONTENDERS = {OURS: this_project} | {name: contender for name, (_, contender) in PEERS.items()}


def choose_backend(name: str) -> None:
    """Set KERAS_BACKEND if the contender `name` uses Keras, which reads it when it is imported."""
    if name.startswith("Keras on "):
        os.environ["KERAS_BACKEND"] = name.removeprefix("Keras on ").lower()


def installed(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the peers in `names` that are installed, and the versions of their packages; print the others."""
    present = []
    versions = {}
    wheels = importlib.metadata.packages_distributions()
    for name in names:
        packages, _ = PEERS[name]
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name}: not installed: {', '.join(missing)}; left out")
            continue
        present.append(name)
        for wheel in (wheels[package][0] for package in packages):  # tensorflow's is tensorflow-cpu
            versions[wheel] = importlib.metadata.version(wheel)
    return present, versions
