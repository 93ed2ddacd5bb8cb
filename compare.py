"""Compare training runs, from one framework or several, and report how certain the comparison is.

    python compare.py runs/keras-seed0 runs/baseline-seed0
    python compare.py keras=runs/keras-seed* torch=runs/baseline-seed* --within 0.01
    python compare.py mine=history.csv@0.72 keras=results/keras-seed*
    python compare.py --list runs/*

Exit codes: 0 done (with --within: shown to be equivalent), 1 equivalence not shown, 2 bad input, 3 not comparable,
4 failed (disk full, closed pipe, crash).
"""

import argparse
import contextlib
import glob
import os
import sys
from pathlib import Path

from callbacks import SCHEDULES
from cli.command import command
from cli.errors import BadInput
from cli.flags import named
from cli.messages import complain, in_one_line, say, table
from cli.parser import Parser, number, path_type
from comparing import comparability, grid, histories, listing
from comparing.comparability import Rules
from comparing.figures import accuracy_difference, cut_epochs, run_figures
from comparing.headings import differing_parts
from comparing.histories import Training
from comparing.intervals import Difference, Estimate, estimate
from options import Options
from running import files

# The figures printed for each run, with their formats for one run and for the mean of several.
FIGURES = {
    "epochs": ("g", ".1f"),
    "best epoch": ("g", ".1f"),
    "best val_loss": (".4f", ".4f"),
    "val_accuracy there": (".4f", ".4f"),
    "test accuracy": (".4f", ".4f"),
    "learning-rate cuts": ("g", ".1f"),
    "mean seconds per epoch": (".1f", ".1f"),
    "images per second": (",.0f", ",.0f"),
}
TEST, VALIDATION = "test accuracy", "val_accuracy there"
CUTTING = [name for name, schedule in SCHEDULES.items() if schedule.cutting]
POOL = "leave some out, or pass --mixed to pool them"
WIDEST = 120  # columns; a wider table has one row per group
PICTURE, CONTENT = "comparison.png", "comparison.json"
OWN_FILES = {PICTURE, CONTENT, grid.PICTURE, grid.CONTENT}  # that lie beside runs but are not runs
KEYS = {"groups", "within", "equivalent"}  # by which an earlier CONTENT is recognized


@command("compare.py", failed=4)
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    args = parse_arguments(argv)
    return show_list(args) if args.list else compare(args)


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
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the runs, one per row, by validation accuracy at the best epoch, with the settings that differ",
    )
    parser.add_argument("--csv", action="store_true", help="with --list: print the rows as CSV")
    parser.add_argument(
        "--mixed", action="store_true", help="pool runs whose data, code or settings differ, and list the differences"
    )
    parser.add_argument(
        "--within",
        type=number(float, "(0, 1]"),
        metavar="MARGIN",
        help="test two groups for equivalence and report the result in the exit code: the 95%% interval of the "
        "difference in test accuracy must lie within plus or minus MARGIN (0.01 is one point); validation accuracy at "
        "the best epoch is used if any run has no test accuracy",
    )
    parser.add_argument(
        "--out", type=path_type, default="comparison", metavar="DIR", help=f"where {PICTURE} and {CONTENT} go"
    )
    args = parser.parse_args(argv)
    if len(args.runs) > 1:  # a shell's pattern
        args.runs = [run for run in args.runs if Path(run).name not in OWN_FILES] or args.runs
    if args.csv and not args.list:
        parser.error("--csv: needs --list")
    if args.csv and args.markdown:
        parser.error("--csv: not with --markdown; leave one of them out")
    if args.list and (args.mixed or args.within is not None):
        parser.error("--list: compares nothing, so not with --mixed or --within; leave it or them out")
    return args


def show_list(args: argparse.Namespace) -> int:
    """Print one row per run, and a line for each run that cannot be read; return the exit code."""
    runs = []
    code = 0
    for argument in args.runs:
        paths = [Path(path) for path in matches(argument)]
        if not paths:
            raise BadInput(f"{argument}: no such run; pass runs' directories, or a pattern")
        for path in paths:
            try:
                runs.append(histories.read(path))
            except BadInput as error:
                complain(f"left out: {error}")
                code = error.code
    if not runs:
        raise BadInput(f"{' '.join(args.runs):.200}: no run that can be read")
    for run in runs:
        for remark in run.remarks:
            complain(f"{run.path}: {remark}")
    listed = listing.rows(runs, rules_of_options(), CUTTING, complete=args.csv)
    if args.csv:
        say(listing.as_csv(listed))
    else:
        say(*listing.shared(runs), listing.as_text(listed, args.markdown))
    return code


