"""Train the notebook's CNN on CIFAR-10 as Keras would, and leave a run's directory behind.

    python train.py --epochs 50 --batch-size 64
    python train.py --model improved --epochs 50 --batch-size 64
    python train.py --recipe fast
    torchrun --nproc-per-node 2 train.py --epochs 50 --batch-size 64

Exit codes: 0 done, 1 failed (training diverged, disk full), 2 bad input, 3 data not available, 130 and 143 interrupted.
"""

import argparse
import contextlib
import ctypes
import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import distributed
import plots
import runs
import signals
from callbacks import PLATEAU, SCHEDULE_STATE, EarlyStopping, per_step_schedule, reduce_lr_on_plateau
from flags import Parser, number, path_type
from model import (
    MODELS,
    WHITENING_IMAGES,
    build_model,
    from_keras_weights,
    l2_penalty,
    parameter_groups,
    to_keras_weights,
)
from optim import OPTIMIZERS

INITIAL_WEIGHTS_LIMIT = 256 << 20  # bytes: 60 times this network in float64
CHECK_EVERY = {"cpu": 1, "cuda": 100}  # steps between two looks at the loss: each look waits for a GPU
EVALUATION_BATCH = 256  # fits a CPU's cache: 1,000 images at once take twice as long there
KERAS_ADAMW_DECAY = 0.004  # what keras.optimizers.AdamW takes off by default


class Recipe(NamedTuple):
    """A set of defaults that `--recipe` chooses, and what they were measured to reach (README has the conditions)."""

    result: str
    defaults: dict


RECIPES = {
    "fast": Recipe(
        "87.3 % test accuracy with mirror images, 86.2 % without, in 6 minutes on 2 CPU cores",
        {
            "model": "whitened",
            "epochs": 10,
            "batch_size": 128,
            "optimizer": "adamw",
            "lr": 0.01,
            "weight_decay": 0.05,
            "l2": 0.0,
            "dropout": 0.0,
            "label_smoothing": 0.1,
            "shift": 2,
            "schedule": "onecycle",
            "patience": 10,
            "mixed_precision": True,
        },
    ),
}


class DivergedError(Exception):
    """The loss is not finite."""


