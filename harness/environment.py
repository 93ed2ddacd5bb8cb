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
# What another of these means for a run that is resumed; anything else moves last bits.
MASKS = "each process and kind of device draws dropout masks of its own, so that figures differ as with another seed"
MEANS = {
    "processes": MASKS,
    "device": MASKS,
    "git_commit": "the code may compute something else",
}
LAST_BITS = "figures may differ in their last bits from an undisturbed run's"


def device(text: str) -> torch.device:
    """An argparse type: the device that `auto`, `cpu`, `cuda` or `cuda:N` names, which must be there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is none of auto, cpu, cuda, cuda:N")
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = text.partition(":")
    if name == "cuda":
        # Asked for all processes of this machine, so that each of them comes to the same answer.
        needed, count = int(number) + 1 if number else distributed.size_here(), torch.cuda.device_count()
        if needed > count:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not there: torch sees {count} CUDA devices of {needed} that it takes; pass cpu or auto"
            )
    return distributed.own_device(torch.device(text))


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


def changes(before: dict, now: dict, dropout: float) -> list[str]:
    """Say in which facts `now` differs from `before`, those of two parts of a run, and what that means for figures."""
    found = {}
    for name, value in now.items():
        if name != "after_epoch" and value != before.get(name):
            meaning = MEANS.get(name, LAST_BITS)
            if meaning == MASKS and dropout == 0:
                meaning = LAST_BITS
            found.setdefault(meaning, []).append(f"{name} {value} instead of {before.get(name)}")
    return [f"{', '.join(names)}: {meaning}" for meaning, names in found.items()]


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