def compare(args: argparse.Namespace) -> int:
    """Print the comparison, then write its two files; return the exit code."""
    groups, shared = read_groups(args.runs)
    rules = rules_of_options()
    if args.within is not None and len(groups) != 2:
        raise BadInput(f"--within {args.within:g}: needs two groups, not {len(groups)}; name them LABEL=GLOB")
    copies = comparability.in_both(groups)
    if copies and args.within is not None:
        one, other = copies[0]
        raise BadInput(f"--within: {other.path} is a copy of {one.path}; leave it out of one group")
    notes = shared + pooled(groups, rules, args.mixed)
    not_comparable, settings = comparability.differences(groups, rules)
    notes += not_comparable + settings + comparability.surroundings(groups)
    notes += comparability.repeated(groups) + comparability.stopped_otherwise(groups) + comparability.unknown(groups)
    figures = {label: [run_figures(run, CUTTING) for run in group] for label, group in groups.items()}
    estimates = {label: {name: over_runs(runs, name) for name in FIGURES} for label, runs in figures.items()}
    judged_by = TEST if all(run[TEST] is not None for runs in figures.values() for run in runs) else VALIDATION
    accuracies = {label: [run[judged_by] for run in runs] for label, runs in figures.items()}
    first, *others = groups
    differences = {}  # of each other group from the first
    if not not_comparable and not copies:
        for label in others:
            differences[label] = accuracy_difference(
                groups[first], groups[label], accuracies[first], accuracies[label], comparisons=len(others)
            )
    difference = differences.get(others[0]) if len(others) == 1 else None
    equivalent = None
    if args.within is not None and not not_comparable:
        equivalent = difference is not None and difference.within(args.within)

    for line in histories.how_read(groups):
        complain(line)
    if notes:
        say(*notes, "")
    say(in_width({label: cells(figures[label], estimates[label]) for label in groups}, args.markdown))
    if any(len(group) > 1 for group in groups.values()):
        say("\nOver several runs: mean ± standard deviation; the interval is the mean's.")
    if not_comparable:
        say("\nNot comparable, so no difference is stated.")
    elif copies:
        say("\nGroups that share a run are not independent, so no difference is stated.")
    elif len(others) == 1:
        say("", *verdict(difference, figures, estimates, judged_by, args.within or 0.01))
    elif others:
        pairs = [(first, label) for label in others]
        say("", *against_first(differences, first, judged_by), *places(pairs, figures, estimates, judged_by))

    content = {
        "groups": {
            label: {
                "runs": [{"path": run.path} | of_run for run, of_run in zip(group, figures[label], strict=True)],
                "estimates": {name: one and one._asdict() for name, one in estimates[label].items()},
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
    if len(others) > 1 and differences:
        content["differences from the first"] = {label: one and one._asdict() for label, one in differences.items()}
    write(Path(args.out), groups, rules, content, caption(groups, estimates))
    say(f"\nPicture: {os.path.join(args.out, PICTURE)}", f"Figures: {os.path.join(args.out, CONTENT)}")
    if not_comparable:
        return 3
    return 1 if equivalent is False else 0


def rules_of_options() -> Rules:
    """Return the defaults and the loss options that a comparison uses."""
    repeats = named(Options, "repeats")
    defaults = {name: default for name, default in Options().defaults().items() if name not in repeats}
    return Rules(defaults | {"epochs": Options.epochs}, named(Options, "in_loss"))


def read_groups(arguments: list[str]) -> tuple[dict[str, list[Training]], list[str]]:
    """Read the runs that each `[LABEL=]GLOB[@ACCURACY]` names; return them by label, and lines on what all share."""
    groups: dict[str, list[Training]] = {}
    unnamed = {}
    for argument in arguments:
        label, equals, pattern = labelled(argument)
        paths = matches(pattern)
        accuracy = None
        if not paths and "@" in pattern:
            pattern, _, text = pattern.rpartition("@")
            paths = matches(pattern)
            accuracy = given_accuracy(argument, text)
            label = label if equals else pattern
        if not equals:
            unnamed[in_one_line(label)] = pattern
        label = in_one_line(label)
        if not (label and paths):
            raise BadInput(f"{argument}: no such run; pass a run's directory, a training history, or LABEL=GLOB")
        runs = [histories.read(Path(path)) for path in paths]
        if accuracy is not None:
            if len(runs) > 1 or runs[0].config or runs[0].metrics:
                raise BadInput(f"{argument}: @ gives one bare history its test accuracy; leave it out here")
            runs = [runs[0]._replace(metrics={"test_accuracy": accuracy})]
        groups.setdefault(label, []).extend(runs)
    return with_headings(groups, unnamed)


def labelled(argument: str) -> tuple[str, str, str]:
    """Return the label, "=" and the pattern; without a label, the argument, "" and the argument again.

    A label may contain =: it ends at the first = followed by a pattern that matches a path, or else at the first =.
    """
    if "=" not in argument or os.path.exists(os.path.expanduser(argument)):
        return argument, "", argument
    ends = [place for place, character in enumerate(argument) if character == "="]
    splits = [(argument[:end], "=", argument[end + 1 :]) for end in ends]
    return next((one for one in splits if matches(one[2]) or matches(one[2].rpartition("@")[0])), splits[0])


def with_headings(
    groups: dict[str, list[Training]], unnamed: dict[str, str]
) -> tuple[dict[str, list[Training]], list[str]]:
    """Shorten the headings of the `unnamed` groups (label: path) to the parts that differ; mark stand-in data.

    Returns the groups by heading, and lines on what they share.
    """
    parts, folder = differing_parts([*unnamed.values()])
    shorter = dict(zip(unnamed, map(in_one_line, parts), strict=True))
    headings = {label: shorter.get(label, label) for label in groups}
    shared = []
    if len({*headings.values()}) < len(groups):  # a LABEL equals a shortened path
        headings = {label: label for label in groups}
    elif folder:
        shared.append(f"{'All' if len(unnamed) == len(groups) else 'Groups without a LABEL'} are in {folder}.")
    # As everywhere, figures from stand-in data are marked: in the table, the picture and the file.
    stand_in = [label for label, group in groups.items() if any(map(comparability.of_stand_in, group))]
    marked = comparability.all_of_stand_in(run for group in groups.values() for run in group)
    if len(groups) > 1 and marked:
        shared += marked
    else:
        headings |= {label: f"{headings[label]} ({comparability.STAND_IN})" for label in stand_in}
    return {headings[label]: group for label, group in groups.items()}, shared


def matches(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)  # a shell does not expand the ~ in LABEL=~/GLOB
    if os.path.exists(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern) if Path(path).name not in OWN_FILES)


def given_accuracy(argument: str, text: str) -> float:
    try:
        return number(float, "[0, 1]")(text)
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{argument}: no such run, and the test accuracy {error}; write 72.36 % as 0.7236") from None


def pooled(groups: dict[str, list[Training]], rules: Rules, mixed: bool = False, remedy: str = POOL) -> list[str]:
    """Return a note on each group with runs that do not belong together. Raises BadInput unless `mixed`."""
    faults = {label: comparability.faults(group, rules) for label, group in groups.items()}
    notes = [f"{label}: {'; '.join(of_group)}" for label, of_group in faults.items() if of_group]
    if notes and not mixed:
        lines = [fault for of_group in faults.values() for fault in of_group]
        raise BadInput("\n  ".join([f"these runs do not belong together; {remedy}:", *lines]))
    return [f"Pooled although they differ (--mixed): {note}." for note in notes]


def claim(out: Path) -> None:
    """Create the folder `out`. Raises BadInput if files of another program would be overwritten there."""
    files.make_folder(out)
    earlier = {}
    with contextlib.suppress(BadInput):
        earlier = files.read_json(out / CONTENT)
    if not earlier.keys() >= KEYS and ((out / CONTENT).exists() or (out / PICTURE).exists()):
        raise BadInput(f"--out {out}: has a {CONTENT} or {PICTURE} that compare.py did not write; pass another --out")


def write(out: Path, groups: dict[str, list[Training]], rules: Rules, content: dict, title: str) -> None:
    """Write comparison.json and comparison.png. Raises BadInput instead of overwriting those of another program."""
    import plots  # importing matplotlib takes most of a second, and --list does not need it

    claim(out)
    runs = [run for group in groups.values() for run in group]
    l2 = all(comparability.facts(run, rules).get("l2") for run in runs)
    own = all(run.config or "learning_rate_after_epoch" in run.metrics for run in runs)
    shown = {label: [run.history for run in group] for label, group in groups.items()}
    loss_name = "loss with L2 penalty" if l2 else "loss"
    rate_name = plots.RATE_NAME if own else "learning rate as logged in each epoch"
    files.write_json(out / CONTENT, content)
    files.write_picture(out / PICTURE, lambda: plots.overlay(shown, loss_name, rate_name, title))


def caption(groups: dict[str, list[Training]], estimates: dict[str, dict[str, Estimate | None]]) -> str:
    """Return the picture's title: each group's test accuracy, marked if all runs use the stand-in data."""
    accuracies = {label: of_group[TEST] for label, of_group in estimates.items() if of_group[TEST] is not None}
    words = "; ".join(f"{label} {one.spread()}" for label, one in accuracies.items())
    title = f"Test accuracy: {words}" if words else ""
    if all(comparability.of_stand_in(run) for group in groups.values() for run in group):
        title = f"{comparability.STAND_IN}. {title}".strip()
    return title


def over_runs(figures: list[dict], name: str) -> Estimate | None:
    values = [run[name] for run in figures if run[name] is not None]
    return estimate(values, 0, 1) if name in (TEST, VALIDATION) else estimate(values)


def verdict(difference: Difference | None, figures: dict, estimates: dict, judged_by: str, margin: float) -> list[str]:
    """Return lines on how two groups differ, and where a single run ranks among those of the other group."""
    (first, a), (second, b) = ((label, of_group[judged_by]) for label, of_group in estimates.items())
    if difference is None:
        without = first if a is None else second
        return [
            f"No difference is stated: {without} has no test accuracy, and no validation accuracy at a best epoch,",
            "which is the one with the lowest val_loss. Append @0.7236 to a history to give its test accuracy.",
        ]
    what = "Test accuracy"
    lines = []
    if judged_by == VALIDATION:
        what = "Validation accuracy at the best epoch"
        lines.append("Judged by validation accuracy at the best epoch, since not every run has a test accuracy.")
    for label, one in ((first, a), (second, b)):
        if one.n < len(figures[label]):
            lines.append(
                f"{label}: only {one.n} of {len(figures[label])} runs have this accuracy; the others are left out."
            )
    lines.append(f"{what}, {second} minus {first}: {difference.in_words(margin)}")
    return lines + places([(first, second)], figures, estimates, judged_by)


def places(pairs: list[tuple[str, str]], figures: dict, estimates: dict, judged_by: str) -> list[str]:
    """Return lines on where a single run ranks among the runs of the other group, for each pair of groups."""
    lines = []
    for label, among in (order for one, other in pairs for order in ((one, other), (other, one))):
        one, several = estimates[label][judged_by], estimates[among][judged_by]
        if one is not None and several is not None and len(figures[label]) == 1 < several.n:
            below = sum(run[judged_by] is not None and run[judged_by] < one.mean for run in figures[among])
            lines.append(f"{label} is one run, at {one.mean:.4f}: {several.place(one.mean, below, among)}")
    return lines


def against_first(differences: dict[str, Difference | None], first: str, judged_by: str) -> list[str]:
    """Return lines on how each group differs from the first."""
    what = "test accuracy" if judged_by == TEST else "validation accuracy at the best epoch"
    corrected = f"corrected for {len(differences)} comparisons (Bonferroni)"
    lines = [f"Differences from {first} in {what}; 95 % intervals, {corrected}:"]
    for label, one in differences.items():
        lines.append(f"{label} minus {first}: {'no such accuracy' if one is None else one.in_short()}")
    return lines


def in_width(columns: dict[str, dict[str, str]], markdown: bool) -> str:
    """Return the table with a row per figure and a column per group, or transposed if that is too wide."""
    text = table(columns, markdown)
    if max(map(len, text.splitlines())) <= WIDEST:
        return text
    figures = next(iter(columns.values()))
    return table({name: {label: column[name] for label, column in columns.items()} for name in figures}, markdown)


def cells(figures: list[dict], estimates: dict[str, Estimate | None]) -> dict[str, str]:
    """Return one group's column of the table, by row; a dash for a missing figure."""
    column = {"runs": str(len(figures))}
    for name, (one, several) in FIGURES.items():
        figure = estimates[name]
        if figure is None:
            column[name] = "-"
        elif figure.sd is None:
            column[name] = f"{figure.mean:{one}}"
        else:
            column[name] = f"{figure.mean:{several}} ± {figure.sd:{several}}"
        if figure is not None and figure.n < len(figures):
            column[name] += f" (n = {figure.n})"
        if figure is None and name == "learning-rate cuts" and any(run["schedule"] for run in figures):
            column[name] = "schedule"
        if name == TEST:
            interval = figure and figure.interval
            column["  its 95 % interval"] = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-"
        if name == "learning-rate cuts":
            column["  after epochs"] = cut_epochs([run["cut after epochs"] for run in figures])
    return column


if __name__ == "__main__":
    sys.exit(main())
