"""Compare trainings, of one framework or of several, and say how sure the comparison is.

    python compare.py runs/keras-seed0 runs/baseline-seed0
    python compare.py keras=runs/keras-seed* torch=runs/baseline-seed* --within 0.01
    python compare.py mine=history.csv@0.72 keras=results/keras-seed*

Exit codes: 0 done (with --within: shown to be equivalent), 1 equivalence not shown, 2 bad input, 3 not comparable,
4 failed (disk full, closed pipe, crash).
"""

from harness import signals

if __name__ == "__main__":
    signals.end_at_once("compare.py")  # before the next imports, which take seconds

import argparse
import contextlib
import glob
import os
import sys
from pathlib import Path

import plots
from callbacks import SCHEDULES
from harness import comparability, files, histories
from harness.console import Parser, command, complain, in_one_line, number, path_type, say, table
from harness.errors import BadInput
from harness.figures import accuracy_difference, cut_epochs, run_figures
from harness.histories import Training
from harness.intervals import Difference, Estimate, estimate
from options import Options

# What is printed of each run, and the formats for one run and for the mean of several.
FIGURES = {
    "epochs": ("g", ".1f"),
    "best epoch": ("g", ".1f"),
    "best val_loss": (".4f", ".4f"),
    "val_accuracy there": (".4f", ".4f"),
    "test accuracy": (".4f", ".4f"),
    "learning-rate cuts": ("g", ".1f"),
    "mean seconds per epoch": (".1f", ".1f"),
    "mean images per second": (",.0f", ",.0f"),
}
TEST, VALIDATION = "test accuracy", "val_accuracy there"
CUTTING = [name for name, schedule in SCHEDULES.items() if schedule.cutting]
# The options that decide a figure, but for those in which repetitions of one training differ.
SETTINGS = {name: default for name, default in Options().defaults().items() if name not in ("seed", "init_weights")}
SETTINGS["epochs"] = Options.epochs
PICTURE, CONTENT = "comparison.png", "comparison.json"
KEYS = {"groups", "within", "equivalent"}  # by which an earlier CONTENT is known


