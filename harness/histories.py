"""Histories of trainings, this project's and other people's: written as Keras does, read from where they are."""

import contextlib
import csv
import hashlib
import io
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness import files, formats
from harness.errors import BadInput

HISTORY, METRICS, CONFIG = "history.csv", "metrics.json", "config.json"
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".pkl", ".pickle", ".npy")
PICKLES = {
    ".npy": "json.dump(numpy.load({0!r}, allow_pickle=True).item(), open({1!r}, 'w'), default=float)",
    ".pkl": "json.dump(pickle.load(open({0!r}, 'rb')), open({1!r}, 'w'), default=float)",
}


class Training(NamedTuple):
    """A training as read back: its history by column, metrics.json, config.json, and how the history was read.

    `form` says it in words; `remarks` are what a reader of its figures must know.
    """

    path: str
    history: dict[str, list[float]]
    metrics: dict
    config: dict
    form: str
    remarks: list[str]

    @property
    def epochs(self) -> int:
        return len(next(iter(self.history.values())))


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


def read_back(path: Path) -> list[dict[str, float]]:
    """Return what `write` wrote: the figures of each epoch. Raises BadInput or ValueError."""
    rows = csv.DictReader(files.read_text(path).splitlines(), strict=True)
    return [{name: float(value) for name, value in row.items() if name != "epoch"} for row in rows]


def contradiction(metrics: dict, flags: dict, history: dict[str, list[float]]) -> str | None:
    """Say in what metrics.json contradicts a run's flags or its history by column, so that it is another run's."""
    if "seed" in metrics and metrics["seed"] != flags.get("seed", metrics["seed"]):
        return f"metrics.json has seed {metrics['seed']!r:.60}, {CONFIG} {flags['seed']!r:.60}"
    best, logs = metrics.get("best_epoch"), metrics.get("best_epoch_logs")
    if not (isinstance(best, int) and isinstance(logs, dict)):
        return None
    for name in sorted(logs.keys() & history.keys()):
        if not 0 < best <= len(history[name]) or logs[name] != history[name][best - 1]:
            return f"metrics.json has {name} {logs[name]!r:.60} in epoch {best}, and the history another"
    return None


def columns_of(path: Path) -> dict[str, list[float]]:
    """Return what `write` wrote, by column; nothing if it is missing or damaged, since it is no figure's only place."""
    with contextlib.suppress(BadInput, ValueError, IndexError):
        rows = read_back(path)
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {}


def read(path: Path) -> Training:
    """Read a run's directory, one with a single history of any form in it, or such a file itself.

    `learning_rate` is as logged. metrics and config are empty but for a run's directory. Raises BadInput.
    """
    metrics, config, file = {}, {}, path
    if (path / HISTORY).exists():
        file = path / HISTORY
        metrics, config = (files.read_json(path / name) if (path / name).exists() else {} for name in (METRICS, CONFIG))
    elif path.is_dir():
        file = _only_history(path)
    for name, kinds in {"seed": int | str | None, "initial_weights": str | None, "model": str | None}.items():
        if not isinstance(metrics.get(name), kinds):
            raise BadInput(f"{path / METRICS}: {metrics[name]!r:.60} for {name}; mend it, or delete the file")
    history, form, remarks = _read_history(file)
    return Training(str(path), history, metrics, config, form, remarks)


def how_read(groups: dict[str, list[Training]]) -> list[str]:
    """Say how each group's histories were read, once for all that were read alike, and the remarks on each."""
    lines = []
    for label, group in groups.items():
        for form, count in Counter(run.form for run in group).items():
            lines.append(f"{label}: {form}" if count == 1 else f"{label}, {count} files: {form}")
        lines += [f"{run.path}: {remark}" for run in group for remark in run.remarks]
    return lines


def _only_history(folder: Path) -> Path:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    found = [file for file in found if file.name not in (METRICS, CONFIG)]
    if len(found) > 1:
        readable = []
        for file in found:
            with contextlib.suppress(BadInput):
                _read_history(file)
                readable.append(file)
        found = readable
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise BadInput(f"{folder}: one training history is wanted in it, and found are: {names:.200}; pass the file")
    return found[0]


