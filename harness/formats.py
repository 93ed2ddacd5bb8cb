"""Histories of trainings in the forms that public programs write, told by their form and never by guess."""

import csv
import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from harness import files
from harness.errors import BadInput

WANTED = "pass the loss of each epoch as Keras, Lightning, timm, fastai, Hugging Face or pandas write it, CSV or JSON"
MISSING = ("", "na", "n/a", "nan", "null", "none")
TRAINING, VALIDATION = "(?:train|training)_", "(?:val|valid|validation|eval)_"
ACCURACY = "acc|accuracy|categorical_accuracy|sparse_categorical_accuracy|top1|top_1|acc1"
ROLES = {
    "loss": rf"(?:{TRAINING})?loss",
    "accuracy": rf"(?:{TRAINING})?(?:{ACCURACY})",
    "val_loss": f"{VALIDATION}loss",
    "val_accuracy": f"{VALIDATION}(?:{ACCURACY})",
    "learning_rate": r"lr|learning_rate|lr-\w+",
}


class Table(NamedTuple):
    """A file as it was found: its form in words, its columns by name with cells as they stand there, remarks."""

    form: str
    columns: dict[str, list]
    remarks: list[str]


def read_table(path: Path) -> Table:
    """Read a CSV or, by its suffix, a JSON file, with as many cells in each column. Raises BadInput."""
    text = files.read_text(path).removeprefix("\ufeff")  # Excel's
    return _json_table(path, text) if path.suffix.lower() == ".json" else _csv_table(path, text)


def found(names) -> str:
    return f"found {', '.join(map(repr, names)) or 'nothing':.200}"


def _csv_table(path: Path, text: str) -> Table:
    start = next((line for line in text.splitlines() if line.strip()), "")
    separators = [separator for separator in ",;\t" if separator in start] or [","]
    if len(separators) > 1:
        raise BadInput(f"{path}: found {start!r:.80}, with more than one kind of separator; {WANTED}")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separators[0], skipinitialspace=True))
    except csv.Error as error:
        raise BadInput(f"{path}: not a CSV file ({error}); {WANTED}") from None
    rows = [row for row in ([cell.strip() for cell in row] for row in rows) if any(row)]
    header, rows, remarks = rows[0] if rows else [], rows[1:], []
    if rows and not text.endswith(("\n", "\r")):
        if len(rows[-1]) < len(header):
            rows, remarks = rows[:-1], ["its last row is cut off and left out"]
        else:
            remarks = ["its last row has no line end: its last figure may be cut off"]
    if header in rows:
        raise BadInput(f"{path}: its header comes twice, so two trainings are in it; save each in a file of its own")
    if any(len(row) != len(header) for row in rows):
        raise BadInput(f"{path}: its rows differ in length; {WANTED}")
    if header and not header[0] and "epoch" not in header:
        header[0] = "epoch"  # the index that pandas writes without a name
    if len({*header}) < len(header):
        raise BadInput(f"{path}: {found(header)}, a name twice; name each column once")
    counters = [number for number, name in enumerate(header) if name.lower() in ("epoch", "epochs")]
    if len(counters) == 1:
        header[counters[0]] = "epoch"
    form = "CSV" if separators == [","] else f"CSV separated by {separators[0]!r}"
    if {"epoch", "step"} <= {*header}:
        return _by_epoch(path, "Lightning's CSV", [dict(zip(header, row, strict=True)) for row in rows], remarks)
    columns = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    return _checked(path, Table(form, columns, remarks))


def _json_table(path: Path, text: str) -> Table:
    try:
        value = json.loads(text, object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); {WANTED}") from None
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        rows = [row for row in value["log_history"] if isinstance(row, dict) and "train_runtime" not in row]
        return _by_epoch(path, "Hugging Face's log_history", rows, [])
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = dict.fromkeys(name for row in value for name in row)
        return _checked(path, Table("JSON records", {name: [row.get(name) for row in value] for name in names}, []))
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, list) for column in columns):
        return _checked(path, _spread_validation(Table("Keras's history in JSON", value, [])))
    # DataFrame.to_json(): each column an object from row number to value.
    if columns and all(isinstance(column, dict) and [*column] == [*map(str, range(len(column)))] for column in columns):
        columns = {name: list(column.values()) for name, column in value.items()}
        return _checked(path, Table("pandas's to_json()", columns, []))
    what = f"an object: {', '.join(map(repr, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise BadInput(f"{path}: found {what:.200}; {WANTED}")


def _named_once(pairs: list[tuple]) -> dict:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice in one object")
    return dict(pairs)


