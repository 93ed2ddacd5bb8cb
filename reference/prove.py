"""Train in Keras and in this port with the same draws, in float64, and report to how many digits they agree.

    python reference/prove.py
    python reference/prove.py --data data/cifar10.npz --images 50000 --epochs 50

Options of train.py can follow its own. Exit codes: 0 equal to rounding, 1 not equal, or a side failed, 2 bad input,
or Keras does not start, 3 data not available.
"""

import argparse
import dataclasses
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a script, Python adds only its own folder
import plots
import train
from cli.command import command
from cli.errors import BadInput, Failure
from cli.flags import flag_of
from cli.messages import counted, say, table
from cli.parser import Parser, number, path_type
from options import Options, parse
from reference import draws
from running import files
from running import history as history_file
from running.code import KERAS
from running.outcome import BEST_WEIGHTS, CONFIG, HISTORY, INITIAL_WEIGHTS, METRICS
from sources.cifar10 import DEFAULT, Cifar10
from sources.stand_in import SYNTHETIC
from sweeping.jobs import Job
from sweeping.keras_side import MODELS, KerasSide

ROOT = Path(__file__).resolve().parent.parent
PROOF, PICTURE, MARK = "proof.json", "proof.png", ".proof"  # the last one marks a folder that may be emptied
# Relative differences up to which two runs count as equal. On TensorFlow, both compute in float64 throughout. Keras on
# torch still computes dense layers in float32, and Keras on JAX keeps constants in float64 that Keras on TensorFlow
# rounds to float32.
ROUNDING = {"tensorflow": 1e-9, "torch": 1e-3, "jax": 1e-3}
WITH_DRAWS = ("augment", "shift", "no_mirror")  # options whose effect reaches Keras in the draws
EXACT = ("accuracy", "val_accuracy", "test_accuracy")


@command("prove.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    args, given = parse_arguments(argv)
    keras = KerasSide()
    refuse(given.checked())
    refuse_folder(args.out, given)
    keras.refuse_without(download=False)
    options = prepared(args, given)
    say(f"Keras on {keras.backend} and PyTorch, {counted(options.epochs, 'epoch')} in float64, in {args.out}")
    sides = train_both(args, options, keras)
    proof = compare(sides, ROUNDING.get(keras.backend, 1e-3))
    say("", table(as_columns(proof["figures"]), markdown=False), "", proof["verdict"])
    for name, side in sides.items():
        say(f"{name}: {versions_of(side)}")
    files.write_json(args.out / PROOF, proof)
    files.write_picture(args.out / PICTURE, lambda: plots.differences(proof["by_epoch"], proof["rounding"]))
    say(f"Picture: {args.out / PICTURE}", f"Figures: {args.out / PROOF}")
    return 0 if proof["equal"] else 1


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Options]:
    """Return this command's own arguments, and the options for train.py, in float64."""
    parser = Parser("prove.py", __doc__, usage="prove.py [--images N] [--out DIR] [options of train.py]")
    parser.add_argument(
        "--images",
        type=number(int, "[10, 1000000]"),
        default=5000,
        help="maximum number of training images, those for validation included",
    )
    parser.add_argument("--out", type=path_type, default="proof", metavar="DIR", help="output directory")
    args, flags = parser.parse_known_args(argv)
    args.out = Path(args.out)
    given = parse(["--epochs", "5", *flags, "--dtype", "float64"])
    if given.data == DEFAULT and Cifar10(DEFAULT).root is None:
        say("No CIFAR-10 here: using the stand-in, which is not CIFAR-10; pass --data FILE.npz to use other images.")
        given.data = SYNTHETIC
    return args, given


