"""The Keras side of a pair of runs, `reference/keras_notebook.py`: its backend, and which options it supports."""

import importlib.util
import os
import subprocess
import sys

import torch

from cli.errors import BadInput, Unavailable
from running.code import KERAS
from sweeping.jobs import one_gpu
from sweeping.reference import Reference

MODELS = ("baseline", "improved")
# Several runs share a GPU, so neither TensorFlow nor JAX may reserve all of its memory.
ON_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


class KerasSide(Reference):
    label, program = "keras", KERAS
    options = (
        "model", "epochs", "batch_size", "lr", "dropout", "patience", "lr_patience", "min_lr", "no_shuffle", "dtype",
        "init_weights",
    )  # fmt: skip
    needless = ("mixed_precision", "tf32", "deterministic", "compile", "augment")

    @property
    def backend(self) -> str:
        """The backend named by KERAS_BACKEND; otherwise the notebook's, TensorFlow, if installed; otherwise torch."""
        # Not the one in ~/.keras/keras.json: Keras writes TensorFlow there even if it is not installed.
        return os.environ.get("KERAS_BACKEND") or ("tensorflow" if importlib.util.find_spec("tensorflow") else "torch")

    def describe(self) -> str:
        return f"Keras on {self.backend}"

    def refuse(self, flags: dict, not_default: list[str]) -> None:
        if flags["augment"]:
            raise BadInput(f"--keras: {KERAS} augments no images; add --no-augment, or leave --keras out")
        if flags["model"] not in MODELS:
            raise BadInput(f"--keras: {KERAS} has no --model {flags['model']}; leave that or --keras out")
        super().refuse(flags, not_default)

    def refuse_without(self, download: bool) -> None:
        fault = self._fault_of("import keras")
        if fault:
            name = self.backend
            raise BadInput(f"--keras: Keras on {name} does not start ({fault}); install both, or set KERAS_BACKEND")
        if download:  # once, so that runs which start together find it
            fault = self._fault_of("import keras; keras.datasets.cifar10.load_data()")
            if fault:
                raise Unavailable(f"--keras: Keras has no CIFAR-10 ({fault}); pass --data FILE.npz after --")

    def _fault_of(self, program: str) -> str | None:
        """Return the last line that a Python `program` prints to standard error; None if it succeeds."""
        environment = os.environ | {"KERAS_BACKEND": self.backend}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            return None
        return (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]

    def environment(self, device: torch.device, threads: int | None) -> dict[str, str]:
        if device.type == "cpu":
            own = dict.fromkeys(THREADS, str(threads or 1)) | {"CUDA_VISIBLE_DEVICES": ""}
        else:
            own = ON_GPU | one_gpu(device)
        return {"KERAS_BACKEND": self.backend} | own

    def differences(self, config: dict, flags: dict) -> list[str]:
        different = super().differences(config, flags)
        backend = config.get("backend", self.backend)
        if backend != self.backend:
            different.append(f"the backend {backend} (set KERAS_BACKEND={backend})")
        if config["flags"].get("draws"):
            different.append("--draws")
        return different
