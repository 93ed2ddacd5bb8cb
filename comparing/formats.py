"""Training histories in the formats that public programs write, recognized by their form and never guessed."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from cli.errors import BadInput
from running import files

WANTED = "pass the loss of each epoch as Keras, Lightning, timm, fastai, Hugging Face or pandas write it, CSV or JSON"
MISSING = ("", "na", "n/a", "nan", "null", "none")
TRAINING, VALIDATION = "(?:train|training)_", "(?:val|valid|validation|eval)_"
INSTEAD_OF_VALIDATION = "test_"  # where nothing is called validation, as in DeiT's logs
ACCURACY = "acc|accuracy|categorical_accuracy|sparse_categorical_accuracy|top1|top_1|acc1"
ROLES = {
    "loss": rf"(?:{TRAINING})?loss",
    "accuracy": rf"(?:{TRAINING})?(?:{ACCURACY})",
    "val_loss": f"{VALIDATION}loss",
    "val_accuracy": f"{VALIDATION}(?:{ACCURACY})",
    "learning_rate": r"(?:train_)?(?:lr|learning_rate)|lr-\w+",
}
COUNTERS = ("step", "steps", "global_step", "iteration", "iter", "batch")  # of something other than epochs
IN_PER_CENT = ("eval_top1",)  # timm's, always


class Table(NamedTuple):
    """The content of a file: its format in words, its columns by name with cells as found, and remarks."""

    form: str
    columns: dict[str, list]
    remarks: list[str]


def read_table(path: Path) -> Table:
    """Read a JSON, CSV or .npz file into columns of equal length. Raises BadInput."""
    if path.suffix.lower() == ".npz":
        columns = {name: array.tolist() for name, array in files.read_npz("", path).items()}
        if not all(isinstance(cells, list) for cells in columns.values()):
            raise BadInput(f"{path}: {listed(columns)}, not a list for each; {WANTED}")
        return _checked(path, _spread_validation(Table("Keras's history in .npz", columns, [])))
    text = files.read_text(path).removeprefix("\ufeff")  # from Excel, like a first line that names the separator
    text = re.sub(r"\Asep=.\r?\n", "", text)
    if path.suffix.lower() in (".json", ".jsonl") or text.lstrip().startswith("{"):
        return _json_table(path, text)
    return _csv_table(path, text)


def listed(names: Iterable[str]) -> str:
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
    header = rows[0] if rows else []
    rows = rows[1:]
    remarks = []
    if rows and not text.endswith(("\n", "\r")):
        if len(rows[-1]) < len(header):
            rows = rows[:-1]
            remarks = ["its last row is cut off and left out"]
        else:
            remarks = ["its last row has no line end: its last figure may be cut off"]
    if header in rows:
        raise BadInput(f"{path}: its header comes twice, so two trainings are in it; save each in a file of its own")
    if any(len(row) != len(header) for row in rows):
        raise BadInput(f"{path}: its rows differ in length; {WANTED}")
    if header and not header[0] and "epoch" not in header:
        header[0] = "epoch"  # the index that pandas writes without a name
    if len({*header}) < len(header):
        raise BadInput(f"{path}: {listed(header)}, a name twice; name each column once")
    header = _with_counter(header)
    form = "CSV" if separators == [","] else f"CSV separated by {separators[0]!r}"
    if {"epoch", "step"} <= {*header}:
        named = [dict(zip(header, row, strict=True)) for row in rows]
        if _is_hugging_face(header):
            return _of_hugging_face(path, named, remarks)
        return _by_epoch(path, "Lightning's CSV", named, remarks)
    columns = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    return _checked(path, Table(form, columns, remarks))


def _json_table(path: Path, text: str) -> Table:
    form = "JSON records"
    try:
        value = json.loads(text, object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        try:
            value = [json.loads(line, object_pairs_hook=_named_once) for line in text.splitlines() if line.strip()]
            form = "JSON lines"
        except (ValueError, RecursionError):
            if text.lstrip().startswith("{'"):
                how = "json.dump(history.history, file, default=float)"
                raise BadInput(f"{path}: a Python dict as text, which is not JSON; write it with {how}") from None
            raise BadInput(f"{path}: not JSON ({error}); {WANTED}") from None
    if isinstance(value, dict) and isinstance(value.get("history"), dict):
        value = value["history"]  # the attributes of a History object
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        return _of_hugging_face(path, [row for row in value["log_history"] if isinstance(row, dict)], [])
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = dict.fromkeys(name for row in value for name in row)
        if _is_hugging_face(names):
            return _of_hugging_face(path, value, [])
        columns = {name: [row.get(name) for row in value] for name in names}
        columns = dict(zip(_with_counter([*columns]), columns.values(), strict=True))
        return _checked(path, Table(form, columns, []))
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, list) for column in columns):
        return _checked(path, _spread_validation(Table("Keras's history in JSON", value, [])))
    # DataFrame.to_json(): each column an object from row number to value.
    if columns and all(isinstance(column, dict) and [*column] == [*map(str, range(len(column)))] for column in columns):
        columns = {name: list(column.values()) for name, column in value.items()}
        return _checked(path, Table("pandas's to_json()", columns, []))
    what = f"an object: {', '.join(map(repr, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise BadInput(f"{path}: found {what:.200}; {WANTED}")


def _is_hugging_face(names: Collection[str]) -> bool:
    return {"epoch", "step"} <= {*names} and not {"eval_loss", "train_runtime"}.isdisjoint(names)


def _of_hugging_face(path: Path, rows: list[dict], remarks: list[str]) -> Table:
    """Read a Trainer's log without its last row, which summarizes the whole training."""
    rows = [row for row in rows if _is_missing(row.get("train_runtime", ""))]
    return _by_epoch(path, "Hugging Face's log_history", rows, remarks)


