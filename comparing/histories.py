"""Read training histories, of this project and of other programs."""

import contextlib
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cli.errors import BadInput
from comparing import formats
from running import files
from running.outcome import CONFIG, HISTORY, METRICS, program_of

SUFFIXES = (".csv", ".tsv", ".txt", ".log", ".json", ".jsonl", ".npz", ".pkl", ".pickle", ".npy")
ROUNDING = 1e-6  # error of an accuracy of 1 in float32
OWN_METRICS = {"test_accuracy", "learning_rate_after_epoch"}  # identify a metrics.json without config.json
PICKLES = {
    ".npy": "json.dump(numpy.load({0!r}, allow_pickle=True).item(), open({1!r}, 'w'), default=float)",
    ".pkl": "json.dump(pickle.load(open({0!r}, 'rb')), open({1!r}, 'w'), default=float)",
}


class Training(NamedTuple):
    """A training as read from its files: its history by column, metrics.json, config.json, and how it was read.

    `form` describes the history's format and columns in words; `remarks` are caveats about its figures.
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


def read(path: Path) -> Training:
    """Read a run's directory, a directory with a single history in any format, or such a history file.

    `learning_rate` is as logged. metrics and config are empty except for a run's directory. Raises BadInput.
    """
    metrics = {}
    config = {}
    others = []
    file = path
    if (path / HISTORY).exists():
        file = path / HISTORY
        metrics, config = (files.read_json(path / name) if (path / name).exists() else {} for name in (METRICS, CONFIG))
        config = config if program_of(config) else {}
        if metrics and not config and not metrics.keys() >= OWN_METRICS:
            metrics = {}
            others = [f"its {METRICS} is another program's, and is ignored"]
    elif path.is_dir():
        file = _only_history(path)
    for name, kinds in {"seed": int | str | None, "initial_weights": str | None, "model": str | None}.items():
        if not isinstance(metrics.get(name), kinds):
            raise BadInput(f"{path / METRICS}: {metrics[name]!r:.60} for {name}; correct it, or delete the file")
    history, form, remarks = _read_history(file)
    return Training(str(path), history, metrics, config, form, remarks + others)


def how_read(groups: dict[str, list[Training]]) -> list[str]:
    """Return lines on how each group's histories were read, merged if they were read alike, and all remarks."""
    runs = [run for group in groups.values() for run in group]
    if len(runs) > 2 and len({run.form for run in runs}) == 1:
        forms = {f"All {len(runs)} files": Counter([runs[0].form])}
    else:
        forms = {label: Counter(run.form for run in group) for label, group in groups.items()}
    lines = []
    for label, of_label in forms.items():
        for form, count in of_label.items():
            lines.append(f"{label}: {form}" if count == 1 else f"{label}, {count} files: {form}")
    return [*lines, *(f"{run.path}: {remark}" for run in runs for remark in run.remarks)]


def _only_history(folder: Path) -> Path:
    """Return the one training history in `folder`. Raises BadInput if there is none, or more than one."""
    config = {}
    with contextlib.suppress(BadInput):  # it is missing, or another program's
        config = files.read_json(folder / CONFIG)
    if program_of(config):
        raise BadInput(f"{folder}: no epoch of this run has finished yet")
    runs = [path for path in folder.iterdir() if (path / HISTORY).exists()]
    if runs:
        raise BadInput(f"{folder}: a folder of runs, such as {runs[0].name}; pass {str(folder / '*')!r}")
    candidates = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    candidates = [file for file in candidates if file.name not in (METRICS, CONFIG)]
    if len(candidates) > 1:
        readable = []
        for file in candidates:
            with contextlib.suppress(BadInput):
                _read_history(file)
                readable.append(file)
        candidates = readable
    if len(candidates) != 1:
        names = ", ".join(file.name for file in candidates)
        fault = f"several training histories ({names:.200})" if candidates else "no training history"
        raise BadInput(f"{folder}: {fault} in that folder; pass the file")
    return candidates[0]


