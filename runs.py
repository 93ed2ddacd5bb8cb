"""A run's directory: its files, each written whole or not at all, and what they say in words."""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

CONFIG, HISTORY, METRICS, WEIGHTS, CURVES = "config.json", "history.csv", "metrics.json", "best.pt", "curves.png"
INITIAL_WEIGHTS, BEST_WEIGHTS = "initial_weights.npz", "best_weights.npz"  # as Keras's get_weights() orders them
FILES = (CONFIG, HISTORY, METRICS, WEIGHTS, INITIAL_WEIGHTS, BEST_WEIGHTS, CURVES)
PACKAGES = ("torchvision", "numpy", "matplotlib", "tqdm")
EARLY_STOPPING, ALL_EPOCHS = "early stopping", "all epochs used"


class RunError(ValueError):
    """The run's directory cannot be used; the message names it and the ways on."""


class Run(NamedTuple):
    """A finished or unfinished run as read back: its path, one list per column of its history, its metrics."""

    path: str
    history: dict[str, list[float]]
    metrics: dict


def check_free(out: Path) -> None:
    """Raise RunError unless a new run can be written to `out`; touches nothing."""
    taken = [name for name in FILES if (out / name).exists()]
    if taken:
        raise RunError(
            f"--out {out}: already holds a run ({', '.join(taken)}); "
            "pass another --out, another --seed, or delete that folder first"
        )
    ancestor = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not ancestor.is_dir():
        raise RunError(f"--out {out}: {ancestor} is a file, not a folder; pass another --out")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise RunError(f"--out {out}: no permission to write in {ancestor}; pass another --out")


def create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {out}: cannot make that folder ({error.strerror}); pass another --out") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: dict) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a state dict on the CPU in plain layout: `torch.load(path, weights_only=True)` reads it anywhere."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, buffer)
    write_bytes(path, buffer.getvalue())


def write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Write `arrays` as `np.savez(path, *arrays)` does."""
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    write_bytes(path, buffer.getvalue())


def fingerprint(arrays: list[np.ndarray]) -> str:
    """SHA-256 of the values as float64, so that float32 and float64 runs from the same weights have the same one."""
    return hashlib.sha256(b"".join(array.astype("<f8").tobytes() for array in arrays)).hexdigest()


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write one row per epoch, byte for byte as `keras.callbacks.CSVLogger` does."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["epoch", *sorted(history[0])])
    writer.writeheader()
    writer.writerows({"epoch": epoch, **logs} for epoch, logs in enumerate(history))
    write_bytes(path, buffer.getvalue().encode())


def read(path: Path) -> Run:
    """Read a run's directory, a bare history.csv, or a Keras `history.history` saved as JSON; metrics may be empty.

    Keras 2's `lr` is read as `learning_rate`. Raises RunError naming what is wrong.
    """
    if path.is_dir():
        metrics_file = path / METRICS
        metrics = _read_json(metrics_file) if metrics_file.exists() else {}
        return Run(str(path), _read_history(path / HISTORY), metrics)
    return Run(str(path), _read_history(path), {})


def _read_history(path: Path) -> dict[str, list[float]]:
    if path.suffix == ".json":
        columns = _read_json(path)
    else:
        rows = list(csv.reader(io.StringIO(_read_text(path), newline="")))
        header = rows[0] if rows else []
        if any(len(row) != len(header) for row in rows):
            raise RunError(f"{path}: its rows differ in length; pass a history.csv as CSVLogger writes it")
        columns = {name: [row[number] for row in rows[1:]] for number, name in enumerate(header)}
    columns = {"learning_rate" if name == "lr" else name: values for name, values in columns.items()}
    if "loss" not in columns:
        raise RunError(f"{path}: no column 'loss' in it; pass a history.csv, or history.history saved as JSON")
    history = {}
    for name, values in columns.items():
        try:
            history[name] = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: column {name!r} is not all numbers ({error}); pass a training history") from None
    if not history["loss"] or len({len(values) for values in history.values()}) > 1:
        raise RunError(f"{path}: it needs one row or more, and as many values in each column; pass a training history")
    return history


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); delete or replace it") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: a JSON {type(value).__name__}; it must be an object with names and values")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); pass a run's directory or its history") from None
    except UnicodeDecodeError:
        raise RunError(f"{path}: not a text file; pass a run's directory or its history") from None


def environment(device: torch.device) -> dict:
    """What besides the flags decides a run's bits: device, threads, versions, git commit (None outside git)."""
    try:
        describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
        here = Path(__file__).parent
        commit = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES}
        | {"torch": torch.__version__},  # with the build: +cpu, +cu130
        "git_commit": commit,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def learning_rate_cuts(history: list[dict[str, float]], learning_rates: list[float]) -> list[dict]:
    """The cuts as `[{"epoch": from 1, "learning_rate": after the cut}]`."""
    return [
        {"epoch": epoch, "learning_rate": after}
        for epoch, (logs, after) in enumerate(zip(history, learning_rates, strict=True), start=1)
        if after != logs["learning_rate"]
    ]


def reading(history: list[dict[str, float]], metrics: dict, max_epochs: int) -> str:
    """Say in a few lines what the curves of a finished run show; epochs count from 1."""
    best_epoch, epochs = metrics["best_epoch"], len(history)
    lines = ["Accuracy          training  validation"]
    for name, epoch in (("first", 1), ("best", best_epoch), ("last", epochs)):
        logs = history[epoch - 1]
        lines.append(f"  {f'{name} epoch {epoch}':<16}{logs['accuracy']:>8.4f}{logs['val_accuracy']:>12.4f}")
    best = history[best_epoch - 1]
    gap = 100 * (best["accuracy"] - best["val_accuracy"])
    lines.append(
        f"At the best epoch training accuracy is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} validation."
    )
    cuts = metrics["learning_rate_cuts"]
    if cuts:
        said = ", ".join(f"to {cut['learning_rate']:.4g} after epoch {cut['epoch']}" for cut in cuts)
        lines.append(f"Learning rate cut {said}.")
    else:
        lines.append("The learning rate was never cut.")
    if best_epoch < epochs:
        lines.append(f"Validation loss has not improved since epoch {best_epoch} ({best['val_loss']:.4f}).")
    else:
        lines.append(f"Validation loss was still improving in the last epoch ({best['val_loss']:.4f}).")
    lines.append(f"Training ended after epoch {epochs} of {max_epochs}: {metrics['stopped']}.")
    return "\n".join(lines)