class Objective(NamedTuple):
    """What a step minimises, and how it is computed."""

    l2: float
    label_smoothing: float = 0.0
    mixed_precision: bool = False

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, mirrored: bool = False):
        """Return logits and the sum of the losses; `mirrored` averages logits with those of the mirror image."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed_precision):
            logits = model(images).to(images.dtype)
            if mirrored:
                logits = (logits + model(images.flip(3)).to(images.dtype)) / 2
        return logits, F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    prepare_cpu()
    try:
        args = parse_arguments(argv)
    except SystemExit as stop:  # argparse's, after --help or one line on stderr
        return stop.code
    try:
        with signals.handled(), distributed.joined(args.device):
            try:
                run(args)
            except distributed.LostError:
                signals.check()  # it has gone because all were asked to
                raise
    except distributed.FirstError:  # said there
        return 1
    except (data.DataError, runs.RunError) as error:
        return fail(2, error)
    except data.DataUnavailableError as error:
        return fail(3, error)
    except DivergedError as error:
        return fail(1, error, shared=True)
    except runs.WriteError as error:
        return fail(1, f"{error}; what was finished before stands: make room there, then go on with --resume")
    except OSError as error:
        return fail(1, error)
    except torch.OutOfMemoryError as error:
        return fail(1, f"{str(error).splitlines()[0]} Pass a smaller --batch-size, or --device cpu")
    except torch.AcceleratorError as error:
        return fail(1, f"the device failed ({str(error).splitlines()[0]}); {going_on(argv, args)}")
    except distributed.LostError as error:
        return fail(1, f"{error}; {going_on(argv, args)}", shared=True)
    except signals.Interrupted as error:
        return fail(error.exit_code, f"interrupted by {error}; {going_on(argv, args)}", shared=True)
    return 0


def going_on(argv: list[str] | None, args: argparse.Namespace) -> str:
    """Say how the run that `argv` started can be resumed."""
    command = [*(sys.orig_argv if argv is None else ["train.py", *argv]), *["--resume"] * (not args.resume)]
    how = "the same torchrun command with --resume" if distributed.launched() else shlex.join(command)
    return f"the epochs that were finished are kept, to go on: {how}"


def prepare_cpu() -> None:
    """Set the process up for speed on the CPU, before its first computation; results stay, but for denormals."""
    # Worker threads inherit it from here: denormal numbers slow Adam down late in training.
    torch.set_flush_denormal(True)
    # glibc hands freed memory back to the kernel and faults it in again, up to thousands of pages a step: 15 % of
    # the time on two cores. -3 is M_MMAP_THRESHOLD (32 MiB is the most it takes), -1 M_TRIM_THRESHOLD.
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)
        libc.mallopt(-1, 2**31 - 1)


def fail(code: int, message: object, shared: bool = False) -> int:
    """Say why the run ends, once for a reason that all processes have; return `code`."""
    if not (shared and distributed.rank()):
        which = f"process {distributed.rank()}: " if distributed.rank() else ""
        print(f"train.py: error: {which}{message}", file=sys.stderr)
    return code


def say(*lines: object) -> None:
    if distributed.rank():
        return
    try:
        print(*lines, sep="\n", flush=True)  # a log file shows each epoch when it ends
    except OSError as error:  # a log on a full disk, a pipe whose reader has gone
        sys.stdout = None  # else the interpreter tries it again at its end
        raise runs.WriteError(f"cannot write to standard output ({error.strerror})") from None


def device_type(text: str) -> torch.device:
    """An argparse type: the device that `auto`, `cpu`, `cuda` or `cuda:N` names, which must be there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N")
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    device = distributed.local(torch.device(text))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; pass cpu or auto"
        )
    return device


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Declare the flags and return their resolved values."""
    parser = Parser(
        prog="train.py",
        description="Train the notebook's CNN on CIFAR-10 as Keras would. The defaults are the notebook's.",
        epilog="exit codes: 0 done, 1 failed (training diverged, disk full), 2 bad input, 3 data not available, "
        "130 interrupted, 143 asked to end (SIGTERM, SIGUSR1)",
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=RECIPES,
        help="other defaults, over which flags win; "
        + "; ".join(f"{name}: {recipe.result}" for name, recipe in RECIPES.items()).replace("%", "%%"),
    )
    group.add_argument(
        "--model",
        choices=MODELS,
        default="baseline",
        help="improved: three stages of two convolutions, BatchNorm; whitened: that behind a fixed whitening layer",
    )
    group.add_argument("--epochs", type=number(int, "[1, inf)"), default=50, metavar="N", help="epochs at most")
    group.add_argument(
        "--batch-size", type=number(int, "[1, 1000000]"), default=64, metavar="N", help="images per step"
    )
    group.add_argument(
        "--lr",
        type=number(float, "(0, 1e9]"),
        default=1e-3,
        metavar="RATE",
        help="learning rate: the first one, but onecycle's highest",
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="sgd has Nesterov momentum of 0.9")
    group.add_argument(
        "--weight-decay",
        type=number(float, "[0, 1000]"),
        metavar="PART",
        help="part of each kernel that a step takes off, times the learning rate (decoupled; not for adam); "
        f"None: {KERAS_ADAMW_DECAY} for adamw as in Keras, 0 for sgd",
    )
    group.add_argument("--lookahead", action="store_true", help="every 5 steps go back half of the way (Zhang et al.)")
    group.add_argument(
        "--label-smoothing", type=number(float, "[0, 1)"), default=0.0, metavar="PART", help="in every loss"
    )
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="mirror and shift training images by chance; None: not with baseline",
    )
    group.add_argument(
        "--shift", type=number(int, "[0, 31]"), default=4, metavar="PIXELS", help="how far --augment moves an image"
    )
    group.add_argument(
        "--l2",
        type=number(float, "[0, 1000]"),
        default=1e-3,
        metavar="FACTOR",
        help="L2 penalty on convolution kernels",
    )
    group.add_argument(
        "--dropout",
        type=number(float, "[0, 1)"),
        default=0.5,
        metavar="PART",
        help="part of the last dense layer's inputs dropped",
    )
    group.add_argument(
        "--no-shuffle", action="store_true", help="take the training images in the same order each epoch"
    )
    group.add_argument("--seed", type=number(int, "[0, inf)"), default=0, metavar="N", help="fixes every random draw")
    group.add_argument(
        "--device", type=device_type, default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N"
    )
    group.add_argument(
        "--threads", type=number(int, "[1, 256]"), metavar="N", help="CPU threads; None leaves the choice to torch"
    )
    group.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of weights and images")
    group.add_argument(
        "--mixed-precision",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="convolutions in bfloat16: faster where the hardware has it, slower elsewhere",
    )
    group.add_argument(
        "--tf32", action="store_true", help="shorten products' mantissa to 10 bits on newer GPUs, which is faster"
    )
    group.add_argument(
        "--deterministic", action="store_true", help="the same bits from each run on a GPU too; a CPU's always are"
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile, for CUDA; a CPU is slower with it, and needs a compiler"
    )

    group = parser.add_argument_group("callbacks, all watching the validation loss with its L2 penalty")
    group.add_argument(
        "--patience",
        type=number(int, "[0, inf)"),
        default=5,
        metavar="EPOCHS",
        help="stop after so many without a better one",
    )
    group.add_argument(
        "--schedule",
        choices=SCHEDULE_STATE,
        default=PLATEAU,
        help="cosine falls to --min-lr, onecycle rises for a quarter and falls to 0: step by step over all epochs",
    )
    group.add_argument(
        "--lr-patience", type=number(int, "[0, inf)"), default=3, metavar="EPOCHS", help="cut the rate after so many"
    )
    group.add_argument(
        "--lr-factor",
        type=number(float, "(0, 1)"),
        default=0.5,
        metavar="FACTOR",
        help="a cut multiplies the rate by it",
    )
    group.add_argument(
        "--min-lr", type=number(float, "[0, 1000]"), default=1e-6, metavar="RATE", help="no cut goes below this rate"
    )

    group = parser.add_argument_group("data and output")
    group.add_argument(
        "--data",
        type=path_type,
        default="data",
        metavar="PATH",
        help="folder with torchvision's CIFAR-10 (downloaded there once), an .npz file with x_train, y_train, x_test, "
        f"y_test, or the word {data.SYNTHETIC} for an offline stand-in",
    )
    group.add_argument(
        "--validation-split",
        type=number(float, "(0, 1)"),
        default=0.2,
        metavar="PART",
        help="part of the training images, the last ones, kept for validation",
    )
    group.add_argument(
        "--init-weights",
        type=path_type,
        metavar="FILE.npz",
        help="start from these weights: np.savez(FILE, *model.get_weights()) of the Keras model, or a run's own",
    )
    group.add_argument(
        "--out",
        type=path_type,
        default="runs/<name>-seed<seed>",
        metavar="DIR",
        help="the run's directory; <seed> stands for the seed, <name> for the recipe or else the model",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with the run in --out if there is one, after its last whole epoch"
    )
    group.add_argument("--quiet", action="store_true", help="one line per epoch and no progress bar")
    group.add_argument("--json", action="store_true", help="end with the figures as a JSON object in one line")
    args = parser.parse_args(argv)
    if args.recipe is not None:
        parser.set_defaults(**RECIPES[args.recipe].defaults)
        args = parser.parse_args(argv)
    if args.augment is None:
        args.augment = args.model != "baseline"
    if args.weight_decay is None:
        args.weight_decay = KERAS_ADAMW_DECAY if args.optimizer == "adamw" else 0.0
    if args.weight_decay and args.optimizer == "adam":
        parser.error(f"--weight-decay {args.weight_decay} is not for adam: pass --optimizer adamw, or --l2")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        parser.error("--compile needs a C++ compiler, and there is no g++: install one, or leave --compile out")
    if args.mixed_precision and args.dtype != "float32":
        parser.error(f"--mixed-precision does not go with --dtype {args.dtype}: pass one of the two")
    args.out = Path(args.out.replace("<seed>", str(args.seed)).replace("<name>", args.recipe or args.model))
    args.init_weights = args.init_weights and Path(args.init_weights)
    return args


def run(args: argparse.Namespace) -> None:
    """Do the whole job: data, network, training, test figures, and the files of the run's directory."""
    flags = {name: value if isinstance(value, int | float | None) else str(value) for name, value in vars(args).items()}
    if finished := distributed.first(lambda: runs.check(args.out, flags, args.resume)):
        return report_finished(args, finished)
    device = args.device
    set_up_torch(args)
    if device.type == "cpu" and not torch.cuda.is_available():
        say("No CUDA device: training on the CPU.")

    seed_torch(args.seed, 0)
    # Drawn on the CPU and in float32, so that a seed means the same initial weights on every device. In channels_last
    # memory convolution and pooling are vectorised over channels, and the stored images need no copy.
    model = build_model(args.model, args.dropout)
    model.to(device, getattr(torch, args.dtype), memory_format=torch.channels_last)
    if args.init_weights is not None:
        load_initial_weights(model, args.init_weights)

    arrays = data.load(args.data)
    data_sha256 = data.fingerprint(arrays)
    training, validation = data.split_validation(arrays.x_train, arrays.y_train, args.validation_split)
    test = data.as_split(arrays.x_test, arrays.y_test)
    training, validation, test = (part.to(device) for part in (training, validation, test))
    if args.model == "whitened" and args.init_weights is None:
        model.whiten(training.images[:WHITENING_IMAGES])
    distributed.unify(model)
    initial_weights = to_keras_weights(model)

    environment = runs.environment(device) | {"processes": distributed.size()}
    config = {"model": args.model, "data": data.describe(args.data), "data_sha256": data_sha256, "flags": flags}
    with contextlib.ExitStack() as stack:

        def open_directory() -> tuple[dict | None, dict | None]:
            """Return the metrics of a finished run, the checkpoint of an unfinished one."""
            stack.enter_context(runs.claimed(args.out))
            # Once more: another process may have been at work here while the data were read.
            if finished := runs.check(args.out, flags, args.resume, data_sha256, own=True):
                return finished, None
            checkpoint = None
            if (args.out / runs.CHECKPOINT).exists():
                like = checkpoint_like(model, make_optimizer(model, args), args.schedule)
                checkpoint = runs.read_checkpoint(args.out / runs.CHECKPOINT, like)
                if args.init_weights is not None and checkpoint["initial_weights"] != runs.fingerprint(initial_weights):
                    raise runs.RunError(
                        f"--init-weights {args.init_weights}: not the weights that the run in {args.out} started from; "
                        "pass those or another --out"
                    )
            runs.write_json(args.out / runs.CONFIG, config | environment)
            for stale in (runs.ERROR, runs.METRICS, runs.CURVES, runs.CONFUSION):
                (args.out / stale).unlink(missing_ok=True)
            if checkpoint is None:
                runs.write_arrays(args.out / runs.INITIAL_WEIGHTS, initial_weights)
            return None, checkpoint

        finished, checkpoint = distributed.first(open_directory)
        if finished:
            return report_finished(args, finished)
        train(args, model, (training, validation, test), checkpoint, runs.fingerprint(initial_weights), environment)
    return None


