"""A run's directory: its files, each written whole or not at all, and what they say in words."""

import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pickle
import platform
import socket
import subprocess
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

CONFIG, HISTORY, METRICS, WEIGHTS, CURVES = "config.json", "history.csv", "metrics.json", "best.pt", "curves.png"
CONFUSION = "confusion.png"
INITIAL_WEIGHTS, BEST_WEIGHTS = "initial_weights.npz", "best_weights.npz"  # as Keras's get_weights() orders them
CHECKPOINT, ERROR, LOCK = "checkpoint.pt", "error.txt", ".lock"
FILES = (CONFIG, HISTORY, METRICS, WEIGHTS, INITIAL_WEIGHTS, BEST_WEIGHTS, CURVES, CONFUSION, CHECKPOINT, ERROR)
CHECKPOINT_FORMAT = 3
# Flags that a resumed run may change: they move no figure, or are looked at apart.
FREE_FLAGS = {"epochs", "recipe", "data", "device", "threads", "out", "quiet", "json", "resume"}
PACKAGES = ("torchvision", "numpy", "matplotlib", "tqdm")
EARLY_STOPPING, ALL_EPOCHS = "early stopping", "all epochs used"


class RunError(ValueError):
    """The run's directory cannot be used; the message names it and the ways on."""


class WriteError(OSError):
    """A file could not be written; what stood in its place still stands."""


class Run(NamedTuple):
    """A finished or unfinished run as read back: its path, one list per column of its history, its metrics."""

    path: str
    history: dict[str, list[float]]
    metrics: dict


def check(out: Path, flags: dict, resume: bool, data_sha256: str | None = None, own: bool = False) -> dict | None:
    """Raise RunError unless a run with `flags` can start, or resume, in `out`; return its metrics if it has finished.

    Touches nothing. `data_sha256` is None as long as the data are not read; `own` tells that this process has the lock.
    """
    try:
        ancestor = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
        holder = None if own else _holder(out / LOCK)
        taken = [name for name in FILES if (out / name).exists()]
    except OSError as error:
        raise RunError(f"--out {out}: cannot be looked at ({error.strerror}); pass another --out") from None
    if not ancestor.is_dir():
        raise RunError(f"--out {out}: {ancestor} is a file, not a folder; pass another --out")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise RunError(f"--out {out}: no permission to write in {ancestor}; pass another --out")
    if holder is not None:
        raise RunError(_in_use(out, holder))
    if not taken:
        return None
    if not resume:
        raise RunError(
            f"--out {out}: already holds a run ({', '.join(taken)}); "
            "go on with it by --resume, pass another --out or --seed, or delete that folder first"
        )
    config = _read_json(out / CONFIG)
    saved = config.get("flags")
    if not isinstance(saved, dict):
        raise RunError(f"{out / CONFIG}: no flags in it, so nothing can be resumed; pass another --out")
    different = [
        f"--{name.replace('_', '-')} {value} (was {saved.get(name)!r:.60})"
        for name, value in flags.items()
        if name not in FREE_FLAGS and saved.get(name) != value
    ]
    # The other schedules spread over all epochs, so that no more can follow.
    fixed = flags["schedule"] != "plateau"
    least, rule = (flags["epochs"], "which its schedule fixes") if fixed else (1, "and may only grow")
    if not (type(saved.get("epochs")) is int and least <= saved["epochs"] <= flags["epochs"]):
        different.append(f"--epochs {flags['epochs']} (was {saved.get('epochs')!r:.60}, {rule})")
    if data_sha256 is not None and config.get("data_sha256") != data_sha256:
        different.append(f"--data {flags['data']} (other images or labels than {saved.get('data')!r:.200} had)")
    if different:
        raise RunError(f"--out {out}: its run cannot be resumed with {', '.join(different)}; pass another --out")

    if (out / METRICS).exists():
        metrics = _read_json(out / METRICS)
        kinds = {"test_accuracy": float, "epochs": int, "stopped": str}
        if not all(type(metrics.get(name)) is kind for name, kind in kinds.items()):
            raise RunError(f"{out / METRICS}: lacks {', '.join(kinds)}; delete that file and --resume makes it anew")
        if metrics["stopped"] == EARLY_STOPPING or metrics["epochs"] >= flags["epochs"]:
            return metrics if data_sha256 is not None or flags["data"] == saved.get("data") else None
    # The checkpoint is written before these, so without it they are not from a run that broke off.
    if CHECKPOINT not in taken and {HISTORY, WEIGHTS, METRICS} & set(taken):
        raise RunError(f"--out {out}: no {CHECKPOINT} in it, so its run cannot be resumed; pass another --out")
    return None


