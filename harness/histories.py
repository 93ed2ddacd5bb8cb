"""Histories of trainings, this project's and other people's: written as Keras does, read from where they are."""

import csv
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness import files
from harness.errors import BadInput

HISTORY, METRICS = "history.csv", "metrics.json"


class Training(NamedTuple):
    """A finished or unfinished training as read back: its path, one list per column of its history, its metrics."""

    path: str
    history: dict[str, list[float]]
    metrics: dict


def fingerprint(arrays: list[np.ndarray]) -> str:
    """SHA-256 of the values as float64, so that float32 and float64 runs from the same weights have the same one."""
    return hashlib.sha256(b"".join(array.astype("<f8").tobytes() for array in arrays)).hexdigest()


def write(path: Path, logs: list[dict[str, float]]) -> None:
    """Write one row per epoch, byte for byte as `keras.callbacks.CSVLogger` does."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["epoch", *sorted(logs[0])])
    writer.writeheader()
    writer.writerows({"epoch": epoch, **figures} for epoch, figures in enumerate(logs))
    files.write_bytes(path, buffer.getvalue().encode())


def read(path: Path) -> Training:
    """Read a run's directory, a bare history.csv, or a Keras `history.history` saved as JSON; metrics may be empty.

    Keras 2's `lr` is read as `learning_rate`. Raises BadInput naming what is wrong.
    """
    if not path.is_dir():
        return Training(str(path), _read_history(path), {})
    metrics_file = path / METRICS
    metrics = files.read_json(metrics_file) if metrics_file.exists() else {}
    return Training(str(path), _read_history(path / HISTORY), metrics)


def _read_history(path: Path) -> dict[str, list[float]]:
    columns = files.read_json(path) if path.suffix == ".json" else _read_csv(path)
    columns = {"learning_rate" if name == "lr" else name: values for name, values in columns.items()}
    if "loss" not in columns:
        raise BadInput(f"{path}: no column 'loss' in it; pass a history.csv, or history.history saved as JSON")
    history = {}
    for name, values in columns.items():
        try:
            history[name] = [float(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"{path}: column {name!r} is not all numbers ({error}); pass a training history") from None
    if not history["loss"] or len({len(values) for values in history.values()}) > 1:
        raise BadInput(f"{path}: it needs one row or more, and as many values in each column; pass a training history")
    return history


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(files.read_text(path), newline="")))
    except csv.Error as error:
        raise BadInput(f"{path}: not a CSV file ({error}); pass a history.csv as CSVLogger writes it") from None
    header = rows[0] if rows else []
    if any(len(row) != len(header) for row in rows):
        raise BadInput(f"{path}: its rows differ in length; pass a history.csv as CSVLogger writes it")
    return {name: [row[number] for row in rows[1:]] for number, name in enumerate(header)}