def set_up_torch(args: argparse.Namespace) -> None:
    """Take threads, TF32 and determinism from the flags: torch's settings for the whole process."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # Convolutions on newer GPUs would have it by default; neither Keras's figures nor the CPU's do.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    if args.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    torch.use_deterministic_algorithms(args.deterministic)


def report_finished(args: argparse.Namespace, metrics: dict) -> None:
    say(f"{args.out}: finished already, after epoch {metrics['epochs']}: {metrics['stopped']}.")
    say(f"Test accuracy: {metrics['test_accuracy']:.4f}", *[json.dumps(metrics)] * args.json)


def train(
    args: argparse.Namespace,
    model: nn.Module,
    parts: tuple[data.Split, data.Split, data.Split],
    checkpoint: dict | None,
    initial_weights: str,
    environment: dict,
) -> None:
    """Train from the start or from `checkpoint`, and write what is to be known of the finished run."""
    training, validation, test = parts
    source = data.describe(args.data)
    name = args.model if args.recipe is None else f"recipe {args.recipe}, {args.model}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bits = {"device": args.device.type, "dtype": args.dtype, "torch": environment["versions"]["torch"]} | {
        name: environment[name] for name in ("device_name", "cpu_capability", "threads", "processes")
    }
    origin = {"bits": bits, "bits_changed": [], "initial_weights": initial_weights}
    say(
        f"{name}, {parameters:,} parameters, seed {args.seed}, {bits['device_name']}, {bits['threads']} threads"
        + f" in each of {bits['processes']} processes" * distributed.launched(),
        f"{source}: {len(training):,} training, {len(validation):,} validation, {len(test):,} test images",
        f"Run directory: {args.out}",
    )
    if checkpoint is not None:
        say(f"Resuming after epoch {checkpoint['epoch']}.")
        before = checkpoint["bits"]
        changed = [f"{name} {bits[name]} instead of {before[name]}" for name in bits if bits[name] != before[name]]
        origin["bits_changed"] = checkpoint["bits_changed"]
        if changed:
            origin["bits_changed"] += [f"after epoch {checkpoint['epoch']}: {', '.join(changed)}"]
            say(f"With {', '.join(changed)}: figures may differ in their last bits from an undisturbed run's.")
        origin["initial_weights"] = checkpoint["initial_weights"]

    history, learning_rates, seconds, early_stopping = fit(model, training, validation, args, origin, checkpoint)

    objective = objective_of(args)
    figures, confusion = evaluate(model, test, objective)
    # A network that was trained on mirror images knows them too.
    mirrored = evaluate(model, test, objective, mirrored=True)[0]["accuracy"] if args.augment else None
    names = data.class_names(args.data)
    cuts = runs.learning_rate_cuts(history, learning_rates) if args.schedule == PLATEAU else []
    metrics = {
        "model": args.model,
        "data": source,
        "seed": args.seed,
        "initial_weights": origin["initial_weights"],
        "parameters": parameters,
        "test_loss": figures["loss"],
        "test_accuracy": figures["accuracy"],
        "test_accuracy_mirrored": mirrored,
        "test_per_class": runs.per_class(confusion, names),
        "test_confusion": confusion,
        "epochs": len(history),
        "best_epoch": early_stopping.best_epoch + 1,
        "stopped": runs.EARLY_STOPPING if early_stopping.should_stop else runs.ALL_EPOCHS,
        "schedule": args.schedule,
        "learning_rate_cuts": cuts,
        "learning_rate_after_epoch": learning_rates,
        "seconds_per_epoch": seconds,
        "images_per_second": len(training) * len(history) / sum(seconds),
        "bits_changed": origin["bits_changed"],
    }
    title = f"{name}, seed {args.seed}, {source}: test accuracy {figures['accuracy']:.4f}"
    if distributed.rank():
        return
    picture = plots.curves(history, learning_rates, metrics["best_epoch"], [cut["epoch"] for cut in cuts], title)
    runs.write_bytes(args.out / runs.CURVES, picture)
    runs.write_bytes(args.out / runs.CONFUSION, plots.confusion(confusion, names, title))
    runs.write_json(args.out / runs.METRICS, metrics)
    say("", runs.reading(history, metrics, args.epochs), runs.most_confused(confusion, names))
    if args.augment:
        say(f"Test accuracy, logits averaged with the mirror image's: {mirrored:.4f}")
    say(f"Test accuracy: {figures['accuracy']:.4f}")
    if args.json:
        say(json.dumps(metrics))


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Start `model` from the arrays that `np.savez(path, *weights)` wrote."""
    arrays = data.read_npz("--init-weights", path, INITIAL_WEIGHTS_LIMIT)
    try:
        from_keras_weights(model, [arrays[f"arr_{number}"] for number in range(len(arrays))])
    except (KeyError, ValueError) as error:
        what = f"no array {error}" if isinstance(error, KeyError) else error
        raise data.DataError(
            f"--init-weights {path}: {what}; write the file with np.savez(FILE, *model.get_weights())"
        ) from None


