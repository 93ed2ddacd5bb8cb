"""What the commands share: their flags, lines that are said once, and errors as one line and an exit code."""

import argparse
import contextlib
import functools
import shlex
import sys
import traceback
import unicodedata
from collections.abc import Callable

import torch

from harness import distributed
from harness.errors import CannotWrite, DeviceFailed, Failure, Interrupted, OutOfMemory, first_line

Main = Callable[[list[str] | None], int | None]


def command(prog: str, resumes: bool = False, failed: int = Failure.code) -> Callable[[Main], Main]:
    """Turn `main(argv)` into a command: whatever ends it is an exit code and, if it failed, one line on stderr.

    `resumes` tells that `--resume` goes on with what the command was doing. `failed` is the exit code of what nobody
    did wrong, such as a full disk; where it is not Python's own 1, a crash has it too.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            try:
                return main(argv) or 0
            except SystemExit as stop:  # argparse's, after --help or one line on stderr
                return stop.code
            except (Failure, Interrupted) as error:
                failure = error
            except OSError as error:
                failure = Failure(error)
            except torch.OutOfMemoryError as error:
                failure = OutOfMemory(first_line(error))
            except torch.AcceleratorError as error:
                failure = DeviceFailed(f"the device failed ({first_line(error)})")
            except Exception:
                if failed == Failure.code:
                    raise
                traceback.print_exc()
                return failed
            _explain(prog, failure, _again(prog, argv, resumes))
            return failed if failure.code == Failure.code else failure.code

        return run

    return decorate


def _explain(prog: str, failure: Failure | Interrupted, again: str) -> None:
    rank = distributed.rank()
    if rank and failure.shared:
        return
    message = f"process {rank}: {failure}" if rank else str(failure)
    if failure.advice:
        message += f"; {failure.advice.format(again=again)}"
    with contextlib.suppress(OSError):  # a pipe whose reader has gone: the exit code still tells
        print(f"{prog}: error: {message}", file=sys.stderr)


def _again(prog: str, argv: list[str] | None, resumes: bool) -> str:
    if distributed.launched():
        return "the same torchrun command with --resume"
    words = sys.orig_argv if argv is None else [prog, *argv]
    resuming = any(word.partition("=")[0] == "--resume" for word in words)
    return shlex.join([*words, "--resume"] if resumes and not resuming else words)


def say(*lines: object) -> None:
    """Print `lines` to standard output, on the first process only. Raises CannotWrite."""
    if distributed.rank():
        return
    try:
        print(*lines, sep="\n", flush=True)  # a log file shows each epoch when it ends
    except OSError as error:  # a log on a full disk, a pipe whose reader has gone
        sys.stdout = None  # else the interpreter tries it again at its end
        raise CannotWrite(f"cannot write to standard output ({error.strerror})") from None


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line on stderr; the exit code stays 2. Defaults are in the help."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())} (see --help)\n")


def path_type(text: str) -> str:
    """An argparse type: a path that can be written into a line of a log, a JSON file and a picture's title."""
    if not text or any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no path: pass one of printable characters")
    return text


def number(kind: type, interval: str) -> Callable[[str], int | float]:
    """An argparse type: a whole (`int`) or any finite (`float`) number within `interval`, such as `[0, 1)`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    what = "whole number" if kind is int else "number"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        at_low, at_high = interval[0] == "[" and value == low, interval[-1] == "]" and value == high
        if not (low < value < high or at_low or at_high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what} in {interval}")
        return value

    return parse
