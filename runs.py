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

import numpy as np
import torch

CONFIG, HISTORY, METRICS, WEIGHTS, CURVES = "config.json", "history.csv", "metrics.json", "best.pt", "curves.png"
INITIAL_WEIGHTS, BEST_WEIGHTS = "initial_weights.npz", "best_weights.npz"  # as Keras's get_weights() orders them
FILES = (CONFIG, HISTORY, METRICS, WEIGHTS, INITIAL_WEIGHTS, BEST_WEIGHTS, CURVES)
PACKAGES = ("torchvision", "numpy", "matplotlib", "tqdm")
EARLY_STOPPING, ALL_EPOCHS = "early stopping", "all epochs used"


class RunError(ValueError):
    """The run's directory cannot be used; the message names it and the ways on."""


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