def objective_of(args: argparse.Namespace) -> Objective:
    return Objective(args.l2, args.label_smoothing, args.mixed_precision)


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    # Difference 9: a float32 Keras model keeps its rates in float32, so that 0.001 is 0.0010000000474974513.
    lr = rounded(args.lr, getattr(torch, args.dtype))
    return OPTIMIZERS[args.optimizer](parameter_groups(model, args.l2, args.weight_decay), lr, args.lookahead)


def checkpoint_like(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: str) -> dict:
    """What a checkpoint of such a run must look like, as `runs.read_checkpoint` takes it."""
    # On the CPU, from where all processes get it, whatever their device.
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    parameters = {name: weights[name] for name, _ in model.named_parameters()}
    logs = dict.fromkeys(("accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"), float)
    return {
        "epoch": int,
        "weights": weights,
        "best_weights": weights,
        "optimizer": {"steps": int} | dict.fromkeys(optimizer.moment_names, parameters),
        "early_stopping": EarlyStopping.STATE,
        "schedule": SCHEDULE_STATE[schedule],
        "history": [logs],
        "learning_rates": [float],
        "seconds": [float],
        "bits": dict.fromkeys(("device", "dtype", "torch", "device_name", "cpu_capability"), str)
        | {"threads": int, "processes": int},
        "bits_changed": [str],
        "initial_weights": str,
    }


