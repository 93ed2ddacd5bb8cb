"""`history.csv`: write it as Keras's CSVLogger does, read it back, and find its best epoch."""

import csv
import io
import math
from pathlib import Path

import torch

from running import files


def write(path: Path, logs: list[dict[str, float]]) -> None:
    """Write one row per epoch, byte for byte as `keras.callbacks.CSVLogger` does."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["epoch", *sorted(logs[0])])
    writer.writeheader()
    writer.writerows({"epoch": epoch, **figures} for epoch, figures in enumerate(logs))
    files.write_bytes(path, buffer.getvalue().encode())


def read(path: Path) -> list[dict[str, float]]:
    """Return the metrics of each epoch. Raises BadInput, ValueError or TypeError for any other file."""
    try:
        rows = list(csv.DictReader(files.read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise ValueError(error) from None
    return [{name: float(value) for name, value in row.items() if name != "epoch"} for row in rows]


def less(one: float, other: float) -> bool:
    """Return whether `one` < `other` in float32, whatever the model's dtype, as Keras's callbacks do on TensorFlow."""
    ours, theirs = torch.tensor([one, other], dtype=torch.float32).tolist()
    return ours < theirs


def best_epoch(losses: list[float]) -> int | None:
    """Return the best epoch, from 0, as early stopping would; None if no loss is finite."""
    best = None
    for epoch, loss in enumerate(losses):
        if math.isfinite(loss) and (best is None or less(loss, losses[best])):
            best = epoch
    return best