def prepared(args: argparse.Namespace, given: Options) -> Options:
    """Write the images to train on to the folder `args.out`, and return the options with these images.

    Deletes an earlier proof there.
    """
    arrays = given.checked().source().load()
    out = args.out
    files.make_folder(out)
    (out / MARK).touch()
    for name in ("keras", "torch"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("data.npz", "draws.npz", PROOF, PICTURE):
        (out / name).unlink(missing_ok=True)
    training = {"x_train": arrays.x_train[: args.images], "y_train": arrays.y_train[: args.images]}
    files.write_npz(out / "data.npz", training | {"x_test": arrays.x_test, "y_test": arrays.y_test})
    return dataclasses.replace(given, data=str(out / "data.npz"), out=out / "torch").checked()


def refuse(options: Options) -> None:
    """Raise BadInput for options that the Keras side does not support."""
    if options.model not in MODELS:
        raise BadInput(
            f"--model {options.model}: reference/notebook.py has no such network in Keras; add a function that makes "
            "it to its MODELS, under that name, and the name to MODELS in sweeping/keras_side.py"
        )
    available = (*KerasSide.options, *KerasSide.needless, *WITH_DRAWS, "seed", "dtype")
    lacking = [f"{flag_of(name)} {options.flags()[name]}" for name in options.not_default() if name not in available]
    if lacking:
        raise BadInput(f"{', '.join(lacking)}: {KERAS} does not have this; leave it out")


def refuse_folder(out: Path, given: Options) -> None:
    """Raise BadInput if the folder `out` holds anything but an earlier proof, or holds the data."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise BadInput(f"--out {out}: holds something other than an earlier proof; pass another --out")
    if out.resolve() in Path(given.data).resolve().parents:
        raise BadInput(f"--data {given.data}: lies in --out {out}, which is emptied; pass another --out")


def train_both(args: argparse.Namespace, options: Options, keras: KerasSide) -> dict[str, Path]:
    """Train on both sides, Keras first; return the directories of the two runs."""
    file, out = args.out / "draws.npz", args.out / "keras"
    files.write_npz(file, draws.draws(options))
    command_of_keras = [sys.executable, str(ROOT / KERAS), "--draws", str(file)]
    job = keras.job("keras", command_of_keras, out, options.flags(), options.data, options.device)
    say("", f"Keras on {keras.backend}:")
    code = run_keras(job)
    if code != 0:
        raise Failure(f"Keras's side ended with exit code {code}, see above")
    say("", "PyTorch:")
    train.run_training(dataclasses.replace(options, init_weights=out / INITIAL_WEIGHTS))
    return {"Keras": out, "PyTorch": options.out}


def run_keras(job: Job) -> int:
    """Train the Keras side in its own process, and return the exit code."""
    return subprocess.run(job.command, env=os.environ | job.environment, check=False).returncode


def compare(sides: dict[str, Path], rounding: float) -> dict:
    """Return the content of proof.json: the largest difference of each figure, and the verdict."""
    histories = [history_file.read(side / HISTORY) for side in sides.values()]
    metrics = [files.read_json(side / METRICS) for side in sides.values()]
    weights = [list(files.read_npz("", side / BEST_WEIGHTS).values()) for side in sides.values()]
    by_epoch = {
        name: [relative(one[name], other[name]) for one, other in zip(*histories, strict=False)]
        for name in histories[0][0]
    }
    figures = {}
    for name, differences in by_epoch.items():
        largest = max(differences)
        figures[name] = {"difference": largest, "epoch": differences.index(largest) + 1}
    of_weights = max(float(np.abs(one - other).max() / np.abs(one).max()) for one, other in zip(*weights, strict=True))
    figures["restored weights"] = {"difference": of_weights, "epoch": None}
    for name in ("test_loss", "test_accuracy"):
        figures[name] = {"difference": relative(metrics[0][name], metrics[1][name]), "epoch": None}
    parted = [name for name, figure in figures.items() if figure["difference"] > limit(name, rounding)]
    lengths = [len(history) for history in histories]
    equal = not parted and lengths[0] == lengths[1]
    verdict = f"Equal to rounding in all {lengths[0]} epochs: no relative difference is above {rounding:g}."
    if not equal:
        verdict = where_they_part(by_epoch, histories, lengths, parted, rounding)
    return {"equal": equal, "verdict": verdict, "rounding": rounding, "figures": figures, "by_epoch": by_epoch}


def limit(name: str, rounding: float) -> float:
    """Return the largest relative difference in the figure `name` that counts as rounding.

    Accuracies count images: in float64 they are equal, or differ by an image or more.
    """
    return 1e-12 if name in EXACT and rounding < 1e-6 else rounding


def where_they_part(by_epoch: dict, histories: list, lengths: list[int], parted: list[str], rounding: float) -> str:
    """Return a verdict with the first epoch in which a figure differs by more than rounding, and the worst figure."""
    for epoch in range(min(lengths)):
        apart = {name: values[epoch] for name, values in by_epoch.items() if values[epoch] > limit(name, rounding)}
        if apart:
            name = max(apart, key=apart.get)
            values = [history[epoch][name] for history in histories]
            return (
                f"Not equal: the two sides first differ in epoch {epoch + 1}, {name} by {apart[name]:.1e} of its value "
                f"(Keras {values[0]!r}, PyTorch {values[1]!r})."
            )
    if parted:
        return f"Not equal: all epochs are, but {', '.join(parted)} differ by more than rounding."
    return f"Not equal: Keras trained {lengths[0]} epochs, PyTorch {lengths[1]}; the epochs that both have are equal."


def relative(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0


def as_columns(figures: dict[str, dict]) -> dict[str, dict[str, str]]:
    """Return the table's columns: for each figure the largest difference, its epoch, and the number of equal digits."""
    columns = {"largest difference": {}, "in epoch": {}, "equal digits": {}}
    for name, figure in figures.items():
        difference = figure["difference"]
        columns["largest difference"][name] = f"{difference:.1e}" if difference else "0"
        columns["in epoch"][name] = str(figure["epoch"]) if figure["epoch"] and difference else "-"
        columns["equal digits"][name] = str(max(0, math.floor(-math.log10(difference)))) if difference else "all"
    return columns


def versions_of(side: Path) -> str:
    config = files.read_json(side / CONFIG)
    device = config.get("device_name") or "the device that its backend chose"
    return ", ".join([*(f"{name} {version}" for name, version in config["versions"].items()), device])


if __name__ == "__main__":
    sys.exit(main())