def fit(
    model: nn.Module,
    training: data.Split,
    validation: data.Split,
    args: argparse.Namespace,
    origin: dict,
    checkpoint: dict | None,
):
    """Train `model` and put its best weights back; return history, rate after each epoch, seconds, EarlyStopping.

    Each epoch's end is kept in the run's checkpoint together with `origin`.
    """
    objective, optimizer, early_stopping = objective_of(args), make_optimizer(model, args), EarlyStopping(args.patience)
    steps, min_lr = math.ceil(len(training) / args.batch_size), rounded(args.min_lr, dtype_of(model))
    per_step = None
    if args.schedule == PLATEAU:
        schedule = reduce_lr_on_plateau(optimizer, args.lr_factor, args.lr_patience, min_lr)
    else:
        schedule = per_step = per_step_schedule(args.schedule, optimizer, args.epochs * steps, min_lr)
    history, learning_rates, seconds = [], [], []
    if checkpoint is not None:
        history, learning_rates, seconds = (checkpoint[name] for name in ("history", "learning_rates", "seconds"))
        best = checkpoint["best_weights"]
        early_stopping.load_state_dict(checkpoint["early_stopping"])
        schedule.load_state_dict(checkpoint["schedule"])
        optimizer.set_moments(model, checkpoint["optimizer"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rates[-1]
        if not distributed.rank():
            # The process before may have ended between its checkpoint and these.
            runs.write_history(args.out / runs.HISTORY, history)
            write_best(model, best, args.out)
        model.load_state_dict(checkpoint["weights"])
    hide = args.quiet or not sys.stderr.isatty() or distributed.rank() > 0
    # The weights keep their names in `model`, whose evaluation is left alone: other shapes would be compiled anew.
    mode = "reduce-overhead" if args.device.type == "cuda" else None
    network = torch.compile(model, mode=mode) if args.compile else model

    for epoch in range(len(history), args.epochs):
        if early_stopping.should_stop:
            break
        with signals.deferred():  # a signal waits for the end of a step, or of the epoch's files
            started = time.perf_counter()
            seed_torch(args.seed, epoch + 1)
            # Drawn on the CPU: one order for every device.
            order = None if args.no_shuffle else torch.randperm(len(training)).to(args.device)
            views = data.random_views(len(training), args.shift).to(args.device) if args.augment else None
            if distributed.rank():
                seed_torch(args.seed, epoch + 1, distributed.rank())  # for dropout masks of its own
            title = f"Epoch {epoch + 1}/{args.epochs}"
            rate = optimizer.param_groups[0]["lr"]
            try:
                with tqdm(total=steps, desc=title, unit="step", leave=False, disable=hide) as bar:
                    logs = train_epoch(
                        network, optimizer, training, order, args.batch_size, objective, bar, views, per_step
                    )
                figures, _ = evaluate(model, validation, objective)
                logs |= {f"val_{name}": value for name, value in figures.items()}
            except DivergedError as error:
                raise DivergedError(
                    f"the loss is not finite in epoch {epoch + 1}, {error}, learning rate {rate:g}; "
                    f"the epochs before are kept in {args.out}; try a smaller --lr in another --out"
                ) from None
            logs["learning_rate"] = rate
            history.append(logs)

            is_best = early_stopping.update(epoch, logs)
            if is_best:
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if args.schedule == PLATEAU:
                schedule.step(logs["val_loss"])
            # As in the notebook, the rate is logged after the cut: it is the next epoch's.
            learning_rates.append(optimizer.param_groups[0]["lr"])
            seconds.append(time.perf_counter() - started)

            state = {
                "epoch": epoch + 1,
                "weights": model.state_dict(),
                "best_weights": best,
                "optimizer": optimizer.moments(model),
                "early_stopping": early_stopping.state_dict(),
                "schedule": {name: getattr(schedule, name) for name in SCHEDULE_STATE[args.schedule]},
                "history": history,
                "learning_rates": learning_rates,
                "seconds": seconds,
            }
            if not distributed.rank():
                # First of all files: what the others say can be had from it, when the process ends before they are.
                runs.write_checkpoint(args.out / runs.CHECKPOINT, state | origin)
                runs.write_history(args.out / runs.HISTORY, history)
                if is_best:
                    write_best(model, best, args.out)
            say(f"{title} - {keras_line(steps, seconds[-1], logs)}")
            if args.schedule == PLATEAU and learning_rates[-1] != logs["learning_rate"]:
                say(f"Epoch {epoch + 1}: ReduceLROnPlateau reducing learning rate to {learning_rates[-1]}.")
            if early_stopping.should_stop:
                say(f"Epoch {epoch + 1}: early stopping")

    say(f"Restoring model weights from the end of the best epoch: {early_stopping.best_epoch + 1}.")
    model.load_state_dict(best)
    return history, learning_rates, seconds, early_stopping


def write_best(model: nn.Module, best: dict[str, Tensor], out: Path) -> None:
    """Write the best weights for torch and for Keras; `model` has them afterwards."""
    model.load_state_dict(best)
    runs.write_weights(out / runs.WEIGHTS, best)
    runs.write_arrays(out / runs.BEST_WEIGHTS, to_keras_weights(model))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: data.Split,
    order: Tensor | None,
    batch_size: int,
    objective: Objective,
    bar: tqdm,
    views: data.Views | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> dict[str, float]:
    """Take one step per batch; return loss and accuracy as each batch had them, dropout on, before its own step.

    Raises DivergedError naming the first batch whose loss is not finite.
    """
    model.train()
    sums = 0
    every = CHECK_EVERY[training.labels.device.type]
    rank, size = distributed.rank(), distributed.size()
    batches = data.batches(training, batch_size, order, dtype_of(model), views, rank, size)
    for step, (images, labels) in enumerate(batches, start=1):
        signals.check()
        logits, loss = objective(model, images, labels)
        sums += batch_sums(model, logits, labels, loss, objective.l2)
        if step % every == 0:
            check_finite(distributed.total(sums))
        optimizer.zero_grad()
        # The mean over the whole batch: the short last one is smaller, and this process's slice may be empty.
        (loss / min(batch_size, len(training) - (step - 1) * batch_size)).backward()
        distributed.total_gradients(model)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        bar.update()
    return means(distributed.total(sums), len(training), dtype_of(model))


@torch.inference_mode()
def evaluate(
    model: nn.Module, part: data.Split, objective: Objective, mirrored: bool = False
) -> tuple[dict[str, float], list[list[int]]]:
    """Return loss and accuracy on `part`, dropout off, and `[true class][predicted class]` counts of its images."""
    model.eval()
    sums, classes = 0, len(data.CLASSES)
    pairs = part.labels.new_zeros(classes**2)
    rank, size = distributed.rank(), distributed.size()
    for images, labels in data.batches(part, EVALUATION_BATCH, None, dtype_of(model), None, rank, size):
        signals.check()
        logits, loss = objective(model, images, labels, mirrored)
        sums += batch_sums(model, logits, labels, loss, objective.l2)
        pairs.index_add_(0, labels * classes + logits.argmax(1), torch.ones_like(labels))  # bincount waits for a GPU
    sums, pairs = distributed.total(sums), distributed.total(pairs)
    try:
        return means(sums, len(part), dtype_of(model)), pairs.reshape(classes, classes).tolist()
    except DivergedError as error:
        raise DivergedError(f"evaluation {error}") from None


@torch.no_grad()
def batch_sums(model: nn.Module, logits: Tensor, labels: Tensor, loss: Tensor, l2: float) -> Tensor:
    """Return (3,) float64 on the device: sum of losses, correct answers, 1 if the loss is finite."""
    # Difference 3: weight decay gives the gradient of the penalty, but Keras's loss shows the penalty itself.
    loss = loss.double() + l2_penalty(model, l2).double() * len(labels)
    return torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.isfinite()])


