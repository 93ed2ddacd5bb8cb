"""The machine that a run uses: device, CPU, versions, git commit."""

import argparse
import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from cli.errors import first_line
from running import distributed

PACKAGES = ("torchvision", "numpy", "matplotlib", "tqdm")
ROOT = Path(__file__).parent.parent
CGROUP = Path("/sys/fs/cgroup")
X86 = ("x86_64", "AMD64")


def device_name(text: str) -> str:
    """An argparse type: `auto`, `cpu`, `cuda` or `cuda:N`."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is none of auto, cpu, cuda, cuda:N")
    return text


def device(text: str) -> torch.device:
    """Return the device that `text` names. Raises argparse.ArgumentTypeError if it cannot be used."""
    if text == "auto":
        text = "cpu" if why_no_cuda() else "cuda"
    name, _, number = text.partition(":")
    if name == "cuda":
        # Checked for all processes of this machine, so that each of them gets the same answer.
        needed = int(number) + 1 if number else distributed.size_here()
        count = torch.cuda.device_count()
        if needed > count:
            why = why_no_cuda() if count == 0 else None
            raise argparse.ArgumentTypeError(
                f"{text!r} is not available: torch sees {count} CUDA devices of {needed} needed"
                f"{f' ({why})' if why else ''}; pass cpu or auto"
            )
        why = why_no_cuda(int(number or 0)) if torch.cuda.is_available() else None
        if why:
            raise argparse.ArgumentTypeError(f"{text!r} cannot be used ({why}); pass cpu or auto")
    return distributed.own_device(torch.device(text))


def why_no_cuda(number: int = 0) -> str | None:
    """Return why torch cannot compute on a CUDA device; None if it can."""
    if not torch.cuda.is_available():
        if not (torch.version.cuda or torch.version.hip):
            return "this torch is built for CPUs"
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
            return "CUDA_VISIBLE_DEVICES hides all"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # no driver, or one that is too old
            return f"{first_line(error).partition('.')[0]:.120}"
        return "torch sees none"
    try:
        (torch.ones(1, device=f"cuda:{number}") + 1).item()  # this torch may have no kernels for an old GPU
    except RuntimeError as error:
        name = torch.cuda.get_device_name(number)
        return f"{name} is there, but torch cannot compute on it: {first_line(error):.120}"
    return None


def cores() -> int:
    """Return how many CPU cores this process may use, given its affinity and a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota() or bound))


def _quota() -> int | None:
    """Return the CPU quota of a container's control group, rounded up to whole cores; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()  # version 2; "max" without a limit
        return math.ceil(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return math.ceil(quota / period) if quota > 0 else None
    return None


def why_not_bfloat16(device: torch.device) -> str | None:
    """Return why bfloat16 should not be used on `device`; None if its products are faster than float32's.

    The hardware decides, not a timing: the answer affects metrics, so it must not depend on the machine's load.
    """
    if device.type == "cuda":
        has_instructions = torch.cuda.get_device_capability(device) >= (8, 0)
        return None if has_instructions else "GPUs below compute capability 8.0 have no instructions for bfloat16"
    if platform.machine() not in X86:
        return "whether bfloat16 is faster than float32 on this kind of processor has not been measured"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # ATEN_CPU_CAPABILITY limits torch's kernels, but not the instructions that the processor reports.
    of_torch = torch.backends.cpu.get_cpu_capability()
    if of_torch != "AVX512" or not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")):
        return "this machine emulates bfloat16, which takes ten to thirty times as long as float32"
    # AVX512-BF16 alone makes AMD's processors faster and Intel's slower: docs/results.md has the measurements.
    if capabilities.get("amx_bf16") or capabilities.get("cpu_name", "").startswith("AMD"):
        return None
    return "this processor has no AMX, without which bfloat16 takes about 1.5 times as long as float32"


def keep_freed_memory() -> None:
    """Make the process keep the memory that it frees; call this before the first computation."""
    # glibc hands freed memory back to the kernel and faults it in again, up to thousands of pages a step: 15 % of the
    # time on two cores.
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, TypeError, AttributeError):  # a Python without dlopen, a libc without mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest it can be
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def describe(device: torch.device) -> dict:
    """Return what affects a run's bits besides the options: device, threads, processes, versions, git commit."""
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


def changes(before: dict, now: dict) -> list[str]:
    """Name what differs between two parts of a run, with both values; an earlier version may have written one."""
    names = [name for name in now if name in before and name != "after_epoch"]
    if "code_sha256" in names:
        names.remove("git_commit")  # a change to README changes it too
    return [f"{name} {now[name]!s:.40} instead of {before[name]!s:.40}" for name in names if now[name] != before[name]]


def _git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` if a file has changed; None outside a repository of its own."""
    try:
        if Path(_git("rev-parse", "--show-toplevel").strip()) != ROOT.resolve():  # a repository around the project
            return None
        commit = _git("rev-parse", "HEAD").strip()
        # Not `git diff`, whose output depends on the user's settings.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*words: str) -> str:
    command = ["git", *words]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return ended.stdout.decode(errors="replace")


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()
