"""How this process computes during a run, whatever was set before: torch's settings and environment variables."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import torch
from torch import backends

from cli.errors import BadInput
from running import machine

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# Environment variables that select a library's arithmetic; the number of threads is recorded separately.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    WORKSPACE,
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
SHORTER = {  # variables that make float32 products less precise, unless they have this value
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
    "NVIDIA_TF32_OVERRIDE": "0",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
}
_PRECISIONS = (
    backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
    backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
)  # fmt: skip
_at_work = threading.Lock()


def variables() -> str:
    """Return the VARIABLES that are set, each as `NAME=value`; "none" if none is set."""
    return " ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "none"


def shortening() -> list[str]:
    """Return the variables that make float32 products less precise, each as `NAME=value`."""
    return [
        f"{name}={os.environ[name]}"
        for name, harmless in SHORTER.items()
        if os.environ.get(name, harmless).upper() != harmless
    ]


@contextlib.contextmanager
def of_run(device: torch.device, threads: int | None, tf32: bool, deterministic: bool) -> Iterator[None]:
    """Apply a run's settings within the block, whatever the caller has set; restore the caller's afterwards.

    Raises BadInput if another run is active in this process, or if torch's default device is not the CPU. Two settings
    remain, since they cannot be read or restored: denormal numbers are flushed to zero, and freed memory is kept.
    """
    default = torch.get_default_device()
    if default.type != "cpu":
        raise BadInput(f"torch makes tensors on {default} by default; undo that before train(), and pass --device")
    if not _at_work.acquire(blocking=False):
        raise BadInput(
            "another run is active in this process, and both would use one random generator; wait until it has finished"
        )
    try:
        torch.set_flush_denormal(True)  # denormal numbers slow Adam down late in training; worker threads inherit this
        machine.keep_freed_memory()
        cuda = [device] if device.type == "cuda" else []
        with (
            _kept(),
            torch.random.fork_rng(cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            torch.set_default_dtype(torch.float32)
            # In a container with a quota, torch would use one thread per core of the machine.
            torch.set_num_threads(threads or min(torch.get_num_threads(), machine.cores()))
            _set_deterministic(deterministic)
            if deterministic:
                os.environ[WORKSPACE] = ":4096:8"  # read when cuBLAS starts
            backends.cudnn.benchmark, backends.mkldnn.enabled = False, True
            backends.fp32_precision = "none"
            torch.set_float32_matmul_precision("highest")
            backends.mkldnn.conv.fp32_precision = backends.mkldnn.rnn.fp32_precision = "ieee"
            # Convolutions on newer GPUs would use TF32 by default; Keras's results and the CPU's do not use it.
            backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = tf32
            yield
    finally:
        _at_work.release()


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Restore torch's settings after the block."""
    dtype = torch.get_default_dtype()
    threads = torch.get_num_threads()
    onednn = backends.mkldnn.enabled
    deterministic = torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get(WORKSPACE)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, general = backends.cudnn.benchmark, backends.fp32_precision
    # The older names of the precisions too: if both were in use, only both together restore everything.
    products = _value(torch.get_float32_matmul_precision)
    convolutions = _value(lambda: backends.cudnn.allow_tf32)
    precisions = [one.fp32_precision for one in _PRECISIONS]
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        backends.mkldnn.enabled = onednn
        _set_deterministic(deterministic, warn_only)
        os.environ.pop(WORKSPACE, None)
        if workspace is not None:
            os.environ[WORKSPACE] = workspace
        backends.cudnn.benchmark, backends.fp32_precision = benchmark, general
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for one, precision in zip(_PRECISIONS, precisions, strict=True):
            one.fp32_precision = precision


def _set_deterministic(mode: bool, warn_only: bool = False) -> None:
    """Set torch's deterministic mode, unless it already has these values.

    Setting it imports torch's compiler; after a signal during that import, any further attempt raises AttributeError.
    """
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (mode, warn_only):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def _value(getter: Callable) -> object:
    """Return what `getter` returns; None if torch refuses because the setting's newer name was used."""
    try:
        return getter()
    except RuntimeError:
        return None