def _holder(lock: Path) -> str | None:
    """Return what the process that holds `lock` wrote into it; None if nobody holds it."""
    if not lock.exists():
        return None
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read() or "another process"
    return None


def _in_use(out: Path, holder: str) -> str:
    return f"--out {out}: in use by {holder}; wait until that is done, or pass another --out"


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make `out` this process's own: no other can claim it until the block or the process ends, however it ends.

    Raises RunError naming the holder. What ends the block by an exception, but for RunError, is left in error.txt.
    """
    create(out)
    try:
        file = (out / LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise RunError(f"--out {out}: cannot write there ({error.strerror}); pass another --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(_in_use(out, file.read().decode() or "another process")) from None
        with contextlib.suppress(OSError):  # locked it is on a full disk too
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        except RunError:  # bad input changes no file
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk, say; stderr has it all the same
                write_bytes(out / ERROR, "".join(traceback.format_exception_only(error)).encode())
            raise
        finally:
            file.truncate(0)


def create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {out}: cannot make that folder ({error.strerror}); pass another --out") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises WriteError naming the file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # on a full disk its space is wanted
        if isinstance(error, OSError):
            raise WriteError(f"cannot write {path} ({error.strerror})") from None
        raise


def write_json(path: Path, value: dict) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a state dict on the CPU in plain layout: `torch.load(path, weights_only=True)` reads it anywhere."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, buffer)
    write_bytes(path, buffer.getvalue())


def write_checkpoint(path: Path, state: dict) -> None:
    """Save `state`, a tree of dicts, lists, tensors and plain values, with the format's number."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT} | state, buffer)
    write_bytes(path, buffer.getbuffer())


def read_model(out: Path) -> tuple[str, str, str]:
    """Return what config.json says of a run's network: its name, `--data` and `--dtype`. Raises RunError."""
    path = out / CONFIG
    config = _read_json(path)
    flags = config.get("flags") if isinstance(config.get("flags"), dict) else {}
    found = config.get("model"), flags.get("data"), flags.get("dtype")
    if not all(isinstance(value, str) for value in found) or found[2] not in ("float32", "float64"):
        raise RunError(f"{path}: lacks model, data or dtype; pass a run's directory as train.py left it")
    return found


