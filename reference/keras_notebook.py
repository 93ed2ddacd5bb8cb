"""Train the notebook's recipe in Keras 3, on the backend that KERAS_BACKEND names, to compare with train.py.

    KERAS_BACKEND=tensorflow python reference/keras_notebook.py --epochs 50 --batch-size 64 --data cifar10.npz

It writes the same kind of run directory as train.py, but shares only the directory lock and the code hash with it. The
exit code is 1 if training diverged or a file could not be written, 2 for bad input.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a script, Python adds only its own folder
from running import code

VALIDATION = 0.2  # the last part of the training images
CONFIG, METRICS = "config.json", "metrics.json"
FILES = (CONFIG, "initial_weights.npz", "history.csv", "best_weights.npz", METRICS)  # in the order they are written
WHERE = {"out", "resume", "data", "init_weights", "draws"}  # options that are not settings: switches and paths
IN_FLOAT32 = {  # what Keras computes in float32 despite --dtype float64, by backend and model
    ("torch", "baseline"): "dense layers and reported metrics",
    ("torch", "improved"): "dense layers, BatchNorm and reported metrics",
    ("jax", "improved"): "BatchNorm",
}
PACKAGES = {"tensorflow": "tensorflow-cpu", "torch": "torch", "jax": "jax"}  # to install, by backend


def within(kind: type, least: float, below: float = math.inf):
    """Return an argparse type: a number of `kind`, at least `least` and less than `below`."""

    def number(text: str):
        with contextlib.suppress(ValueError):
            if least <= kind(text) < below:
                return kind(text)
        what = "a whole number" if kind is int else "a number"
        limit = "" if below == math.inf else f" and below {below:g}"
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not {what} of at least {least:g}{limit}")

    return number


def path(text: str) -> str:
    if not text.isprintable() or not text:
        raise ValueError
    return os.path.expanduser(text)  # a shell leaves the ~ of --out=~/x alone


count, patience = within(int, 1), within(int, 0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        prog="keras_notebook.py",
        usage=argparse.SUPPRESS,  # an error is one line
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="baseline", help="a network from MODELS in reference/notebook.py")
    parser.add_argument("--epochs", type=count, default=50, help="maximum number of epochs")
    parser.add_argument("--batch-size", type=count, default=64, help="images per step")
    parser.add_argument("--lr", type=within(float, 1e-30), default=1e-3, help="Adam's initial learning rate")
    parser.add_argument("--dropout", type=within(float, 0, 1), default=0.5, help="fraction of units to drop")
    parser.add_argument("--patience", type=patience, default=5, help="early stopping's patience in epochs")
    parser.add_argument("--lr-patience", type=patience, default=3, help="patience of the learning-rate cut in epochs")
    parser.add_argument("--min-lr", type=within(float, 0), default=1e-6, help="no cut goes below this rate")
    parser.add_argument("--no-shuffle", action="store_true", help="use the same order of images in each epoch")
    parser.add_argument("--seed", type=within(int, 0, 2**32), default=0, help="fixes initial weights and dropout masks")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="Keras's floatx")
    file = {"type": path, "metavar": "FILE.npz"}
    parser.add_argument("--data", **file, help="x_train, y_train, x_test, y_test; without it, Keras downloads CIFAR-10")
    parser.add_argument("--init-weights", **file, help="start from np.savez(FILE, *model.get_weights())")
    parser.add_argument("--draws", **file, help="order, masks and views, from reference/draws.py")
    parser.add_argument(
        "--out", type=path, default="runs/keras-seed<seed>", help="the run's directory, without a run in it"
    )
    parser.add_argument("--resume", action="store_true", help="keep a finished run in --out, restart an unfinished one")
    args = parser.parse_args(argv)
    args.out = Path(args.out.replace("<seed>", str(args.seed)))
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_arguments(argv)
    except SystemExit as stop:
        return stop.code
    try:
        import keras

        from reference import notebook, replay
    except (ImportError, ValueError) as error:
        packages = f"keras {PACKAGES.get(os.environ.get('KERAS_BACKEND', 'tensorflow'), 'tensorflow-cpu')}"
        remedy = f"pip install {packages}, or set KERAS_BACKEND to {', '.join(PACKAGES)}"
        return refuse(f"Keras cannot be used ({error}); {remedy}")
    if keras.config.image_data_format() != "channels_last":  # it would change the order of a dense kernel's rows
        return refuse("Keras is set to channels_first; set image_data_format to channels_last in ~/.keras/keras.json")
    if args.model not in notebook.MODELS:
        return refuse(f"--model {args.model}: no such network; pass {' or '.join(notebook.MODELS)}")
    notebook.set_precision(args.dtype)
    what = IN_FLOAT32.get((keras.backend.backend(), args.model))
    if what and args.dtype == "float64":
        print(f"keras_notebook.py: note: on this backend Keras computes {what} in float32 anyway", file=sys.stderr)
    if args.resume and finished(args.out):
        different = differences(args) + other_files(args)
        if different:
            return refuse(f"--out {args.out}: the run there had {', '.join(different)}; pass another --out")
        print(f"finished already: {args.out}")
        return 0
    try:
        arrays = notebook.load_data(args.data)
        notebook.seed_everything(args.seed)
        model = notebook.MODELS[args.model](arrays[0].shape[1:], arrays[4], args.dropout)
        if args.init_weights:
            model.set_weights(notebook.in_order(notebook.read_arrays(args.init_weights)))
        draws = None
        if args.draws:
            draws = replay.Draws(args.draws)
            model = replay.with_masks(model)
            draws.check(cut(arrays[0]), notebook.fingerprint(arrays), args, model)
        lock = claim(args.out, args.resume)
    except (ValueError, OSError) as error:
        return refuse(error)
    try:
        return run(model, arrays, draws, args)
    except OSError as error:  # the disk is full or not writable
        what = f"fix that, delete {args.out}, and start again"
        print(f"keras_notebook.py: error: {error}; {what}", file=sys.stderr)
        return 1
    finally:
        lock.release()


def finished(out: Path) -> bool:
    """Return whether `out` contains a finished run of this program."""
    try:
        config, metrics = (json.loads((out / name).read_text()) for name in (CONFIG, METRICS))
    except (OSError, ValueError):
        return False
    return "backend" in config and "test_accuracy" in metrics


def differences(args: argparse.Namespace) -> list[str]:
    """Return the settings of the finished run in `args.out` that differ from `args`, as flags."""
    saved, metrics = (json.loads((args.out / name).read_text()) for name in (CONFIG, METRICS))
    now = vars(args)
    had = saved["flags"]
    names = now.keys() - WHERE
    if metrics.get("stopped") == "early stopping" and metrics["epochs"] <= args.epochs:
        names -= {"epochs"}  # it would have stopped in the same epoch
    return [
        f"--{name.replace('_', '-')} {had[name]}" for name in sorted(names) if had.get(name, now[name]) != now[name]
    ]


def other_files(args: argparse.Namespace) -> list[str]:
    """Return which inputs in `args` differ from those of the finished run in `args.out`; print which are unreadable."""
    from reference import notebook

    saved, metrics = (json.loads((args.out / name).read_text()) for name in (CONFIG, METRICS))
    draws = saved["flags"].get("draws")
    different = [] if bool(draws) == bool(args.draws) else [f"--draws {draws}"]
    try:
        data_sha256 = notebook.fingerprint(notebook.load_data(args.data))
        if saved.get("data_sha256", data_sha256) != data_sha256:
            different.append("other images or labels")
        if args.init_weights:
            weights = notebook.in_order(notebook.read_arrays(args.init_weights))
            if notebook.hash_of([array.astype(args.dtype) for array in weights]) != metrics["initial_weights"]:
                different.append("other initial weights")
    except ValueError as error:
        print(f"keras_notebook.py: note: {error}; cannot tell whether it has changed", file=sys.stderr)
    return different


def claim(out: Path, resume: bool):
    """Create the directory `out` if needed and return its lock; with `resume`, delete the files of an earlier run.

    Raises ValueError if another process uses `out`, or if `out` contains a run and `resume` is false, or a run of
    another program.
    """
    from running.lock import DirectoryLock, InUse

    out.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(out)
    try:
        lock.claim()
    except InUse as holder:
        raise ValueError(f"--out {out}: in use by {holder}; wait until that is done") from None
    except NotImplementedError as error:
        print(f"keras_notebook.py: note: no locks in {out} ({error}): let no other run use it", file=sys.stderr)
    left = [out / name for name in FILES if (out / name).exists()]
    if left and not (resume and own(out)):
        lock.release()
        raise ValueError(f"--out {out}: already holds a run; pass another --out, or delete that folder first")
    for path in left:
        path.unlink()
    return lock


def own(out: Path) -> bool:
    """Return whether the run in `out` was written by this program."""
    try:
        return "backend" in json.loads((out / CONFIG).read_text())
    except FileNotFoundError:
        return False
    except ValueError:  # its process ended while writing this file, the first one
        return True


def refuse(why: object) -> int:
    print(f"keras_notebook.py: error: {' '.join(str(why).split())}", file=sys.stderr)
    return 2


def cut(images: np.ndarray) -> int:
    """Return the index at which Keras's `validation_split` cuts."""
    return math.floor(len(images) * (1 - VALIDATION))


