"""Compare trainings, of one framework or of several, and say how sure the comparison is.

    python compare.py runs/keras-seed0 runs/baseline-seed0
    python compare.py keras=runs/keras-seed* torch=runs/baseline-seed* --within 0.01

Exit codes: 0 done (with --within: shown to be equivalent), 1 equivalence not shown, 2 bad input.
"""

import argparse
import glob
import itertools
import math
import os
import statistics
import sys
from pathlib import Path

import plots
from callbacks import SCHEDULES
from harness import files, histories
from harness.console import Parser, command, number
from harness.errors import BadInput
from harness.histories import Training
from harness.intervals import Difference, Estimate, estimate, welch

# What is printed of each run, and the formats for one run and for the mean of several.
FIGURES = {
    "epochs": ("g", ".1f"),
    "best epoch": ("g", ".1f"),
    "best val_loss": (".4f", ".4f"),
    "val_accuracy there": (".4f", ".4f"),
    "test accuracy": (".4f", ".4f"),
    "learning-rate cuts": ("g", ".1f"),
    "seconds per epoch": (".1f", ".1f"),
    "images per second": (",.0f", ",.0f"),
}


CUTTING = [name for name, schedule in SCHEDULES.items() if schedule.cutting]


@command("compare.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    equivalent = compare(parse_arguments(argv))
    return 1 if equivalent is False else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Declare the flags and return their values."""
    parser = Parser(
        prog="compare.py",
        description="Compare trainings of one framework or of several, and say how sure the comparison is.",
        epilog="exit codes: 0 done (with --within: shown to be equivalent), 1 equivalence not shown, 2 bad input",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="a run's directory, a history.csv, or Keras's history.history saved as JSON; LABEL=GLOB makes a group",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--within",
        type=number(float, "(0, 1]"),
        metavar="PART",
        help="test two groups for equivalence, and tell by the exit code: the 95%% interval of the difference of their "
        "test accuracies must lie within plus or minus PART (0.01 is one point)",
    )
    parser.add_argument("--out", type=Path, default=".", metavar="DIR", help="where comparison.png and .json go")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> bool | None:
    """Print the comparison and write its two files; return the verdict of --within, None if it was not asked for."""
    groups = read_groups(args.runs)
    if args.within is not None and len(groups) != 2:
        raise BadInput(f"--within {args.within:g}: needs two groups, not {len(groups)}; name them LABEL=GLOB")
    figures = {label: [run_figures(run) for run in group] for label, group in groups.items()}
    estimates = {
        label: {name: estimate([found[name] for found in group if found[name] is not None]) for name in FIGURES}
        for label, group in figures.items()
    }
    difference = test_accuracy_difference(*groups.values()) if len(groups) == 2 else None
    equivalent = None if args.within is None else difference is not None and difference.within(args.within)

    content = {
        "groups": {
            label: {
                "runs": [{"path": run.path} | found for run, found in zip(group, figures[label], strict=True)],
                "estimates": {name: found and found._asdict() for name, found in estimates[label].items()},
            }
            for label, group in groups.items()
        },
        "test_accuracy_difference": difference and difference._asdict(),
        "within": args.within,
        "equivalent": equivalent,
    }
    picture = plots.overlay({label: [run.history for run in group] for label, group in groups.items()})
    files.make_folder(args.out)
    files.write_json(args.out / "comparison.json", content)
    files.write_bytes(args.out / "comparison.png", picture)

    print(table({label: cells(figures[label], estimates[label]) for label in groups}, args.markdown))
    if any(len(group) > 1 for group in groups.values()):
        print("\nOver several runs: mean ± standard deviation; the interval is the mean's.")
    if len(groups) == 2:
        print("", difference_in_words(difference, *groups, args.within or 0.01), sep="\n")
    return equivalent


def read_groups(arguments: list[str]) -> dict[str, list[Training]]:
    """Read what each `[LABEL=]GLOB` names, grouped by label; without one, by the argument itself."""
    paths: dict[str, list[str]] = {}
    for argument in arguments:
        label, equals, pattern = argument.partition("=")
        if not equals or Path(argument).exists():
            label = pattern = argument
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not (label and found):
            raise BadInput(f"{argument}: no such run; pass a run's directory, its history.csv, or LABEL=GLOB")
        paths.setdefault(label, []).extend(found)
    for label, group in paths.items():
        if len({os.path.realpath(path) for path in group}) < len(group):
            raise BadInput(f"{label}: names a run twice ({', '.join(group):.200}); name each run once")
    return {label: [histories.read(Path(path)) for path in group] for label, group in paths.items()}


def run_figures(run: Training) -> dict[str, float | list[int] | None]:
    """The figures of one run, epochs counted from 1; None for what it lacks."""
    history = run.history
    losses = [loss for loss in history.get("val_loss", []) if math.isfinite(loss)]
    best = history["val_loss"].index(min(losses)) if losses else None
    cuts = learning_rate_cuts(run)
    return {
        "epochs": len(history["loss"]),
        "best epoch": None if best is None else best + 1,
        "best val_loss": None if best is None else history["val_loss"][best],
        "val_accuracy there": None if best is None or "val_accuracy" not in history else history["val_accuracy"][best],
        "test accuracy": test_accuracy(run),
        "learning-rate cuts": None if cuts is None else len(cuts),
        "cut after epochs": cuts,
        "seconds per epoch": metric(run, "seconds_per_epoch"),
        "images per second": metric(run, "images_per_second"),
    }


def learning_rate_cuts(run: Training) -> list[int] | None:
    """The epochs, from 1, after which the rate was lower; of the last epoch only metrics.json can tell.

    None without rates, or where a schedule changed the rate with each step.
    """
    cutting = "schedule" not in run.metrics or run.metrics["schedule"] in CUTTING
    if "learning_rate" not in run.history or not cutting:
        return None
    rates = run.history["learning_rate"] + metric_values(run, "learning_rate_after_epoch")[-1:]
    return [epoch for epoch, (before, after) in enumerate(itertools.pairwise(rates), start=1) if after < before]


def test_accuracy(run: Training) -> float | None:
    return metric(run, "test_accuracy")


def metric(run: Training, name: str) -> float | None:
    """A number of the run's metrics.json, or the median of a list of them; None if it is not there."""
    values = metric_values(run, name)
    return statistics.median(values) if values else None


def metric_values(run: Training, name: str) -> list[float]:
    value = run.metrics.get(name, [])
    values = value if isinstance(value, list) else [value]
    if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise BadInput(f"{run.path}: metrics.json has {value!r:.60} for {name}; mend it, or delete the file")
    return values


def test_accuracy_difference(first: list[Training], second: list[Training]) -> Difference | None:
    """Compare by pairs if each run of the smaller group has a partner in the other, else by Welch's method.

    Partners have the same initial weights, or else the same seed. None if a group has no test accuracy at all.
    """
    first, second = ([run for run in group if test_accuracy(run) is not None] for group in (first, second))
    for shared in ("initial_weights", "seed"):
        ones, others = ({run.metrics.get(shared): run for run in group} for group in (first, second))
        partners = [value for value in ones if value is not None and value in others]
        unique = len(ones) == len(first) and len(others) == len(second)
        if unique and len(partners) == min(len(first), len(second)) > 0:
            found = estimate([test_accuracy(others[value]) - test_accuracy(ones[value]) for value in partners])
            pairs = "1 pair" if found.n == 1 else f"{found.n} pairs"
            method = f"{pairs} with the same {shared.replace('_', ' ')}"
            if len(first) != len(second):
                method += f", {abs(len(first) - len(second))} without a partner left out"
            return Difference(found.mean, found.interval, method)

    a, b = (estimate([test_accuracy(run) for run in group]) for group in (first, second))
    if a is None or b is None:
        return None
    return Difference(b.mean - a.mean, welch(a, b), f"Welch's method, {a.n} and {b.n} independent runs")


def difference_in_words(difference: Difference | None, first: str, second: str, margin: float) -> str:
    if difference is None:
        return "No difference of test accuracies: a group has none in its metrics.json."
    return f"Test accuracy, {second} minus {first}: {difference.in_words(margin)}"


def cells(figures: list[dict], estimates: dict[str, Estimate | None]) -> dict[str, str]:
    """One group's column of the table, by row; a dash for what it lacks."""
    column = {"runs": str(len(figures))}
    for name, (one, several) in FIGURES.items():
        found = estimates[name]
        if found is None:
            column[name] = "-"
        elif found.sd is None:
            column[name] = f"{found.mean:{one}}"
        else:
            column[name] = f"{found.mean:{several}} ± {found.sd:{several}}"
        if found is not None and found.n < len(figures):
            column[name] += f" (n = {found.n})"
        if name == "test accuracy":
            interval = found and found.interval
            column["  its 95 % interval"] = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-"
        if name == "learning-rate cuts":
            column["  after epochs"] = cut_epochs([run["cut after epochs"] for run in figures])
    return column


def cut_epochs(cuts: list[list[int] | None]) -> str:
    """The epochs of one run's cuts, or between which epochs the first cut of several runs lies."""
    cuts = [epochs for epochs in cuts if epochs]
    if len(cuts) < 2:
        return ", ".join(map(str, cuts[0])) if cuts else "-"
    first = [epochs[0] for epochs in cuts]
    return f"first {min(first)} to {max(first)}"


def table(columns: dict[str, dict[str, str]], markdown: bool) -> str:
    """Lay the cells out, figures down and groups across."""
    names = next(iter(columns.values()))
    rows = [["", *columns], *([name, *(column[name] for column in columns.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, ["-" * max(width, 3) for width in widths])
    lines = [(" | " if markdown else "  ").join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(f"| {line} |" if markdown else line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
