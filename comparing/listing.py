"""A table of many runs: a row for each, with the settings in which they differ."""

import csv
import io
from collections.abc import Collection
from pathlib import Path

from cli.errors import BadInput
from cli.messages import table
from comparing.comparability import DATA, STAND_IN, Rules, all_of_stand_in, facts, of_stand_in
from comparing.figures import run_figures
from comparing.headings import differing_parts
from comparing.histories import Training
from running.code import TRAIN
from running.outcome import FINISHED, outcome, program_of

RUN, VALIDATION, STATE = "run", "val_accuracy", "state"
NAMES = {"data_sha256": "data", "epochs": "--epochs"}  # headings of facts whose own names are unclear or taken


def rows(runs: list[Training], rules: Rules, cutting: Collection[str], complete: bool = False) -> list[dict[str, str]]:
    """Return a row per run, as cells by column, sorted by validation accuracy at the best epoch, highest first.

    The test accuracy does not affect the order. `complete` rows have the whole path, and the data even if all runs
    have the same, since the lines of `shared` are not printed with them.
    """
    settings = [_settings(run, rules) for run in runs]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    # A history of another program has no settings; that does not count as a difference.
    differing = [name for name in names if len({of_run[name] for of_run in settings if name in of_run}) > 1]
    labels, _ = differing_parts([run.path for run in runs])
    if complete:
        labels = [run.path for run in runs]
        differing = [name for name in names if name in differing or name == DATA[0]]
    listed = []
    for run, of_run, label in zip(runs, settings, labels, strict=True):
        figures = run_figures(run, cutting)
        seconds = run.metrics.get("seconds_per_epoch")
        accuracy = figures["val_accuracy there"]
        cells = {RUN: label} | {NAMES.get(name, name): of_run.get(name, "-") for name in differing}
        cells |= {
            VALIDATION: _cell(accuracy, ".4f"),
            "test": _cell(figures["test accuracy"], ".4f"),
            "epochs": str(run.epochs),
            "best": _cell(figures["best epoch"], "d"),
            "minutes": _cell(sum(seconds) / 60 if isinstance(seconds, list) else None, ".1f"),
            STATE: _state(run),
        }
        listed.append((-1.0 if accuracy is None else accuracy, cells))
    return [cells for _, cells in sorted(listed, key=lambda pair: -pair[0])]


def shared(runs: list[Training]) -> list[str]:
    """Return lines on what all runs share and no row shows: their folder, and the stand-in data."""
    _, folder = differing_parts([run.path for run in runs])
    lines = [f"All are in {folder}."] if folder else []
    return [*lines, *all_of_stand_in(runs)]


def as_text(listed: list[dict[str, str]], markdown: bool) -> str:
    """Return the rows as a table, for a terminal or in Markdown."""
    columns = {name: {str(number): cells[name] for number, cells in enumerate(listed, start=1)} for name in listed[0]}
    return table(columns, markdown)


def as_csv(listed: list[dict[str, str]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, [*listed[0]])
    writer.writeheader()
    writer.writerows(listed)
    return buffer.getvalue().rstrip("\r\n")


def _settings(run: Training, rules: Rules) -> dict[str, str]:
    settings = facts(run, rules)
    if program_of(run.config):
        settings["seed"] = run.config["flags"].get("seed")
    if program_of(run.config) == TRAIN:
        settings.pop("draws", None)
    data = settings.get(DATA[0])
    if data:
        settings[DATA[0]] = f"{data[:8]} ({STAND_IN})" if of_stand_in(run) else data[:8]
    return {name: str(value) for name, value in settings.items() if name != DATA[1]}


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _state(run: Training) -> str:
    """Return how the run ended, or why it has not finished; a dash for a history of another program."""
    if not program_of(run.config):
        return "-"
    try:
        end = outcome(Path(run.path))
    except BadInput as error:
        return str(error)
    return end.reason if end.kind == FINISHED else f"{end.kind}: {end.reason}"
