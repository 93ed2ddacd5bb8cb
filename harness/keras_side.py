"""Keras's side of a pair of runs, `reference/keras_notebook.py` as a process: its backend, its flags, its directory."""

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from harness import files, jobs
from harness.errors import BadInput, Unavailable
from harness.flags import flag_of
from harness.jobs import LOG, Job
from harness.lock import LOCK, Held, Lock
from harness.run import BEST_WEIGHTS, CONFIG, EARLY_STOPPING, HISTORY, INITIAL_WEIGHTS, METRICS

# The options of train.py that it has too, besides --data, --seed and --out, and those that it need not have.
OPTIONS = ("model", "epochs", "batch_size", "lr", "dropout", "patience", "lr_patience", "min_lr", "no_shuffle")
OPTIONS += ("dtype", "init_weights")
MODELS = ("baseline", "improved")
NEEDLESS = ("seed", "mixed_precision", "tf32", "deterministic", "compile")
FILES = (CONFIG, INITIAL_WEIGHTS, HISTORY, BEST_WEIGHTS, METRICS)
# Neither TensorFlow nor JAX is to take all of a GPU's memory, which several runs share.
ON_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def backend() -> str:
    """The backend that KERAS_BACKEND names, or else the notebook's own if it is installed, or else torch."""
    # Not what ~/.keras/keras.json says: Keras writes TensorFlow there without having it.
    return os.environ.get("KERAS_BACKEND") or ("tensorflow" if importlib.util.find_spec("tensorflow") else "torch")


def refuse(flags: dict, not_default: list[str], seed: int) -> None:
    """Raise BadInput if it has not one of train.py's `flags`, or cannot take `seed`. It augments no images."""
    names = [name for name in not_default if name not in (*OPTIONS, *NEEDLESS, "augment")]
    names += ["model"] if flags["model"] not in MODELS else []
    found = [f"{flag_of(name)} {flags[name]}" for name in names]
    found += ["augmentation (--no-augment turns it off)"] if flags["augment"] else []
    if found:
        lacking = ", ".join(found)
        raise BadInput(f"--keras: reference/keras_notebook.py has no {lacking}; leave that or --keras out")
    if seed >= 2**32:
        raise BadInput(f"--seeds {seed}: Keras's side takes none above {2**32 - 1}")


def refuse_without(name: str, download: bool) -> None:
    """Raise BadInput if Keras does not start on the backend `name`, Unavailable if `download` and it has no CIFAR-10.

    With `download` it has CIFAR-10 afterwards, so that runs which start together find it.
    """
    why = _fails("import keras", name)
    if why:
        raise BadInput(f"--keras: Keras on {name} does not start ({why}); install both, or set KERAS_BACKEND")
    if download:
        why = _fails("import keras; keras.datasets.cifar10.load_data()", name)
        if why:
            raise Unavailable(f"--keras: Keras has no CIFAR-10 ({why}); pass --data FILE.npz behind --")


def _fails(program: str, name: str) -> str | None:
    """Return the last line of what a Python `program` complains of; None if it ends well."""
    environment = os.environ | {"KERAS_BACKEND": name}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    return (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1] if ended.returncode else None


def job(
    name: str,
    program: Path,
    out: Path,
    flags: dict,
    defaults: dict,
    data: str | None,
    backend: str,
    device: torch.device,
) -> Job:
    """Return the run of `program` with train.py's `flags`, on `data` or else Keras's own."""
    words = ["--seed", str(flags["seed"]), "--out", str(out)]
    for option in OPTIONS:
        if flags[option] != defaults[option]:
            words += [flag_of(option)] if flags[option] is True else [flag_of(option), str(flags[option])]
    if data is not None:
        words += ["--data", data]
    on_cpu = dict.fromkeys(THREADS, str(flags["threads"] or 1)) | {"CUDA_VISIBLE_DEVICES": ""}
    environment = {"KERAS_BACKEND": backend} | (on_cpu if device.type == "cpu" else ON_GPU | jobs.one_gpu(device))
    look, clear = functools.partial(_look, out, flags, backend), functools.partial(_clear, out)
    return Job(name, out, [sys.executable, str(program), *words], look, flags["epochs"], environment, clear)


def _look(out: Path, flags: dict, backend: str) -> dict | None:
    """Return the metrics of the run in `out` if it has finished, with `flags` on `backend`; None if one can be begun.

    Raises BadInput if neither, and Held if it is at work.
    """
    holder = Lock(out / LOCK).holder()
    if holder is not None:
        raise Held(holder)
    if not any((out / name).exists() for name in FILES):
        return None
    metrics = {}
    with contextlib.suppress(BadInput):  # a full disk cuts a file short
        metrics = files.read_json(out / METRICS)
    if "test_accuracy" not in metrics:
        if (out / LOG).exists():
            return None
        raise BadInput(f"{out}: Keras's run there broke off, and no sweep began it; delete it")
    config = files.read_json(out / CONFIG)
    had_backend = config.get("backend", backend)
    if had_backend != backend:
        raise BadInput(f"{out}: Keras's run there was on {had_backend}, not {backend}; set KERAS_BACKEND={had_backend}")
    had = config.get("flags")
    if not isinstance(had, dict):
        raise BadInput(f"{out}: no flags in its {CONFIG}; delete Keras's run there, or pass another --out behind --")
    if had.get("draws"):
        raise BadInput(f"{out}: Keras's run there had --draws; move it, or pass another --out behind --")
    if metrics.get("stopped") == EARLY_STOPPING and metrics["epochs"] <= flags["epochs"]:
        had = had | {"epochs": flags["epochs"]}  # with as many it would have ended alike
    other = [f"{flag_of(name)} {had[name]}" for name in (*OPTIONS, "seed") if had.get(name, flags[name]) != flags[name]]
    if other:
        raise BadInput(f"{out}: Keras's run there had {', '.join(other)}; delete it, or pass another --out behind --")
    return metrics


def refuse_other_data(finished: list[Path], data_sha256: str) -> None:
    """Raise BadInput if a run in one of the directories `finished` had other data, before others are paired with it."""
    for out in finished:
        if files.read_json(out / CONFIG).get("data_sha256", data_sha256) != data_sha256:
            raise BadInput(f"{out}: Keras's run there had other images or labels; delete it, or pass another --out")


def _clear(out: Path) -> None:
    """Take away what a run that was killed has left: it cannot go on, and begins anew."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
