"""The outcome of the run in a directory: one answer for every command."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from cli.errors import BadInput
from cli.messages import counted
from running import files, history
from running.code import KERAS, TRAIN

CONFIG, HISTORY, METRICS = "config.json", "history.csv", "metrics.json"
CHECKPOINT, WEIGHTS, ERROR = "checkpoint.pt", "best.pt", "error.txt"
INITIAL_WEIGHTS, BEST_WEIGHTS = "initial_weights.npz", "best_weights.npz"  # as Keras's get_weights() orders them
CURVES, CONFUSION = "curves.png", "confusion.png"
# Any of these shows that there is a run. ERROR does not: a process may have ended before its run began.
FILES = (CONFIG, HISTORY, METRICS, WEIGHTS, INITIAL_WEIGHTS, BEST_WEIGHTS, CURVES, CONFUSION, CHECKPOINT)
EARLY_STOPPING, ALL_EPOCHS = "early stopping", "all epochs used"  # why training ended
EMPTY, UNFINISHED, STOPPED, FINISHED = "empty", "unfinished", "stopped", "finished"


def program_of(config: dict) -> str | None:
    """Return the program that wrote a config.json; None if it is not from this project."""
    if not isinstance(config.get("flags"), dict):
        return None
    return config.get("program", KERAS if "backend" in config else TRAIN)  # earlier versions did not name it


def parts_of(config: dict) -> list[dict]:
    """Return what a config.json records of each part of a run: one part, plus one for each time it was resumed."""
    parts = config.get("parts")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return parts or [config]


class Outcome(NamedTuple):
    """`kind` is EMPTY, UNFINISHED, STOPPED (by a callback, can be resumed) or FINISHED; `reason` explains it.

    `config` and `metrics` are the contents of config.json and metrics.json, empty if the file is missing.
    """

    kind: str
    reason: str
    config: dict
    metrics: dict


def outcome(folder: Path) -> Outcome:
    """Return the outcome of the run in `folder`. Raises BadInput for files that are damaged or of different runs."""
    if not any((folder / name).exists() for name in FILES):
        return Outcome(EMPTY, "no run in it", {}, {})
    config, metrics = (files.read_json(folder / name) if (folder / name).exists() else {} for name in (CONFIG, METRICS))
    kind, reason = _kind(folder, config, metrics)
    return Outcome(kind, reason, config, metrics)


def _kind(folder: Path, config: dict, metrics: dict) -> tuple[str, str]:
    if not metrics:
        why = f"no {METRICS}"
        with contextlib.suppress(OSError, IndexError):
            why += f"; it ended with: {(folder / ERROR).read_text().splitlines()[0]:.200}"
        return UNFINISHED, why
    kinds = {"test_accuracy": float, "epochs": int, "stopped": str}
    if not all(type(metrics.get(name)) is kind for name, kind in kinds.items()):
        raise BadInput(f"{folder / METRICS}: lacks {', '.join(kinds)}; delete that file, and --resume writes it again")
    flags = config.get("flags")
    flags = flags if isinstance(flags, dict) else {}
    epochs, wanted = metrics["epochs"], flags.get("epochs")
    logs = _logs(folder / HISTORY)
    # The metrics of an earlier end remain until a later end replaces them.
    if logs and len(logs) != epochs:
        return UNFINISHED, f"{counted(len(logs), 'epoch')} in its history, {epochs} in {METRICS}"
    if metrics["stopped"] == ALL_EPOCHS and isinstance(wanted, int) and wanted > epochs:
        return UNFINISHED, f"{counted(epochs, 'epoch')} in {METRICS}, and {wanted} are wanted"
    fault = _contradiction(metrics, flags, {name: [row[name] for row in logs] for name in (logs[0] if logs else ())})
    if fault:
        raise BadInput(f"{folder / METRICS}: {fault}; delete that file, and --resume writes it again")
    if not metrics.get("final", True):
        return STOPPED, f"{metrics['stopped']} after epoch {epochs}, can be resumed"
    return FINISHED, metrics["stopped"]


def _logs(path: Path) -> list[dict[str, float]]:
    """Return the epochs of history.csv; [] if it is missing or damaged, since the checkpoint has them too."""
    with contextlib.suppress(BadInput, ValueError, TypeError):
        return history.read(path)
    return []


def _contradiction(metrics: dict, flags: dict, columns: dict[str, list[float]]) -> str | None:
    """Return how metrics.json contradicts the run's options or its history, by column; None if it does not."""
    if "seed" in metrics and metrics["seed"] != flags.get("seed", metrics["seed"]):
        return f"has seed {metrics['seed']!r:.60}, {CONFIG} {flags['seed']!r:.60}"
    best, logs = metrics.get("best_epoch"), metrics.get("best_epoch_logs")
    if not (isinstance(best, int) and isinstance(logs, dict)):
        return None
    for name in sorted(logs.keys() & columns.keys()):
        if not 0 < best <= len(columns[name]) or logs[name] != columns[name][best - 1]:
            return f"has {name} {logs[name]!r:.60} in epoch {best}, the history another"
    return None