def read_weights(path: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read what `write_weights` wrote, fitted to `like` as `read_checkpoint` does it. Raises RunError."""
    with _read_errors(path, "not the weights of this run", "pass a run's directory as train.py left it"):
        return _fitted(_load(path), like, "it")


def read_checkpoint(path: Path, like: dict) -> dict:
    """Read what `write_checkpoint` wrote, nothing but data, with each tensor on the device and in the layout of `like`.

    `like` has the same tree: a tensor stands for its shape and dtype, a type for its values, `[x]` for a list of any
    length. Raises RunError for a file that is damaged or of another kind.
    """
    with _read_errors(path, "not a checkpoint of this run", "pass another --out"):
        state = _load(path)
        found = state.get("format")
        if found != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {found!r:.20}, this version of the project reads {CHECKPOINT_FORMAT}")
        state = _fitted(state, {"format": int} | like, "it")
        epoch, best_epoch, steps = state["epoch"], state["early_stopping"]["best_epoch"], state["optimizer"]["steps"]
        lengths = {len(state[name]) for name in ("history", "learning_rates", "seconds")}
        if not (lengths == {epoch} and 0 <= best_epoch < epoch <= steps):
            raise ValueError("its counts do not agree")
        return state


@contextlib.contextmanager
def _read_errors(path: Path, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError:
        raise RunError(f"{path}: holds more than plain data, nothing of it was run; {remedy}") from None
    except Exception as error:  # bytes that are damaged or hostile can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{path}: {what} ({reason:.200}); {remedy}") from None


def _load(path: Path) -> object:
    if not path.is_file():
        raise ValueError("not a file")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        if sum(member.file_size for member in members.infolist()) > len(content):
            raise ValueError("its parts claim to be larger than the file")
        damaged = members.testzip()  # torch.load does not look at checksums
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
    with warnings.catch_warnings(action="ignore"):  # torch's, about sparse tensors: they are refused later
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _fitted(found: object, like: object, where: str) -> object:
    if isinstance(like, torch.Tensor):
        fits = isinstance(found, torch.Tensor) and found.layout is torch.strided
        if not (fits and (found.shape, found.dtype) == (like.shape, like.dtype)):
            shape = f"{tuple(found.shape)} {found.dtype}" if fits else f"a {type(found).__name__}"
            raise ValueError(f"{where} is {shape}; it must be {tuple(like.shape)} {like.dtype}")
        if not found.isfinite().all():
            raise ValueError(f"{where} is not finite")
        return torch.empty_like(like).copy_(found.detach())
    if isinstance(like, dict):
        if not isinstance(found, dict) or found.keys() != like.keys():
            names = ", ".join(map(str, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
            raise ValueError(f"{where} has {names:.60}, not {', '.join(map(str, like)):.60}")
        return {name: _fitted(found[name], part, f"{where}.{name}") for name, part in like.items()}
    if isinstance(like, list):
        if not isinstance(found, list):
            raise ValueError(f"{where} is a {type(found).__name__}, not a list")
        return [_fitted(value, like[0], f"{where}[{number}]") for number, value in enumerate(found)]
    if not isinstance(found, like) or (isinstance(found, float) and not math.isfinite(found)):
        raise ValueError(f"{where} is {found!r:.60}, not a finite {like}")
    return found


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
        try:
            rows = list(csv.reader(io.StringIO(_read_text(path), newline="")))
        except csv.Error as error:
            raise RunError(f"{path}: not a CSV file ({error}); pass a history.csv as CSVLogger writes it") from None
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
        except (TypeError, ValueError, OverflowError) as error:
            raise RunError(f"{path}: column {name!r} is not all numbers ({error}); pass a training history") from None
    if not history["loss"] or len({len(values) for values in history.values()}) > 1:
        raise RunError(f"{path}: it needs one row or more, and as many values in each column; pass a training history")
    return history


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
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
        | {"torch": str(torch.__version__)},  # with the build: +cpu, +cu130
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
    if metrics["schedule"] != "plateau":
        lines.append(f"The learning rate followed the {metrics['schedule']} schedule.")
    elif cuts:
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


def per_class(confusion: list[list[int]], names: tuple[str, ...]) -> dict[str, dict]:
    """Images and accuracy of each class; `confusion[i][j]` counts the images of class i that were taken for j."""
    return {
        name: {"images": sum(row), "accuracy": row[number] / sum(row) if any(row) else None}
        for number, (name, row) in enumerate(zip(names, confusion, strict=True))
    }


def most_confused(confusion: list[list[int]], names: tuple[str, ...], count: int = 3) -> str:
    """Name in one line the `count` pairs of classes between which most images were confused, either way."""
    pairs = sorted(
        ((confusion[i][j] + confusion[j][i], i, j) for i in range(len(names)) for j in range(i)),
        key=lambda pair: -pair[0],
    )
    said = [f"{names[j]} and {names[i]} ({images:,})" for images, i, j in pairs[:count] if images]
    return f"Most confused: {', '.join(said)}." if said else "No image was taken for another class."
