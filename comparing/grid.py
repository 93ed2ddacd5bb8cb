"""Settings trained with the same seeds: the results of each, and its difference from the default, paired by seed."""

import statistics
from collections.abc import Collection
from typing import NamedTuple

from cli.messages import counted
from comparing.figures import metric, run_figures
from comparing.histories import Training
from comparing.intervals import Estimate, estimate

VALIDATION = "val_accuracy there"
CONTENT, PICTURE = "grid.json", "grid.png"


class Setting(NamedTuple):
    """The results of one setting: accuracies and epochs over its seeds, and mean minutes per run.

    `difference` is its validation accuracy minus the default's, over the seeds that both have, with an interval
    corrected for the number of settings; None for the default itself, or if no setting is the default.
    """

    label: str
    validation: Estimate | None
    test: Estimate | None
    epochs: Estimate
    minutes: float | None
    difference: Estimate | None


def settings(groups: dict[str, list[Training]], default: str | None) -> list[Setting]:
    """Return the settings, sorted by mean validation accuracy at the best epoch, highest first."""
    rows = []
    of_seed = {}
    for label, group in groups.items():
        figures = [run_figures(run, ()) for run in group]
        of_seed[label] = {run.config["flags"]["seed"]: one[VALIDATION] for run, one in zip(group, figures, strict=True)}
        minutes = [one for one in map(_minutes, group) if one is not None]
        rows.append(
            Setting(
                label,
                validation=estimate([one[VALIDATION] for one in figures], 0, 1),
                test=estimate([one["test accuracy"] for one in figures], 0, 1),
                epochs=estimate([one["epochs"] for one in figures]),
                minutes=statistics.fmean(minutes) if minutes else None,
                difference=None,
            )
        )
    if default is not None:
        rows = [
            row if row.label == default else row._replace(difference=_from_default(of_seed, row.label, default))
            for row in rows
        ]
    return sorted(rows, key=lambda row: -row.validation.mean)


def _from_default(of_seed: dict[str, dict[int, float]], label: str, default: str) -> Estimate | None:
    """Return the difference of a setting from the default, over the seeds that both have."""
    shared = of_seed[label].keys() & of_seed[default].keys()
    values = [of_seed[label][seed] - of_seed[default][seed] for seed in sorted(shared)]
    return estimate(values, comparisons=len(of_seed) - 1)


def as_columns(rows: list[Setting], default: str | None) -> dict[str, dict[str, str]]:
    """Return the cells of the table, by heading and setting."""
    headings = {
        "val_accuracy": lambda row: row.validation.spread(),
        "n": lambda row: str(row.validation.n),
        "test": lambda row: row.test.spread(),
        "epochs": lambda row: f"{row.epochs.mean:.1f}",
        "minutes": lambda row: "-" if row.minutes is None else f"{row.minutes:.1f}",
    }
    if default is not None:
        headings["minus the default"] = lambda row: _difference(row.difference)
    return {heading: {row.label: cell(row) for row in rows} for heading, cell in headings.items()}


def in_words(rows: list[Setting], default: str | None, lacking: Collection[str] = (), runs: int = 0) -> list[str]:
    """Return lines on the best setting by validation, what the table's differences are, and what makes them uncertain.

    `lacking` are the settings without a finished run; `runs` is the number of runs planned for each setting.
    """
    best = rows[0]
    most = max(runs, *(row.validation.n for row in rows))
    lines = [f"Best by validation of {counted(len(rows), 'setting')}: {best.label} ({best.validation.spread()})."]
    if lacking:
        lines.append(f"No run has finished for {', '.join(lacking)}.")
    fewer = [f"{row.label} ({row.validation.n})" for row in rows if row.validation.n < most]
    if fewer:
        lines.append(f"Not all of the {counted(most, 'run')} have finished for {', '.join(fewer)}: such means are over")
        lines.append("other seeds, and a seed can be worth more than a setting.")
    if most == 1:
        lines.append("One seed each: the order may be due to chance. Pass several --seeds.")
    elif default is None:
        lines.append("No difference is stated, since no setting of the grid is the default.")
    elif len(rows) > 1:
        others = len(rows) - 1
        corrected = f" that are corrected for {others} comparisons (Bonferroni)" if others > 1 else ""
        lines.append(f"Differences from the default, {default}, are over pairs of runs with the same seed,")
        lines.append(f"with 95 % intervals{corrected}.")
    return lines


def _minutes(run: Training) -> float | None:
    seconds = metric(run, "seconds_per_epoch")
    return None if seconds is None else seconds * run.epochs / 60


def _difference(one: Estimate | None) -> str:
    if one is None:
        return "-"
    if one.interval is None:
        return f"{one.mean:+.4f}"
    return f"{one.mean:+.4f} ({one.interval[0]:+.4f} to {one.interval[1]:+.4f})"