def run(model, arrays: tuple[np.ndarray, ...], draws, args: argparse.Namespace) -> int:
    """Train the Keras `model` as the notebook does, write the run's directory, and return the exit code."""
    import keras

    from reference import notebook

    notebook.compile_model(model, args.lr)
    backend = keras.backend.backend()
    versions = {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__}
    versions[backend] = __import__(backend).__version__
    name = "keras notebook" if args.model == "baseline" else f"keras {args.model}"
    flags = vars(args) | (draws.augmentation if draws else {"augment": False})
    config = {"program": code.KERAS, "model": name, "backend": backend, "flags": flags, "versions": versions}
    config["code_sha256"] = code.sha256(code.KERAS)
    config["data_sha256"] = notebook.fingerprint(arrays)
    (args.out / CONFIG).write_text(json.dumps(config, indent=1, default=str) + "\n")
    initial_weights = model.get_weights()
    np.savez(args.out / "initial_weights.npz", *initial_weights)

    early_stopping = keras.callbacks.EarlyStopping("val_loss", patience=args.patience, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=args.lr_patience, min_lr=args.min_lr)
    log = notebook.EpochLog()
    logging = [early_stopping, plateau, log, keras.callbacks.CSVLogger(args.out / "history.csv")]
    common = {"epochs": args.epochs, "callbacks": logging, "verbose": 2}
    x_train, y_train, x_test, y_test = notebook.prepare(*arrays)
    first = cut(x_train)
    if draws is None:
        common |= {"validation_split": VALIDATION, "batch_size": args.batch_size, "shuffle": not args.no_shuffle}
        history = model.fit(x_train, y_train, **common).history
    else:
        batches = draws.batches(x_train, y_train)
        common |= {"steps_per_epoch": math.ceil(first / args.batch_size), "validation_batch_size": args.batch_size}
        common |= {"shuffle": False}
        validation = (draws.beside(x_train[first:]), y_train[first:])
        history = model.fit(batches, validation_data=validation, **common).history
        x_test = draws.beside(x_test)

    test_loss, test_accuracy = model.evaluate(x_test, y_test, verbose=0)
    if not np.isfinite([test_loss, *history["loss"], *history["val_loss"]]).all():
        print("keras_notebook.py: error: training diverged: a loss is not finite; try a lower --lr", file=sys.stderr)
        return 1
    np.savez(args.out / "best_weights.npz", *model.get_weights())
    epochs = len(log.seconds)
    pairs = enumerate(zip(history["learning_rate"], log.learning_rates, strict=True), start=1)
    metrics = {
        "model": name,
        "data": str(args.data or "CIFAR-10 from keras.datasets"),
        "seed": args.seed,
        "initial_weights": notebook.hash_of(initial_weights),
        "parameters": model.count_params(),
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "epochs": epochs,
        "best_epoch": early_stopping.best_epoch + 1,
        "stopped": "early stopping" if early_stopping.stopped_epoch else "all epochs used",
        "learning_rate_cuts": [
            {"epoch": epoch, "learning_rate": after} for epoch, (before, after) in pairs if after != float(before)
        ],
        "learning_rate_after_epoch": log.learning_rates,
        "seconds_per_epoch": log.seconds,
        "images_per_second": first / statistics.median(log.seconds),
    }
    (args.out / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"Test accuracy: {test_accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