def check_finite(sums: Tensor) -> None:
    total, _, finite_batches = sums.tolist()
    if not math.isfinite(total):
        raise DivergedError(f"batch {finite_batches // distributed.size() + 1:.0f}")


def means(sums: Tensor, count: int, dtype: torch.dtype) -> dict[str, float]:
    """Read the sums of an epoch off the device, once, as figures per image; values of `dtype`, as Keras logs them."""
    check_finite(sums)
    loss, accuracy, _ = (sums / count).tolist()
    return {"accuracy": rounded(accuracy, dtype), "loss": rounded(loss, dtype)}


def rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def seed_torch(*entropy: int) -> None:
    """Seed every torch generator with a function of `entropy`: (seed, 0) before the start, (seed, epoch from 1)."""
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


def keras_line(steps: int, seconds: float, logs: dict[str, float]) -> str:
    """Format an epoch's figures as Keras's `verbose=2` does."""
    per_step = seconds / steps
    step_time = (
        f"{per_step:.0f}s"
        if per_step >= 1
        else f"{per_step * 1e3:.0f}ms"
        if per_step >= 1e-3
        else f"{per_step * 1e6:.0f}us"
    )
    names = ("accuracy", "loss", "val_accuracy", "val_loss", "learning_rate")
    figures = [f"{name}: {logs[name]:{'.4f' if logs[name] > 1e-3 else '.4e'}}" for name in names]
    return " - ".join([f"{steps}/{steps}", f"{seconds:.0f}s", f"{step_time}/step", *figures])


if __name__ == "__main__":
    sys.exit(main())