def _read_history(path: Path) -> tuple[dict[str, list[float]], str, list[str]]:
    """Return the columns of formats.ROLES that a file has, how it was read in words, and remarks on it.

    Each column has a value per epoch, NaN where there is none.
    """
    _refuse_pickle(path)
    table = formats.read_table(path)
    names = _names_of_roles(path, table)
    history = {role: formats.numbers(path, name, table.columns[name]) for role, name in names.items()}
    history = {role: values for role, values in history.items() if role == "loss" or not all(map(math.isnan, values))}
    if not {"loss", "val_loss"} & history.keys():
        raise BadInput(f"{path}: {formats.found(table.columns)}, no loss and no val_loss; {formats.WANTED}")
    remarks, losses = list(table.remarks), history.get("loss", history.get("val_loss"))
    finite = [epoch for epoch, value in enumerate(losses, start=1) if math.isfinite(value)]
    if finite[-1:] != [len(losses)]:
        remarks.append(f"no finite loss after epoch {(finite or [0])[-1]}: it diverged, or its figures are missing")
    per_cent = _as_fractions(path, history)
    taken = []
    for role in history:
        said = role if role == names[role] else f"{role} from {names[role]!r:.60}"
        taken.append(f"{said} in per cent" if role in per_cent else said)
    form = f"{table.form}: {', '.join(taken)}"
    used = ["epoch", "step", *(names[role] for role in history)]
    left_out = ", ".join(f"{name!r:.60}" for name in table.columns if name not in used)
    return history, f"{form}; left out: {left_out:.200}" if left_out else form, remarks


def _refuse_pickle(path: Path) -> None:
    """Raise BadInput for what only unpickling could read, which can run any code."""
    start = b""
    if path.is_file():  # a pipe can be read but once
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(6)
    suffix = ".npy" if start.startswith(b"\x93NUMPY") else path.suffix.lower().replace("pickle", "pkl")
    if suffix not in PICKLES and start[:1] != b"\x80":
        return
    line = PICKLES.get(suffix, PICKLES[".pkl"]).format(str(path), str(path.with_suffix(".json")))
    module = "numpy" if suffix == ".npy" else "pickle"
    raise BadInput(
        f"{path}: a pickle, which is not opened; if you trust it, make JSON of it: import json, {module}; {line}"
    )


def _names_of_roles(path: Path, table: formats.Table) -> dict[str, str]:
    """Return which column is taken for what. Raises BadInput where two would be the same."""
    claims: dict[str, list[str]] = {role: [] for role in formats.ROLES}
    for name in table.columns:
        role = formats.role(name)
        if role:
            claims[role].append(name)
    if claims["loss"] == ["train_loss"] and not claims["val_accuracy"]:
        # Beside train_loss a name without a part says nothing of whose it is; in fastai's own form it is validation's.
        plain = [name for name in claims["accuracy"] if re.fullmatch(formats.ACCURACY, name)]
        claims["accuracy"] = [name for name in claims["accuracy"] if name not in plain]
        if claims["val_loss"] == ["valid_loss"]:
            claims["val_accuracy"] = plain
    for role, names in claims.items():
        if len(names) > 1:
            raise BadInput(f"{path}: {' and '.join(map(repr, names)):.200} would each be its {role}; keep one of them")
    return {role: names[0] for role, names in claims.items() if names}


def _as_fractions(path: Path, history: dict[str, list[float]]) -> set[str]:
    """Make fractions of accuracies in per cent, which some value above 1 tells; return whose they were."""
    highest = {}
    for role in ("accuracy", "val_accuracy"):
        finite = [value for value in history.get(role, []) if not math.isnan(value)]
        if finite and not 0 <= min(finite) <= max(finite) <= 100:
            raise BadInput(f"{path}: its {role} goes from {min(finite):g} to {max(finite):g}; {formats.WANTED}")
        if finite:
            highest[role] = max(finite)
    if all(value <= 1 for value in highest.values()):
        return set()
    if any(value <= 1 for value in highest.values()):
        raise BadInput(f"{path}: one of its accuracies is in per cent and the other is not; write both alike")
    for role in highest:
        history[role] = [value / 100 for value in history[role]]
    return set(highest)
