"""Train many seeds, as many at once as the machine allows, and compare them; the same command, given again, continues.

    python sweep.py --seeds 0-9 -- --model improved
    python sweep.py --seeds 0-9 --keras --within 0.01
    python sweep.py --seeds 0-4 --grid l2=0.0003,0.001,0.003 dropout=0.3,0.5 -- --epochs 30

Exit codes: 0 all finished (with --within: shown to be equivalent), 1 a run failed, or equivalence was not shown,
2 bad input, 3 not comparable, or CIFAR-10 not available, 4 no comparison (disk full, crash), 130 and 143 interrupted.
"""

import argparse
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

import compare
import plots
from cli.command import command
from cli.errors import BadInput, DirectoryTaken, Unavailable
from cli.flags import ON_OFF, flag_of
from cli.messages import counted, say, table
from cli.parser import Parser, number, path_type
from comparing import comparability, grid, histories
from options import Options, parse
from running import code, files, machine
from running.code import TRAIN
from running.directory import Run
from running.outcome import CHECKPOINT, CONFIG, INITIAL_WEIGHTS, parts_of, program_of
from sources.source import fingerprint
from sweeping import jobs
from sweeping.jobs import Job
from sweeping.keras_side import KerasSide
from sweeping.reference import Reference

ROOT = Path(__file__).resolve().parent
REFERENCES = (KerasSide(),)  # each has a flag named after its label
OTHER_SIDES = " or ".join(f"--{reference.label}" for reference in REFERENCES)
MOST = 10_000  # seeds
ESTIMATES = ("validation", "test", "epochs", "difference")  # of a setting, in grid.CONTENT


class Planned(NamedTuple):
    """One run of train.py: its grid setting in words, its command line, its options, and the names of the options that
    the grid varies.
    """

    setting: str
    words: list[str]
    options: Options
    varied: list[str]

    @property
    def is_default(self) -> bool:
        usual = Options(recipe=self.options.recipe)
        own = self.options.flags()
        at_default = {name: getattr(usual, name) for name in self.varied}  # the other options stay as they are
        usual = dataclasses.replace(self.options, **at_default).resolved().flags()
        return all(own[name] == usual[name] for name in self.varied)


