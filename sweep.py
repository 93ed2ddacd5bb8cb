"""Train many seeds, as many at once as the machine takes, and say what they reached together.

    python sweep.py --seeds 0-9 -- --model improved
    python sweep.py --seeds 0-9 --keras --within 0.01

Exit codes: 0 all finished (with --within: shown to be equivalent), 1 a run failed, or equivalence was not shown,
2 bad input, 3 not comparable, 4 no comparison (disk full, crash), 130 and 143 interrupted.
"""

from harness import signals

if __name__ == "__main__":
    signals.end_at_once("sweep.py")  # before the next imports, which take seconds

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import sys
from pathlib import Path

import compare
import data
from harness import jobs, keras_side
from harness.console import Parser, command, number, path_type, say
from harness.errors import BadInput
from harness.jobs import Job
from harness.lock import Held
from harness.run import CHECKPOINT, INITIAL_WEIGHTS, Run
from model import to_keras_weights
from options import Options, parse

ROOT = Path(__file__).resolve().parent
TRAIN, KERAS = ROOT / "train.py", ROOT / "reference" / "keras_notebook.py"
MOST = 10_000  # seeds


@command("sweep.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    args, flags = parse_arguments(sys.argv[1:] if argv is None else argv)
    told = [parse([*flags, "--seed", str(seed), "--resume"]) for seed in args.seeds]
    refuse(args, told)
    gpus, slots = jobs.places(told[0].device, told[0].threads or 1, args.jobs, args.jobs_per_gpu)
    backend = keras_side.backend() if args.keras else None
    pairs = [runs_of(options, flags, backend) for options in told]
    queue = [job for pair in pairs for job in pair]
    for place, job in enumerate(queue):
        with contextlib.suppress(Held):  # its turn comes later
            job.take_note()
        if gpus:
            job.environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    if args.dry_run:
        say(*(f"# {job.name} has finished: {job.out}" if job.over else job.shell() for job in queue))
        return 0
    if not all(job.over for job in queue):
        refuse_without_data(told, backend)
        done = [pair[0].out for pair in pairs if backend and pair[0].over]
        if done:
            keras_side.refuse_other_data(done, data.fingerprint(data.load(told[0].data)))
    compare.claim(Path(args.out or told[0].out.parent))
    finished, where = sum(job.over for job in queue), f" on {len(gpus)} GPUs" if gpus else ""
    said = f"{len(queue)} runs, of which {finished} have finished; {slots} at once{where}; logs: <run>/{jobs.LOG}"
    say(said, *([f"Keras on {backend}"] if backend else []))
    jobs.work(queue, slots, gpus)
    return conclude(args, pairs)


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Declare the flags; return their values, and those of train.py."""
    parser = Parser("sweep.py", __doc__, usage="sweep.py --seeds SEEDS [options] [-- options of train.py]")
    whole = number(int, "[1, 10000]")
    parser.add_argument("--seeds", type=seeds, required=True, help="0-9, or 0,3,5-7")
    parser.add_argument("--jobs", type=whole, help="runs at once; None: on CPUs one per core, a thread each")
    parser.add_argument("--jobs-per-gpu", type=whole, default=4, help="runs at once on each GPU; 4 is a guess")
    parser.add_argument(
        "--keras",
        action="store_true",
        help="train each seed in Keras first (reference/keras_notebook.py; KERAS_BACKEND, or else TensorFlow if it is "
        "installed, or else torch), then here from the same initial weights",
    )
    parser.add_argument(
        "--within",
        type=number(float, "(0, 1]"),
        metavar="PART",
        help="with --keras: tell by the exit code if the two are equivalent, as compare.py --within does",
    )
    parser.add_argument("--out", type=path_type, metavar="DIR", help="where the comparison goes; None: beside the runs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, one a line, and run none")
    own, flags = argv, []
    if "--" in argv:
        own, flags = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    args, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"{' '.join(unknown)}: not an option of sweep.py; those of train.py go behind --")
    for flag in ("--seed", "--resume"):
        if any(word.partition("=")[0] == flag for word in flags):
            parser.error(f"{flag} behind --: sweep.py gives it to each run; leave it out")
    if args.within is not None and not args.keras:
        parser.error("--within: needs --keras, the other side of the comparison")
    return args, flags


def seeds(text: str) -> list[int]:
    """An argparse type: whole numbers and ranges of them, such as 0,3,5-7; each number once."""
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST:
            raise argparse.ArgumentTypeError(f"{part!r:.60} is neither a seed nor up to {MOST} of them, such as 0-9")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def refuse(args: argparse.Namespace, told: list[Options]) -> None:
    """Raise BadInput for options that do not go with a sweep, or with Keras's side of one."""
    options = told[0]
    if len({one.out for one in told}) < len(told):
        raise BadInput(f"--out {options.out} behind --: is the same for each seed; put <seed> into it")
    if args.keras:
        keras_side.refuse(options.flags(), options.not_default(), max(args.seeds))
        if not (options.data.endswith(".npz") or of_keras_too(options)):
            raise BadInput(f"--keras: Keras does not read --data {options.data}; pass an .npz file")


def refuse_without_data(told: list[Options], backend: str | None) -> None:
    """Raise BadInput or Unavailable if what each run would lack is not there: a file of its options, or Keras."""
    options = told[0]
    start = options.init_weights
    if start and not start.exists() and not any((one.out / CHECKPOINT).exists() for one in told):
        raise BadInput(f"--init-weights {start}: no such file; pass one that is there")
    if options.data.endswith(".npz") and data.stamp(options.data) is None:
        raise BadInput(f"--data {options.data}: no such file; pass one that is there")
    if backend:
        keras_side.refuse_without(backend, download=of_keras_too(options))


def of_keras_too(options: Options) -> bool:
    """Tell whether --data is CIFAR-10 at its default place, which Keras has at a place of its own."""
    return os.path.abspath(options.data) == os.path.abspath(data.DEFAULT)


def runs_of(options: Options, flags: list[str], backend: str | None) -> list[Job]:
    """Return the runs of a seed, in order: Keras's, if there is a `backend`, and train.py's."""
    words, keras, name = [*flags, "--seed", str(options.seed)], None, f"seed {options.seed}"
    if options.device.type == "cpu" and options.threads is None:
        words += ["--threads", "1"]
    if backend:
        out = dataclasses.replace(options, out=f"{options.out.parent}/keras<data>-seed<seed>").resolved().out
        if out == options.out:
            raise BadInput(f"--out {out} behind --: is Keras's own; pass another")
        file = None if of_keras_too(options) else options.data
        defaults = Options().resolved().flags()
        keras = keras_side.job(f"{name}, Keras", KERAS, out, options.flags(), defaults, file, backend, options.device)
        options = dataclasses.replace(options, init_weights=out / INITIAL_WEIGHTS)
        words += ["--init-weights", str(options.init_weights)]
    command = [sys.executable, str(TRAIN), *words, "--resume"]
    look = functools.partial(metrics_if_finished, options)
    run = Job(name, options.out, command, look, options.epochs, {}, after=keras)
    return [keras, run] if keras else [run]


def metrics_if_finished(options: Options) -> dict | None:
    """Return a finished run's metrics. Raises BadInput if it cannot be begun, Held while it is at work."""
    run = Run(options, to_keras_weights, data.stamp(options.data))
    try:
        return run.look()
    except BadInput:
        holder = run.lock.holder()
        if holder:
            raise Held(holder) from None
        raise


def conclude(args: argparse.Namespace, pairs: list[list[Job]]) -> int:
    """Say what compare.py says of the seeds that have finished, and what failed; return the exit code."""
    done = [pair for pair in pairs if all(job.accuracy is not None for job in pair)]
    code = 0
    if done:
        out = args.out or str(pairs[0][-1].out.parent)
        labels = ("keras", "torch") if args.keras else ("seeds",)
        words = [f"{label}={job.out}" for pair in done for label, job in zip(labels, pair, strict=True)]
        within = [] if args.within is None else ["--within", str(args.within)]
        say("")
        code = compare.main([*words, "--out", out, *within])
        if code in (0, 1, 3):  # with the others there is none
            say(f"\nPicture: {os.path.join(out, compare.PICTURE)}")
    failed = [job for pair in pairs for job in pair if job.fault]
    if failed:
        say(f"\n{len(failed)} of {sum(map(len, pairs))} runs failed; the same command tries them again:")
        say(*(f"{job.name}: {job.fault} ({job.log})" for job in failed))
    return 1 if failed else code


if __name__ == "__main__":
    sys.exit(main())
