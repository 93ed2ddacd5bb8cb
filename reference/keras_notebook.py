"""The notebook's recipe in Keras 3, on whichever backend KERAS_BACKEND names: the other side of a comparison.

    KERAS_BACKEND=tensorflow python reference/keras_notebook.py --epochs 50 --batch-size 64 --data cifar10.npz

It leaves the same kind of run directory as train.py and shares no code with it. Exit code 2 for bad input.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
import keras


class EpochLog(keras.callbacks.Callback):
    """The notebook's own callback: the learning rate after each epoch; and the epoch's wall time."""

    def __init__(self):
        super().__init__()
        self.learning_rates, self.seconds = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.learning_rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self.seconds.append(time.perf_counter() - self.started)


def seed_everything(seed: int) -> None:
    """Fix initial weights and dropout masks, and the order too where that does not freeze it.

    `keras.utils.set_random_seed` would give every epoch one and the same permutation on TensorFlow (tensorflow#44195),
    because the shuffle inside its input pipeline restarts; there the order is left random, as it is in the notebook.
    """
    random.seed(seed)  # Keras draws the seeds of its initialisers and of its dropout from here
    np.random.seed(seed)
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(seed)


def build_model(dropout: float = 0.5) -> keras.Model:
    layers, penalty = keras.layers, keras.regularizers.L2(0.001)
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu", padding="same", kernel_regularizer=penalty),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu", padding="same", kernel_regularizer=penalty),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(10, activation="softmax"),
        ]
    )


def compile_model(model: keras.Model, learning_rate: float = 1e-3) -> None:
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Read an `.npz` file of plain arrays; raises ValueError naming it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from None


def load_data(path: str | None) -> tuple[np.ndarray, ...]:
    """Return x_train, y_train, x_test, y_test as stored: images of 0 to 255, and labels."""
    if path is None:
        (x_train, y_train), (x_test, y_test) = keras.datasets.cifar10.load_data()
    else:
        arrays = read_arrays(path)
        missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
        if missing:
            raise ValueError(f"{path}: no array {', '.join(missing)} in it")
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        if x_train.shape[1:] != (32, 32, 3) or x_test.shape[1:] != (32, 32, 3):
            raise ValueError(f"{path}: images of {x_train.shape[1:]} and {x_test.shape[1:]}; they must be (32, 32, 3)")
    return x_train, y_train.reshape(-1).astype(np.int64), x_test, y_test.reshape(-1).astype(np.int64)


def prepare(x_train, y_train, x_test, y_test) -> tuple[np.ndarray, ...]:
    """Return images in [0, 1] of Keras's floatx, and labels one-hot."""
    dtype = keras.config.floatx()
    return (
        x_train.astype(dtype) / 255,
        keras.utils.to_categorical(y_train, 10),
        x_test.astype(dtype) / 255,
        keras.utils.to_categorical(y_test, 10),
    )


def fingerprint(arrays: tuple[np.ndarray, ...]) -> str:
    """SHA-256 of the data as stored, as train.py computes it, so that compare.py knows the same data again."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        prog="keras_notebook.py",
        usage=argparse.SUPPRESS,  # an error is one line
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=count, default=50, help="epochs at most")
    parser.add_argument("--batch-size", type=count, default=64, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's first learning rate")
    parser.add_argument("--dropout", type=float, default=0.5, help="part of the dense units dropped")
    parser.add_argument("--patience", type=int, default=5, help="early stopping's patience in epochs")
    parser.add_argument("--lr-patience", type=int, default=3, help="patience of the learning-rate cut in epochs")
    parser.add_argument("--min-lr", type=float, default=1e-6, help="no cut goes below this rate")
    parser.add_argument("--no-shuffle", action="store_true", help="take the images in the same order each epoch")
    parser.add_argument("--seed", type=int, default=0, help="fixes initial weights and dropout masks")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="Keras's floatx")
    parser.add_argument("--data", metavar="FILE.npz", help="x_train, y_train, x_test, y_test; else Keras downloads")
    parser.add_argument("--init-weights", metavar="FILE.npz", help="start from np.savez(FILE, *model.get_weights())")
    parser.add_argument("--out", default="runs/keras-seed<seed>", help="the run's directory, which must be new")
    args = parser.parse_args(argv)
    args.out = args.out.replace("<seed>", str(args.seed))
    # A shell leaves the ~ of --out=~/x alone.
    args.data, args.init_weights, args.out = (
        path and os.path.expanduser(path) for path in (args.data, args.init_weights, args.out)
    )
    args.out = Path(args.out)
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_arguments(argv)
    except SystemExit as stop:
        return stop.code
    keras.config.set_floatx(args.dtype)
    try:
        seed_everything(args.seed)
        model = build_model(args.dropout)
        if args.init_weights:
            arrays = read_arrays(args.init_weights)
            model.set_weights([arrays[name] for name in sorted(arrays)])  # arr_0 to arr_7
        arrays = load_data(args.data)
        data = prepare(*arrays)
        args.out.mkdir(parents=True)
    except (ValueError, OSError) as error:
        print(f"keras_notebook.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    run(model, *data, fingerprint(arrays), args)
    return 0


def run(model: keras.Model, x_train, y_train, x_test, y_test, sha256: str, args: argparse.Namespace) -> None:
    """Train as the notebook does, and write the run's directory."""
    compile_model(model, args.lr)
    backend = keras.backend.backend()
    versions = {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__}
    versions[backend] = __import__(backend).__version__
    config = {"model": "keras notebook", "backend": backend, "flags": vars(args), "versions": versions}
    config["data_sha256"] = sha256
    (args.out / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
    initial_weights = model.get_weights()
    np.savez(args.out / "initial_weights.npz", *initial_weights)

    early_stopping = keras.callbacks.EarlyStopping("val_loss", patience=args.patience, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=args.lr_patience, min_lr=args.min_lr)
    log = EpochLog()
    history = model.fit(
        x_train,
        y_train,
        validation_split=0.2,
        epochs=args.epochs,
        batch_size=args.batch_size,
        shuffle=not args.no_shuffle,
        callbacks=[early_stopping, plateau, log, keras.callbacks.CSVLogger(args.out / "history.csv")],
        verbose=2,
    ).history

    test_loss, test_accuracy = model.evaluate(x_test, y_test, verbose=0)
    np.savez(args.out / "best_weights.npz", *model.get_weights())
    epochs = len(log.seconds)
    pairs = enumerate(zip(history["learning_rate"], log.learning_rates, strict=True), start=1)
    values = b"".join(array.astype("<f8").tobytes() for array in initial_weights)
    metrics = {
        "model": "keras notebook",
        "data": str(args.data or "CIFAR-10 from keras.datasets"),
        "seed": args.seed,
        "initial_weights": hashlib.sha256(values).hexdigest(),
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
        "images_per_second": len(x_train[: -int(len(x_train) * 0.2)]) * epochs / sum(log.seconds),
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"Test accuracy: {test_accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())