@command("sweep.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    args, flags = parse_arguments(sys.argv[1:] if argv is None else argv)
    planned = plan(args, flags)
    all_options = [run.options for run in planned]
    refuse(args, all_options)
    options = all_options[0]
    gpus, slots = jobs.places(options.device, options.threads or 1, args.jobs, args.jobs_per_gpu)
    threads = max(1, machine.cores() // slots)
    pairs = [runs_of(run.options, run.words, args.reference, run.setting, threads) for run in planned]
    queue = [job for pair in pairs for job in pair]
    if args.dry_run:
        for place, job in enumerate(queue):
            if gpus:
                job.environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        say(*(f"# {job.name} has finished: {job.out}" if job.done else job.shell() for job in queue))
        return 0
    finished = [job for job in queue if job.done]
    if len(finished) < len(queue):
        refuse_without_data(all_options, args.reference)
    if finished:
        refuse_others(finished, options, others_follow=len(finished) < len(queue))
    if args.grid is None:
        compare.claim(Path(args.out or options.out.parent))
    else:
        claim(Path(args.out or options.out.parent), planned)
    where = f" on {counted(len(gpus), 'GPU')}" if gpus else ""
    begun = sum(job.trained() > 0 and not job.done for job in queue)
    state = f"{len(finished)} finished" + (f", {begun} begun" if begun else "")
    say(f"{counted(len(queue), 'run')}: {state}; {slots} at once{where}; logs: <run>/{jobs.LOG}")
    if args.reference is not None:
        say(args.reference.describe())
    jobs.work(queue, slots, gpus)
    try:
        exit_code = compare_settings(args, planned, pairs) if args.grid else compare_seeds(args, pairs)
    finally:  # even if the finished runs cannot be compared
        failed = say_what_failed(queue)
    return 1 if failed else exit_code


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Declare the flags; return their values, and those of train.py."""
    parser = Parser("sweep.py", __doc__, usage="sweep.py --seeds SEEDS [options] [-- options of train.py]")
    whole = number(int, "[1, 10000]")
    parser.add_argument("--seeds", type=seeds, required=True, help="0-9, or 0,3,5-7")
    parser.add_argument("--jobs", type=whole, help="runs at once (default on CPUs: one per core, with one thread each)")
    parser.add_argument(
        "--jobs-per-gpu",
        type=whole,
        default=4,
        help="runs at once on each GPU (the default is not tuned)",
    )
    for reference in REFERENCES:
        parser.add_argument(
            f"--{reference.label}",
            dest="reference",
            action="store_const",
            const=reference,
            help=f"train each seed with {reference.program} first, then with {TRAIN} from the same initial weights",
        )
    parser.add_argument(
        "--within",
        type=number(float, "(0, 1]"),
        metavar="MARGIN",
        help=f"with {OTHER_SIDES}: report in the exit code whether the two are equivalent, as compare.py --within does",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        type=values_of_option,
        metavar="OPTION=VALUES",
        help="train each setting with each seed, such as l2=0.001,0.003 dropout=0.3,0.5, and sort them by validation",
    )
    parser.add_argument(
        "--out", type=path_type, metavar="DIR", help="where the comparison goes (default: next to the runs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, one per line, without running them")
    own, flags = argv, []
    if "--" in argv:
        own, flags = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    args, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"{' '.join(unknown)}: not an option of sweep.py; put train.py's options after --")
    for flag in ("--seed", "--resume"):
        if any(word.partition("=")[0] == flag for word in flags):
            parser.error(f"{flag} after --: sweep.py gives it to each run; leave it out")
    if args.within is not None and args.reference is None:
        parser.error(f"--within: needs {OTHER_SIDES}, the other side of the comparison")
    if args.grid is not None and args.reference is not None:
        parser.error(f"--grid: not with {OTHER_SIDES}; leave one of them out")
    return args, flags


def values_of_option(text: str) -> tuple[str, list[str]]:
    """An argparse type: an option of train.py and its values, such as l2=0.001,0.003."""
    name, _, values = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    listed = values.split(",")
    option = {field.name: field for field in dataclasses.fields(Options)}.get(name)
    if option is not None and (option.metadata["may_change"] or option.metadata["repeats"]):
        raise argparse.ArgumentTypeError(
            f"{text!r:.60}: {flag_of(name)} is not a setting that a grid can vary; run a sweep for each value"
        )
    if option is None:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60}: not an option of train.py that affects results; pass one such as l2=0.001,0.01"
        )
    if not all(listed) or len({*listed}) < len(listed):
        raise argparse.ArgumentTypeError(f"{text!r:.60}: separate the values by commas, and give each only once")
    return name, listed


def plan(args: argparse.Namespace, flags: list[str]) -> list[Planned]:
    """Return the runs: every combination of the values in the grid, if there is one, with every seed."""
    grid = args.grid or []
    names = [name for name, _ in grid]
    if len({*names}) < len(names):
        raise BadInput("--grid: has an option twice; put all its values after one =")
    for name in names:
        if any(word.partition("=")[0] == flag_of(name) for word in flags):
            raise BadInput(f"{flag_of(name)} after --: --grid varies it; leave it out there")
    if grid and not any(word.partition("=")[0] == "--out" for word in flags):  # name the directories after what differs
        flags = [*flags, "--out", pattern_of(names)]
    planned = []
    for values in itertools.product(*(values for _, values in grid)):
        chosen = dict(zip(names, values, strict=True))
        words = [*flags, *words_of(chosen)]
        for seed in args.seeds:
            options = parse([*words, "--seed", str(seed), "--resume"]).checked()
            planned.append(Planned(setting_of(options, chosen), words, options, names))
    return planned


def setting_of(options: Options, chosen: dict[str, str]) -> str:
    """Return a setting in words: numbers in one form, however they were written, and other values as given."""
    flags = options.flags()
    numbers = {name: str(flags[name]).removesuffix(".0") for name in chosen if type(flags[name]) in (int, float)}
    return " ".join(f"{name}={value}" for name, value in (chosen | numbers).items())


def pattern_of(names: Iterable[str]) -> str:
    """Return an --out that puts runs with different values of the options `names` into different directories."""
    return "-".join(["runs/<name><data>", *(f"{name}_<{name}>" for name in names), "seed<seed>"])


def words_of(setting: dict[str, str]) -> list[str]:
    """Return a setting as command-line arguments. A switch has the values on and off."""
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(Options)}
    words = []
    for name, value in setting.items():
        if kinds[name] in (bool, ON_OFF):
            if value not in ("on", "off"):
                raise BadInput(f"--grid: {name}={value:.60}: is a switch; its values are on and off")
            off = [f"--no-{flag_of(name)[2:]}"] if kinds[name] is ON_OFF else []
            words += [flag_of(name)] if value == "on" else off
        else:
            words.append(f"{flag_of(name)}={value}")
    return words


def seeds(text: str) -> list[int]:
    """An argparse type: whole numbers and ranges of them, such as 0,3,5-7; each number once."""
    numbers = {}
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST:
            raise argparse.ArgumentTypeError(f"{part!r:.60} is neither a seed nor a range of up to {MOST}, such as 0-9")
        numbers.update(dict.fromkeys(range(first, last + 1)))
    return list(numbers)


def refuse(args: argparse.Namespace, all_options: list[Options]) -> None:
    """Raise BadInput for options that a sweep, or its reference program, does not support."""
    options, reference = all_options[0], args.reference
    varied = [name for name, _ in args.grid or []]
    if len({str([one.seed, *(one.flags()[name] for name in varied)]) for one in all_options}) < len(all_options):
        raise BadInput("--grid: two values of an option are the same; give each once")
    if len({one.out for one in all_options}) < len(all_options):
        names = " and ".join(["<seed>", *(f"<{name}>" for name, _ in args.grid or [])])
        raise BadInput(f"--out {options.out} after --: is the same for two runs; put {names} into it")
    if reference is not None:
        reference.refuse(options.flags(), options.not_default())
        if options.source().for_keras() is None:
            raise BadInput(f"--{reference.label}: it does not read --data {options.data}; pass an .npz file")


def refuse_without_data(all_options: list[Options], reference: Reference | None) -> None:
    """Raise BadInput or Unavailable if a file that the options name is missing, or the reference does not start.

    Each run looks for CIFAR-10 itself, since the first one may have to download it.
    """
    options = all_options[0]
    start = options.init_weights
    if start and not start.exists() and not any((one.out / CHECKPOINT).exists() for one in all_options):
        raise BadInput(f"--init-weights {start}: no such file; pass one that exists")
    data = options.source().for_keras()
    if data and not os.path.exists(data):
        raise BadInput(f"--data {data}: no such file; pass one that exists")
    if reference is not None:
        reference.refuse_without(download=data == "")


def refuse_others(finished: list[Job], options: Options, others_follow: bool) -> None:
    """Raise BadInput if a finished run had other data than the `options` name.

    If `others_follow`, they will be paired or pooled with the finished runs, so these must have the same code too.
    """
    try:
        data_sha256 = fingerprint(options.source().load())
    except (BadInput, Unavailable):
        if others_follow:
            raise
        say(f"Its data can no longer be read from {options.data}, so it is not known whether they have changed.")
        return
    for job in finished:
        config = files.read_json(job.out / CONFIG)
        fault = None
        here = code.sha256(program_of(config))
        if config.get("data_sha256", data_sha256) != data_sha256:
            fault = "had other images or labels"
        elif others_follow and any(part.get("code_sha256", here) != here for part in parts_of(config)):
            fault = "was trained by other code than this, which may compute something else"
        if fault:
            raise BadInput(f"{job.out}: the run there {fault}; delete it, or pass another --out after --")


def runs_of(
    options: Options, flags: list[str], reference: Reference | None, setting: str = "", threads: int = 1
) -> list[Job]:
    """Return the jobs of one seed, in order: the reference program's, if there is one, then train.py's.

    On GPUs, train.py gets `threads` threads if its options set no number.
    """
    words = [*flags, "--seed", str(options.seed)]
    before = None
    name = f"{setting} seed {options.seed}".strip()
    if options.threads is None:
        words += ["--threads", "1" if options.device.type == "cpu" else str(threads)]
    if options.device == torch.device("cuda"):  # a run that sees no GPU must fail, not use the CPU
        words += ["--device", "cuda"]
    if reference is not None:
        out = (
            dataclasses.replace(options, out=f"{options.out.parent}/{reference.label}<data>-seed<seed>").resolved().out
        )
        if out == options.out:
            raise BadInput(f"--out {out} after --: --{reference.label} writes its run there; pass another")
        command = [sys.executable, str(ROOT / reference.program)]
        data = options.source().for_keras()
        before = reference.job(f"{name}, {reference.label}", command, out, options.flags(), data, options.device)
        note_if_finished(before, reference.finished(out, options.flags()))
        options = dataclasses.replace(options, init_weights=out / INITIAL_WEIGHTS)
        words += ["--init-weights", str(options.init_weights)]
    command = [sys.executable, str(ROOT / TRAIN), *words, "--resume"]
    run = Job(name, options.out, command, {}, options.epochs, after=before)
    try:
        metrics = Run(options).finished(None)
    except DirectoryTaken as error:
        differing = [name for name in options.not_default() if name not in ("data", "init_weights")]
        raise BadInput(f"{error} after --, such as {pattern_of(differing)!r}") from None  # --out is train.py's
    if before is None or before.done:  # a repeated reference run may start from other weights
        note_if_finished(run, metrics)
    return [before, run] if before else [run]


def note_if_finished(job: Job, metrics: dict | None) -> None:
    if metrics is not None:
        job.accuracy = metrics["test_accuracy"]


def compare_seeds(args: argparse.Namespace, pairs: list[list[Job]]) -> int:
    """Print compare.py's comparison of the finished seeds; return its exit code."""
    complete = [pair for pair in pairs if all(job.accuracy is not None for job in pair)]
    if not complete:
        return 0
    labels = (args.reference.label, "torch") if args.reference else ("seeds",)
    words = [f"{label}={job.out}" for pair in complete for label, job in zip(labels, pair, strict=True)]
    within = [] if args.within is None else ["--within", str(args.within)]
    say("")
    return compare.main([*words, "--out", args.out or str(pairs[0][-1].out.parent), *within])


def claim(out: Path, planned: list[Planned]) -> None:
    """Create the folder `out`. Raises BadInput if it has the figures of another grid, or of a part of this one that is
    not planned now.
    """
    files.make_folder(out)
    if not (out / grid.CONTENT).exists() and not (out / grid.PICTURE).exists():
        return
    earlier = files.read_json(out / grid.CONTENT) if (out / grid.CONTENT).exists() else {}
    settings, seeds, options = (earlier.get(name) for name in ("settings", "seeds", "options"))
    if not all(isinstance(value, kind) for value, kind in ((settings, dict), (seeds, list), (options, dict))):
        raise BadInput(
            f"--out {out}: its {grid.CONTENT} or {grid.PICTURE} was not written by sweep.py; pass another before --"
        )
    now = common_options(planned)
    more = [f"seed {seed}" for seed in seeds if seed not in {run.options.seed for run in planned}]
    more += [setting for setting in settings if setting not in {run.setting for run in planned}]
    for name in dict.fromkeys([*options, *now]):
        if name != "epochs" and options.get(name) != now.get(name):  # more epochs only continue the same runs
            more.append(f"{flag_of(name)} {options.get(name, 'at its default')}")
    if more:
        remedy = "ask for these too, or pass another --out before --"
        raise BadInput(f"--out {out}: its {grid.CONTENT} has {', '.join(more):.200}, which this grid lacks; {remedy}")


def common_options(planned: list[Planned]) -> dict:
    """Return the options that all runs of a grid share: data, epochs, and those that are not at their defaults."""
    first = planned[0]
    flags = first.options.flags()
    apart = {*first.varied, "seed", "out"}
    return {name: flags[name] for name in ("data", "epochs", *first.options.not_default()) if name not in apart}


def compare_settings(args: argparse.Namespace, planned: list[Planned], pairs: list[list[Job]]) -> int:
    """Print a row for each setting of the grid, write grid.json and grid.png, and return the exit code."""
    groups = {}
    default = None
    for run, (job,) in zip(planned, pairs, strict=True):
        if job.accuracy is not None:
            groups.setdefault(run.setting, []).append(histories.read(job.out))
            default = run.setting if run.is_default else default
    if not groups:
        return 0
    remedy = "delete those that differ, then run the same command again"
    compare.pooled(groups, compare.rules_of_options(), remedy=remedy)
    rows = grid.settings(groups, default)
    out = Path(args.out or planned[0].options.out.parent)
    stand_in = comparability.all_of_stand_in(run for group in groups.values() for run in group)
    lacking = dict.fromkeys(run.setting for run in planned if run.setting not in groups)
    words = grid.in_words(rows, default, lacking, len(args.seeds))
    say("", *stand_in, table(grid.as_columns(rows, default), markdown=False), "", *words)
    common = {"options": common_options(planned), "default": default, "seeds": args.seeds}
    content = common | {"settings": {row.label: as_json(row) for row in rows}}
    files.write_json(out / grid.CONTENT, content)
    points = [(row.label, row.validation.mean, row.validation.interval) for row in rows]
    title = comparability.STAND_IN if stand_in else ""
    files.write_picture(out / grid.PICTURE, lambda: plots.settings(points, title))
    say(f"\nPicture: {out / grid.PICTURE}", f"Figures: {out / grid.CONTENT}")
    return 0


def as_json(row: grid.Setting) -> dict:
    estimates = {name: getattr(row, name) for name in ESTIMATES}
    return {name: one and one._asdict() for name, one in estimates.items()} | {"minutes": row.minutes}


def say_what_failed(queue: list[Job]) -> bool:
    """Print which runs failed, and why; return whether any did."""
    failed = [job for job in queue if job.fault]
    if failed:
        again = "fix the causes below, then run the same command again"
        say(f"\n{len(failed)} of {counted(len(queue), 'run')} failed; {again}:")
        say(*(f"{job.name}: {job.fault} ({job.log})" for job in failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