@command("compare.py", failed=4)
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    return compare(parse_arguments(argv))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Declare the flags and return their values."""
    parser = Parser("compare.py", __doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN[@ACCURACY]",
        help="a run's directory, or a training history (CSV, JSON) from Keras, Lightning, timm, fastai, Hugging Face "
        "or pandas; LABEL=GLOB makes a group; @0.7236 gives a bare history its test accuracy",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--mixed", action="store_true", help="pool runs that do not belong together, and say so")
    parser.add_argument(
        "--within",
        type=number(float, "(0, 1]"),
        metavar="PART",
        help="test two groups for equivalence, and tell by the exit code: the 95%% interval of the difference of their "
        "test accuracies must lie within plus or minus PART (0.01 is one point); by validation accuracy at the best "
        "epoch where not every run has a test accuracy",
    )
    parser.add_argument("--out", type=path_type, default=".", metavar="DIR", help=f"where {PICTURE} and {CONTENT} go")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> int:
    """Print the comparison, then write its two files; return the exit code."""
    groups = read_groups(args.runs)
    if args.within is not None and len(groups) != 2:
        raise BadInput(f"--within {args.within:g}: needs two groups, not {len(groups)}; name them LABEL=GLOB")
    if args.within is not None:
        comparability.refuse_copies(*groups.values())
    notes = pooled(groups, args.mixed)
    not_comparable, settings = comparability.differences(groups, SETTINGS)
    notes += not_comparable + settings + comparability.repeated(groups) + comparability.unknown(groups)
    figures = {label: [run_figures(run, CUTTING) for run in group] for label, group in groups.items()}
    estimates = {label: {name: over_runs(found, name) for name in FIGURES} for label, found in figures.items()}
    judged_by = TEST if all(run[TEST] is not None for found in figures.values() for run in found) else VALIDATION
    accuracies = [[run[judged_by] for run in found] for found in figures.values()]
    difference = None
    if len(groups) == 2 and not not_comparable:
        difference = accuracy_difference(*groups.values(), *accuracies)
    equivalent = None
    if args.within is not None and not not_comparable:
        equivalent = difference is not None and difference.within(args.within)

    for line in histories.how_read(groups):
        complain(line)
    if notes:
        say(*notes, "")
    say(table({label: cells(figures[label], estimates[label]) for label in groups}, args.markdown))
    if any(len(group) > 1 for group in groups.values()):
        say("\nOver several runs: mean ± standard deviation; the interval is the mean's.")
    if not_comparable:
        say("\nNot comparable, so no difference is stated.")
    elif len(groups) == 2:
        say("", *verdict(difference, figures, estimates, judged_by, args.within or 0.01))

    content = {
        "groups": {
            label: {
                "runs": [{"path": run.path} | found for run, found in zip(group, figures[label], strict=True)],
                "estimates": {name: found and found._asdict() for name, found in estimates[label].items()},
            }
            for label, group in groups.items()
        },
        "notes": notes,
        "comparable": not not_comparable,
        "judged_by": judged_by,
        "difference": difference and difference._asdict(),
        "within": args.within,
        "equivalent": equivalent,
    }
    write(Path(args.out), groups, content)
    if not_comparable:
        return 3
    return 1 if equivalent is False else 0


def read_groups(arguments: list[str]) -> dict[str, list[Training]]:
    """Read what each `[LABEL=]GLOB[@ACCURACY]` names, grouped by label; without one, by the glob itself."""
    groups: dict[str, list[Training]] = {}
    for argument in arguments:
        label, equals, pattern = argument.partition("=")
        if not equals or os.path.exists(os.path.expanduser(argument)):
            label = pattern = argument
        paths, accuracy = matches(pattern), None
        if not paths and "@" in pattern:
            pattern, _, text = pattern.rpartition("@")
            paths, accuracy, label = matches(pattern), given_accuracy(argument, text), label if equals else pattern
        label = in_one_line(label)
        if not (label and paths):
            raise BadInput(f"{argument}: no such run; pass a run's directory, a training history, or LABEL=GLOB")
        runs = [histories.read(Path(path)) for path in paths]
        if accuracy is not None:
            if len(runs) > 1 or runs[0].config or runs[0].metrics:
                raise BadInput(f"{argument}: @ gives one bare history its test accuracy; leave it out here")
            runs = [runs[0]._replace(metrics={"test_accuracy": accuracy})]
        groups.setdefault(label, []).extend(runs)
    # As everywhere, the stand-in's figures are named as such: in the table, the picture, the file.
    stand_in = {label for label, group in groups.items() if any(map(comparability.of_stand_in, group))}
    return {f"{label} ({comparability.STAND_IN})" if label in stand_in else label: groups[label] for label in groups}


def matches(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)  # a shell leaves the ~ of LABEL=~/GLOB alone
    return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))


def given_accuracy(argument: str, text: str) -> float:
    try:
        return number(float, "[0, 1]")(text)
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{argument}: no such run, and as a test accuracy {error}; write 72.36 % as 0.7236") from None


def pooled(groups: dict[str, list[Training]], mixed: bool) -> list[str]:
    """Return what is to be said of runs in a group that do not belong together. Raises BadInput unless `mixed`."""
    found = {label: comparability.faults(group, SETTINGS) for label, group in groups.items()}
    said = [f"{label}: {'; '.join(faults)}" for label, faults in found.items() if faults]
    if said and not mixed:
        raise BadInput(f"{'; '.join(said):.600}; leave such runs out, or pool them all the same by --mixed")
    return [f"Pooled all the same (--mixed): {line}." for line in said]


def claim(out: Path) -> None:
    """Make the folder `out`. Raises BadInput rather than overwrite there the files of another program."""
    files.make_folder(out)
    earlier = {}
    with contextlib.suppress(BadInput):
        earlier = files.read_json(out / CONTENT)
    if not earlier.keys() >= KEYS and ((out / CONTENT).exists() or (out / PICTURE).exists()):
        raise BadInput(f"--out {out}: has a {CONTENT} or {PICTURE} that is not compare.py's own; pass another --out")


def write(out: Path, groups: dict[str, list[Training]], content: dict) -> None:
    """Write comparison.json and comparison.png. Raises BadInput rather than overwrite those of another program."""
    claim(out)
    runs = [run for group in groups.values() for run in group]
    l2 = all(comparability.facts(run, SETTINGS).get("l2") for run in runs)
    own = all(run.config or "learning_rate_after_epoch" in run.metrics for run in runs)
    shown = {label: [run.history for run in group] for label, group in groups.items()}
    loss_name = "loss with L2 penalty" if l2 else "loss"
    rate_name = "learning rate before the epoch" if own else "learning rate as logged in each epoch"
    files.write_json(out / CONTENT, content)
    files.write_picture(out / PICTURE, lambda: plots.overlay(shown, loss_name, rate_name))


def over_runs(figures: list[dict], name: str) -> Estimate | None:
    values = [run[name] for run in figures if run[name] is not None]
    return estimate(values, 0, 1) if name in (TEST, VALIDATION) else estimate(values)


def verdict(difference: Difference | None, figures: dict, estimates: dict, judged_by: str, margin: float) -> list[str]:
    """Say how two groups differ, and where a single run lies among the other group's."""
    (first, a), (second, b) = ((label, found[judged_by]) for label, found in estimates.items())
    if difference is None:
        return ["No difference of accuracies: a group has none of test and none of validation."]
    what, lines = "Test accuracy", []
    if judged_by == VALIDATION:
        what = "Validation accuracy at the best epoch"
        lines.append("Judged by validation accuracy at the best epoch, since not every run has a test accuracy.")
    for label, found in ((first, a), (second, b)):
        if found.n < len(figures[label]):
            lines.append(
                f"Only {found.n} of the {len(figures[label])} runs of {label} have such an accuracy, and count."
            )
    lines.append(f"{what}, {second} minus {first}: {difference.in_words(margin)}")
    for label, one, among, several in ((first, a, second, b), (second, b, first, a)):
        if len(figures[label]) == 1 < several.n:
            below = sum(run[judged_by] is not None and run[judged_by] < one.mean for run in figures[among])
            lines.append(f"{label} is one run. Of the runs of {among}, {several.place(one.mean, below)}")
    return lines


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
        if found is None and name == "learning-rate cuts" and any(run["schedule"] for run in figures):
            column[name] = "schedule"
        if name == TEST:
            interval = found and found.interval
            column["  its 95 % interval"] = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-"
        if name == "learning-rate cuts":
            column["  after epochs"] = cut_epochs([run["cut after epochs"] for run in figures])
    return column


if __name__ == "__main__":
    sys.exit(main())