def _read_history(path: Path) -> tuple[dict[str, list[float]], str, list[str]]:
    """Return a file's columns by role (formats.ROLES), a description of how it was read, and remarks on it.

    Each column has one value per epoch, NaN for a missing one.
    """
    _refuse_pickle(path)
    table = formats.read_table(path)
    names = _names_of_roles(path, table)
    history = {role: formats.numbers(path, name, table.columns[name]) for role, name in names.items()}
    history = {role: values for role, values in history.items() if role == "loss" or not all(map(math.isnan, values))}
    if not {"loss", "val_loss"} & history.keys():
        raise BadInput(f"{path}: {formats.listed(table.columns)}, no loss and no val_loss; {formats.WANTED}")
    remarks = list(table.remarks)
    losses = history.get("loss", history.get("val_loss"))
    finite = [epoch for epoch, value in enumerate(losses, start=1) if math.isfinite(value)]
    if finite[-1:] != [len(losses)]:
        remarks.append(f"no finite loss after epoch {(finite or [0])[-1]}: it diverged, or its figures are missing")
    validated = [epoch for epoch, value in enumerate(history.get("val_loss", []), start=1) if math.isfinite(value)]
    longest = max((after - before for before, after in itertools.pairwise([0, *validated])), default=0)
    if "val_loss" in history and "loss" in history and len(losses) - (validated or [0])[-1] >= longest:
        remarks.append(f"no finite val_loss after epoch {(validated or [0])[-1]}, so no later epoch can be the best")
    counters = [name for name in table.columns if name.lower() in formats.COUNTERS]
    if counters and "epoch" not in table.columns:
        remarks.append(f"it counts {counters[0]!r} and no epochs: each of its {len(losses)} rows is taken as an epoch")
    per_cent = _as_fractions(path, history, names)
    remarks += [f"{names[role]!r:.60} is used as {role}" for role in names if _instead(names[role])]
    columns = []
    for role in history:
        column = role if role == names[role] else f"{role} from {names[role]!r:.60}"
        columns.append(f"{column} in per cent" if role in per_cent else column)
    form = f"{table.form}: {', '.join(columns)}"
    used = ["epoch", "step", *(names[role] for role in history)]
    left_out = ", ".join(f"{name!r:.60}" for name in table.columns if name not in used)
    return history, f"{form}; left out: {left_out:.200}" if left_out else form, remarks


def _refuse_pickle(path: Path) -> None:
    """Raise BadInput for a file that only unpickling could read, since that can run any code."""
    start = b""
    if path.is_file():  # a pipe can be read only once
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(6)
    suffix = ".npy" if start.startswith(b"\x93NUMPY") else path.suffix.lower().replace("pickle", "pkl")
    if suffix not in PICKLES and start[:1] != b"\x80":
        return
    line = PICKLES.get(suffix, PICKLES[".pkl"]).format(str(path), str(path.with_suffix(".json")))
    module = "numpy" if suffix == ".npy" else "pickle"
    raise BadInput(
        f"{path}: a pickle, which is not opened; if you trust it, convert it to JSON: import json, {module}; {line}"
    )


def _names_of_roles(path: Path, table: formats.Table) -> dict[str, str]:
    """Return the column to use for each role. Raises BadInput if two columns could have the same role."""
    claims: dict[str, list[str]] = {role: [] for role in formats.ROLES}
    for name in table.columns:
        role = formats.role(name)
        if role:
            claims[role].append(name)
    if claims["loss"] == ["train_loss"] and not claims["val_accuracy"]:
        # Beside train_loss, an accuracy without a prefix is ambiguous; in fastai's own format it is validation's.
        plain = [name for name in claims["accuracy"] if re.fullmatch(formats.ACCURACY, name)]
        claims["accuracy"] = [name for name in claims["accuracy"] if name not in plain]
        if claims["val_loss"] == ["valid_loss"]:
            claims["val_accuracy"] = plain
    if not claims["val_loss"] and not claims["val_accuracy"]:
        for name in filter(_instead, table.columns):
            claims[formats.role(_instead(name))].append(name)
    for role, names in claims.items():
        if len(names) > 1:
            raise BadInput(f"{path}: {' and '.join(map(repr, names)):.200} could each be its {role}; keep one of them")
    return {role: names[0] for role, names in claims.items() if names}


def _instead(name: str) -> str | None:
    """Return the val_ name of a column that may stand in for validation; None for any other column."""
    if not name.lower().startswith(formats.INSTEAD_OF_VALIDATION):
        return None
    as_validation = f"val_{name[len(formats.INSTEAD_OF_VALIDATION) :]}"
    return as_validation if formats.role(as_validation) else None


def _as_fractions(path: Path, history: dict[str, list[float]], names: dict[str, str]) -> set[str]:
    """Convert accuracies in per cent, recognized by name or by a value above 1, to fractions; return their roles."""
    by_name = [role for role in history if names[role] in formats.IN_PER_CENT]
    for role in by_name:
        history[role] = [value / 100 for value in history[role]]
    highest = {}
    for role in ("accuracy", "val_accuracy"):
        finite = [value for value in history.get(role, []) if not math.isnan(value)]
        if finite and not 0 <= min(finite) <= max(finite) <= 100:
            raise BadInput(f"{path}: its {role} goes from {min(finite):g} to {max(finite):g}; {formats.WANTED}")
        if finite:
            highest[role] = max(finite)
    in_per_cent = [role for role, value in highest.items() if value > 1 + ROUNDING]
    for role in highest.keys() - in_per_cent:
        history[role] = [min(value, 1.0) for value in history[role]]
    if not in_per_cent:
        return set(by_name)
    if len(in_per_cent) < len(highest):
        raise BadInput(f"{path}: one of its accuracies is in per cent and the other is not; write both alike")
    for role in highest:
        history[role] = [value / 100 for value in history[role]]
    return set(highest)