def _checked(path: Path, table: Table) -> Table:
    """Raise BadInput unless all columns are equally long, and `epoch`, if it is there, counts up by one."""
    if len({len(cells) for cells in table.columns.values()}) > 1 or not all(table.columns.values()):
        raise BadInput(f"{path}: it needs one row or more, and as many values in each column; {WANTED}")
    if "epoch" not in table.columns:
        return table
    epochs = numbers(path, "epoch", table.columns["epoch"])
    for row, (before, after) in enumerate(itertools.pairwise(epochs), start=2):
        if after != before + 1:
            raise BadInput(
                f"{path}: its epoch counter goes from {before:g} to {after:g} in row {row}; "
                "save each training in a file of its own, with a row for each epoch"
            )
    if epochs[0] in (0, 1):
        return table
    return table._replace(
        remarks=[*table.remarks, f"it starts with epoch {epochs[0]:g}, which is counted as the first"]
    )


def _by_epoch(path: Path, form: str, rows: list[dict], remarks: list[str]) -> Table:
    """Merge the rows that Lightning and Hugging Face write of an epoch; what is logged by step is left out, and said.

    Of several learning rates in an epoch the first is taken: the one that it began with.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    counter = numbers(path, "epoch", [row.get("epoch") for row in rows])
    epochs: dict[float, dict[str, list]] = {}
    by_step = set()
    following = math.nan
    for row, epoch in zip(reversed(rows), reversed(counter), strict=True):
        # Lightning's LearningRateMonitor leaves the epoch out: it is that of the next row which has one.
        epoch = following if math.isnan(epoch) else epoch
        if epoch > following:
            raise BadInput(
                f"{path}: its epoch counter goes from {epoch:g} back to {following:g}, so two trainings are in it; "
                "save each in a file of its own"
            )
        following = epoch
        logged = {name: cell for name, cell in row.items() if role(name) and str(cell).strip().lower() not in MISSING}
        if logged and not math.isnan(epoch):
            if epoch % 1:
                by_step |= logged.keys()
                continue
            for name, cell in logged.items():
                epochs.setdefault(epoch, {}).setdefault(name, []).insert(0, cell)
    for figures in epochs.values():
        by_step |= {name for name, cells in figures.items() if len(cells) > 1 and role(name) != "learning_rate"}
    if by_step:
        remarks = [*remarks, f"logged by step and so left out: {', '.join(map(repr, sorted(by_step))):.200}"]
    columns = {"epoch": sorted(epochs)}
    for name in names:
        taken = role(name) and name not in by_step and any(name in figures for figures in epochs.values())
        if taken:
            columns[name] = [epochs[epoch].get(name, [None])[0] for epoch in columns["epoch"]]
    if not epochs:
        raise BadInput(f"{path}: {found(names)}, and nothing by whole epochs; {WANTED}")
    return _checked(path, Table(form, columns, remarks))


def _spread_validation(table: Table) -> Table:
    """Give the shorter val_ columns of `fit(validation_freq=k)` a value per epoch, where one k alone fits."""
    longest = max(map(len, table.columns.values()))
    short = {name: cells for name, cells in table.columns.items() if len(cells) < longest}
    counts = {len(cells) for cells in short.values()}
    fitting = [every for every in range(2, longest + 1) if counts == {longest // every}]
    if len(fitting) != 1 or not all(name.startswith("val_") for name in short):
        return table
    (every,) = fitting
    spread = {}
    for name, cells in short.items():
        spread[name] = [None] * longest
        spread[name][every - 1 :: every] = cells
    remark = f"validated every {every} epochs, as the lengths of its lists tell"
    return table._replace(columns=table.columns | spread, remarks=[remark])


def role(name: str) -> str | None:
    """What a column of this name holds: one of ROLES, whatever the program that wrote it; None for anything else."""
    plain = re.sub(r"[ /]", "_", name.strip().lower()).removesuffix("_epoch")
    return next((name for name, pattern in ROLES.items() if re.fullmatch(pattern, plain)), None)


def numbers(path: Path, name: str, cells: list) -> list[float]:
    """Return the cells as numbers, NaN for one that is missing. Raises BadInput."""
    values = []
    for cell in cells:
        try:
            if isinstance(cell, bool | list | dict):
                raise ValueError(f"{cell!r:.40} is none")
            values.append(math.nan if str(cell).strip().lower() in MISSING else float(cell))
        except (ValueError, OverflowError) as error:
            raise BadInput(f"{path}: column {name!r:.60} is not all numbers ({error!s:.80}); {WANTED}") from None
    return values
