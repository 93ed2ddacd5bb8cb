"""Turn whatever ends a command into an exit code and, if it failed, one line on standard error."""

import functools
import shlex
import sys
import traceback
from collections.abc import Callable

import torch

from cli.errors import BadInput, CannotWrite, DeviceFailed, Failure, Interrupted, OutOfMemory, first_line, out_of_memory
from cli.messages import complain
from running import distributed, signals

DEVICE_ERRORS = (
    "CUBLAS",
    "cuDNN",
    "CUDNN",
    "CUDA",
    "NCCL",
    "nvrtc",
    "riton",
    "unable to find an engine",
    "InductorError",
)
Main = Callable[[list[str] | None], int | None]


def command(prog: str, resumes: bool = False, failed: int = Failure.code) -> Callable[[Main], Main]:
    """Turn `main(argv)` into a command.

    `resumes` means that `--resume` continues what the command was doing. `failed` is the exit code for crashes, and for
    failures that are nobody's mistake, such as a full disk.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="backslashreplace")
            try:
                with signals.handled():
                    return main(argv) or 0
            except SystemExit as stop:  # from argparse, after --help or one line on stderr
                return stop.code
            except BrokenPipeError as error:  # the reader of standard output has ended, as with `| head`
                if not resumes:
                    return failed
                failure = CannotWrite("to standard output", error)
            except (Exception, Interrupted) as error:
                failure = _failure(error)
                if failure is None:
                    if failed == Failure.code:
                        raise
                    traceback.print_exc()
                    return failed
            _explain(prog, failure, _again(prog, argv, resumes), resumes)
            return failed if failure.code == Failure.code else failure.code

        return run

    return decorate


def _failure(error: BaseException) -> Failure | Interrupted | None:
    """Return the failure to report for `error`; None for a bug."""
    if isinstance(error, Failure | Interrupted):
        return error
    if isinstance(error, PermissionError) and error.filename:
        return BadInput(f"{error.filename}: {error.strerror}; check its permissions")
    if isinstance(error, OSError):
        return Failure(error)
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(first_line(error))
    if isinstance(error, torch.AcceleratorError) or _of_a_library_on_the_device(error):
        return DeviceFailed(f"the device failed ({first_line(error):.200})")
    if out_of_memory(error):
        return OutOfMemory(f"out of memory ({first_line(error).rpartition('Allocator: ')[2]})")
    return None


def _of_a_library_on_the_device(error: BaseException) -> bool:
    """Return whether `error` is from cuBLAS, cuDNN, NCCL, nvrtc or Triton; torch has no exception class for these."""
    return isinstance(error, RuntimeError) and any(word in f"{type(error).__name__} {error}" for word in DEVICE_ERRORS)


def _explain(prog: str, failure: Failure | Interrupted, again: str, resumes: bool) -> None:
    """Print the one line; only the first process reports a shared failure."""
    rank = distributed.rank()
    if rank and failure.shared:
        return
    message = f"process {rank}: {failure}" if rank else str(failure)
    if failure.advice and (resumes or isinstance(failure, CannotWrite)):  # other advice is about training
        message += f"; {failure.advice.format(again=again)}"
    complain(f"{prog}: error: {message}")


def _again(prog: str, argv: list[str] | None, resumes: bool) -> str:
    """Return the command line that continues."""
    if distributed.launched():
        return "the same torchrun command with --resume"
    # In a notebook, another program started the process.
    own = argv is None and sys.argv[0] in sys.orig_argv
    words = sys.orig_argv if own else [prog, *(sys.argv[1:] if argv is None else argv)]
    resuming = any(word.partition("=")[0] == "--resume" for word in words)
    return shlex.join([*words, "--resume"] if resumes and not resuming else words)
