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
from typing import NamedTuple

import numpy as np

import plots
import runs
from flags import Parser, number

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


class Estimate(NamedTuple):
    """A mean over n values; their standard deviation and the mean's 95 % interval are None where n is 1."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


class Difference(NamedTuple):
    """The second group's test accuracy minus the first's, its 95 % interval (None: too few runs), how it was got."""

    mean: float
    interval: tuple[float, float] | None
    method: str

    def within(self, margin: float) -> bool:
        return self.interval is not None and -margin < self.interval[0] <= self.interval[1] < margin


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    try:
        args = parse_arguments(argv)
    except SystemExit as stop:  # argparse's, after --help or one line on stderr
        return stop.code
    try:
        equivalent = compare(args)
    except (runs.RunError, OSError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
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
        raise runs.RunError(f"--within {args.within:g}: needs two groups, not {len(groups)}; name them LABEL=GLOB")
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
    runs.create(args.out)
    runs.write_json(args.out / "comparison.json", content)
    runs.write_bytes(args.out / "comparison.png", picture)

    print(table({label: cells(figures[label], estimates[label]) for label in groups}, args.markdown))
    if any(len(group) > 1 for group in groups.values()):
        print("\nOver several runs: mean ± standard deviation; the interval is the mean's.")
    if len(groups) == 2:
        print("", in_words(difference, *groups, args.within or 0.01), sep="\n")
    return equivalent


def read_groups(arguments: list[str]) -> dict[str, list[runs.Run]]:
    """Read what each `[LABEL=]GLOB` names, grouped by label; without one, by the argument itself."""
    paths: dict[str, list[str]] = {}
    for argument in arguments:
        label, equals, pattern = argument.partition("=")
        if not equals or Path(argument).exists():
            label = pattern = argument
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not (label and found):
            raise runs.RunError(f"{argument}: no such run; pass a run's directory, its history.csv, or LABEL=GLOB")
        paths.setdefault(label, []).extend(found)
    for label, group in paths.items():
        if len({os.path.realpath(path) for path in group}) < len(group):
            raise runs.RunError(f"{label}: names a run twice ({', '.join(group):.200}); name each run once")
    return {label: [runs.read(Path(path)) for path in group] for label, group in paths.items()}


def run_figures(run: runs.Run) -> dict[str, float | list[int] | None]:
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


def learning_rate_cuts(run: runs.Run) -> list[int] | None:
    """The epochs, from 1, after which the rate was lower; of the last epoch only metrics.json can tell.

    None without rates, or where a schedule changed the rate with each step.
    """
    if "learning_rate" not in run.history or run.metrics.get("schedule", "plateau") != "plateau":
        return None
    rates = run.history["learning_rate"] + metric_values(run, "learning_rate_after_epoch")[-1:]
    return [epoch for epoch, (before, after) in enumerate(itertools.pairwise(rates), start=1) if after < before]


def test_accuracy(run: runs.Run) -> float | None:
    return metric(run, "test_accuracy")


def metric(run: runs.Run, name: str) -> float | None:
    """A number of the run's metrics.json, or the median of a list of them; None if it is not there."""
    values = metric_values(run, name)
    return statistics.median(values) if values else None


def metric_values(run: runs.Run, name: str) -> list[float]:
    value = run.metrics.get(name, [])
    values = value if isinstance(value, list) else [value]
    if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise runs.RunError(f"{run.path}: metrics.json has {value!r:.60} for {name}; mend it, or delete the file")
    return values


def estimate(values: list[float]) -> Estimate | None:
    """Mean, standard deviation, and Student's 95 % interval of the mean; None without values."""
    n = len(values)
    if n < 2:
        return Estimate(n, values[0], None, None) if values else None
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, (mean - half, mean + half))


def test_accuracy_difference(first: list[runs.Run], second: list[runs.Run]) -> Difference | None:
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
            method = f"{found.n} pair{'s' * (found.n > 1)} with the same {shared.replace('_', ' ')}"
            if len(first) != len(second):
                method += f", {abs(len(first) - len(second))} without a partner left out"
            return Difference(found.mean, found.interval, method)

    a, b = (estimate([test_accuracy(run) for run in group]) for group in (first, second))
    if a is None or b is None:
        return None
    mean, method = b.mean - a.mean, f"Welch's method, {a.n} and {b.n} independent runs"
    if a.n == 1 or b.n == 1:
        return Difference(mean, None, method)
    u, v = a.sd**2 / a.n, b.sd**2 / b.n
    # Welch-Satterthwaite. Without any spread the interval is a point, whatever the quantile.
    freedom = (u + v) ** 2 / (u**2 / (a.n - 1) + v**2 / (b.n - 1)) if u + v else 1
    half = t_quantile(freedom) * math.sqrt(u + v)
    return Difference(mean, (mean - half, mean + half), method)


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom, to 1e-8 of it."""
    # None of the six packages has it. With t = sqrt(freedom) * tan(angle) the density is a power of the cosine:
    # Gauss-Legendre integration, and bisection between 1.9 and 12.8 (the limits are 1.960 and, for 1, 12.706).
    nodes, weights = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 1.9, 12.8
    while high - low > 1e-12 * low:
        middle = (low + high) / 2
        half = math.atan(middle / math.sqrt(freedom)) / 2
        above_median = scale * half * (weights @ np.cos(half * (nodes + 1)) ** (freedom - 1))
        low, high = (middle, high) if above_median < 0.475 else (low, middle)
    return low


def in_words(difference: Difference | None, first: str, second: str, margin: float) -> str:
    """Say what the difference is, and whether one of `margin` can be excluded."""
    if difference is None:
        return "No difference of test accuracies: a group has none in its metrics.json."
    text = f"Test accuracy, {second} minus {first}: {difference.mean:+.4f}"
    claim = f"a difference of {100 * margin:g} point{'s' * (margin != 0.01)}"
    if difference.interval is None:
        return f"{text} ({difference.method}).\nNo interval: it takes two runs or pairs; {claim} cannot be excluded."
    low, high = difference.interval
    zero = "zero lies in it" if low <= 0 <= high else "zero lies outside, the groups differ"
    return (
        f"{text}, 95 % interval {low:+.4f} to {high:+.4f} ({difference.method}); {zero}.\n"
        f"{claim.capitalize()} {'can' if difference.within(margin) else 'cannot'} be excluded."
    )


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