def _with_counter(names: list[str]) -> list[str]:
    """Return the column names, with the one that counts epochs renamed to `epoch`."""
    counters = [name for name in names if name.lower() in ("epoch", "epochs")]
    return ["epoch" if [name] == counters else name for name in names]


def _named_once(pairs: list[tuple]) -> dict:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice in one object")
    return dict(pairs)


def _checked(path: Path, table: Table) -> Table:
    """Return the table. Raises BadInput unless all columns are equally long and `epoch`, if any, counts up by one."""
    if len({len(cells) for cells in table.columns.values()}) > 1 or not all(table.columns.values()):
        raise BadInput(f"{path}: it needs at least one row, and the same number of values in each column; {WANTED}")
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
    """Merge the rows that Lightning and Hugging Face write per epoch; leave out what is logged by step, with a remark.

    If an epoch has several learning rates, the first is used: the one at its start.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    counter = _whole(numbers(path, "epoch", [row.get("epoch") for row in rows]), rows)
    following = math.nan
    for place in reversed(range(len(rows))):
        if math.isnan(counter[place]):  # Lightning's LearningRateMonitor leaves the epoch out: it is the next row's
            counter[place] = following
        following = counter[place]
    for before, after in itertools.pairwise(counter):
        if before > after:
            raise BadInput(
                f"{path}: its epoch counter goes from {before:g} back to {after:g}, so two trainings are in it; "
                "save each in a file of its own"
            )
    steps = numbers(path, "step", [row.get("step") for row in rows])
    last_step = {}
    for epoch, step in zip(counter, steps, strict=True):
        last_step[epoch] = max(step, last_step.get(epoch, step))
    epochs: dict[float, dict[str, list]] = {}
    by_step = set()
    for row, epoch, step in zip(rows, counter, steps, strict=True):
        logged = {name: cell for name, cell in row.items() if role(name) and not _is_missing(cell)}
        if not logged or math.isnan(epoch):
            continue
        if epoch % 1:
            by_step |= logged.keys()
            continue
        if step < last_step[epoch]:  # Lightning logs an epoch's metrics at its last step
            by_step |= {name for name in logged if role(name) != "learning_rate"}
        for name, cell in logged.items():
            epochs.setdefault(epoch, {}).setdefault(name, []).append(cell)
    for figures in epochs.values():
        by_step |= {name for name, cells in figures.items() if len(cells) > 1 and role(name) != "learning_rate"}
    if by_step:
        remarks = [*remarks, f"logged by step and so left out: {', '.join(map(repr, sorted(by_step))):.200}"]
    columns = {"epoch": sorted(epochs)}
    for name in names:
        by_epoch = name not in by_step and any(name in figures for figures in epochs.values())
        if role(name) and by_epoch:
            columns[name] = [epochs[epoch].get(name, [None])[0] for epoch in columns["epoch"]]
    if not epochs:
        raise BadInput(f"{path}: {listed(names)}, and nothing by whole epochs; {WANTED}")
    return _checked(path, Table(form, columns, remarks))


def _whole(counter: list[float], rows: list[dict]) -> list[float]:
    """Return the epochs of `rows`, rounded at Hugging Face's evaluations: accumulated gradients make them fractions.

    They are rounded only with one evaluation per epoch: 0.98, 1.97, 3.0 are the ends of epochs 1, 2, 3.
    """
    evaluated = sorted({epoch for epoch, row in zip(counter, rows, strict=True) if row.get("eval_loss") is not None})
    if not evaluated or any(round(epoch) != number for number, epoch in enumerate(evaluated, start=1)):
        return counter
    return [float(round(epoch)) if epoch in evaluated else epoch for epoch in counter]


def _spread_validation(table: Table) -> Table:
    """Pad the shorter val_ columns of `fit(validation_freq=k)` to one value per epoch, if only one k fits."""
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
    remark = f"validated every {every} epochs, as the lengths of its lists show"
    return table._replace(columns=table.columns | spread, remarks=[remark])


def role(name: str) -> str | None:
    """Return which of ROLES a column of this name has, whatever program wrote it; None if it has none."""
    plain = re.sub(r"[ /]", "_", name.strip().lower().removeprefix("epoch/")).removesuffix("_epoch")
    return next((name for name, pattern in ROLES.items() if re.fullmatch(pattern, plain)), None)


def _is_missing(cell: object) -> bool:
    return str(cell).strip().lower() in MISSING


def _remedy(cell: object) -> str:
    """Return how to write a cell that is not a number."""
    if re.fullmatch(r"-?\d+,\d+", str(cell).strip()):
        return "write a decimal point, not a comma"
    if re.fullmatch(r"[\d.,]+ ?%", str(cell).strip()):
        return "leave the % out: accuracies may be in per cent"
    return WANTED


def numbers(path: Path, name: str, cells: list) -> list[float]:
    """Return the cells as numbers, NaN for a missing one. Raises BadInput."""
    values = []
    for cell in cells:
        try:
            if isinstance(cell, bool | list | dict):
                raise ValueError(f"{cell!r:.40} is not one")
            values.append(math.nan if _is_missing(cell) else float(cell))
        except (ValueError, OverflowError) as error:
            raise BadInput(f"{path}: column {name!r:.60} is not all numbers ({error!s:.80}); {_remedy(cell)}") from None
    return values
