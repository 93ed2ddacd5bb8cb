"""The machine that a run meets: device, CPU, versions, git commit."""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import torch

from harness import distributed

PACKAGES = ("torchvision", "numpy", "matplotlib", "tqdm")
ROOT = Path(__file__).parent.parent


def device(text: str) -> torch.device:
    """An argparse type: the device that `auto`, `cpu`, `cuda` or `cuda:N` names, which must be there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N")
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    found = distributed.own_device(torch.device(text))
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; pass cpu or auto"
        )
    return found


def keep_freed_memory() -> None:
    """Let the process keep what it frees; to be called before the first computation."""
    # glibc hands freed memory back to the kernel and faults it in again, up to thousands of pages a step: 15 % of the
    # time on two cores.
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, TypeError, AttributeError):  # a Python without dlopen, a libc without mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, of which this is the most
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def describe(device: torch.device) -> dict:
    """What besides the flags decides a run's bits: device, threads, processes, versions, git commit."""
    return {
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES}
        | {"torch": str(torch.__version__)},  # with the build: +cpu, +cu130
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this code, with a hash of what was changed since; None outside a repository of its own."""
    try:
        if Path(_git("rev-parse", "--show-toplevel").strip()) != ROOT.resolve():  # a repository around the project's
            return None
        commit, changes = _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit


def _git(*words: str) -> str:
    command = ["git", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=True).stdout


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()
