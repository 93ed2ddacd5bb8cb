"""What the commands share: their flags, lines that are said once, and errors as one line and an exit code."""

import argparse
import contextlib
import functools
import os
import shlex
import sys
import traceback
import unicodedata
from collections.abc import Callable
from typing import TextIO

import torch

from harness import distributed, signals
from harness.errors import (
    CannotWrite,
    DeviceFailed,
    DeviceOutOfMemory,
    Failure,
    Interrupted,
    OutOfMemory,
    ReaderGone,
    first_line,
    out_of_memory,
)

Main = Callable[[list[str] | None], int | None]


def command(prog: str, resumes: bool = False, failed: int = Failure.code) -> Callable[[Main], Main]:
    """Turn `main(argv)` into a command: whatever ends it is an exit code and, if it failed, one line on stderr.

    `resumes` tells that `--resume` goes on with what the command was doing. `failed` is the exit code of what nobody
    did wrong, such as a full disk; where it is not Python's own 1, a crash has it too.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            if sys.stderr is None:  # closed, as by 2>&-
                sys.stderr = _nowhere()
            try:
                with signals.handled():
                    return main(argv) or 0
            except SystemExit as stop:  # argparse's, after --help or one line on stderr
                return stop.code
            except (Exception, Interrupted) as error:
                failure = _failure(error)
                if failure is None:
                    if failed == Failure.code:
                        raise
                    traceback.print_exc()
                    return failed
            if resumes or not isinstance(failure, ReaderGone):
                advised = resumes or isinstance(failure, CannotWrite)  # other advice is a training's
                _explain(prog, failure, failure.advice.format(again=_again(prog, argv, resumes)) if advised else "")
            return failed if failure.code == Failure.code else failure.code

        return run

    return decorate


def _failure(error: BaseException) -> Failure | Interrupted | None:
    """Return what is to be said of `error`; None for a fault of the program."""
    if isinstance(error, Failure | Interrupted):
        return error
    if isinstance(error, OSError):
        return Failure(error)
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceOutOfMemory(first_line(error))
    if isinstance(error, torch.AcceleratorError):
        return DeviceFailed(f"the device failed ({first_line(error)})")
    if out_of_memory(error):
        return OutOfMemory(f"out of memory ({first_line(error).rpartition('Allocator: ')[2]})")
    return None


def _explain(prog: str, failure: Failure | Interrupted, advice: str) -> None:
    rank = distributed.rank()
    if rank and failure.shared:
        return
    message = f"process {rank}: {failure}" if rank else str(failure)
    if advice:
        message += f"; {advice}"
    complain(f"{prog}: error: {message}")


def complain(line: str) -> None:
    """Print `line` to standard error; where nobody reads it, the exit code still tells."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        sys.stderr = _nowhere()  # else the interpreter tries it again at its end, and exits with 120


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # for as long as the process lives


def _again(prog: str, argv: list[str] | None, resumes: bool) -> str:
    if distributed.launched():
        return "the same torchrun command with --resume"
    words = sys.orig_argv if argv is None else [prog, *argv]
    resuming = any(word.partition("=")[0] == "--resume" for word in words)
    return shlex.join([*words, "--resume"] if resumes and not resuming else words)


def say(*lines: object) -> None:
    """Print `lines` to standard output, on the first process only; what it cannot encode is escaped.

    Raises CannotWrite, and ReaderGone for a pipe.
    """
    if distributed.rank():
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = "\n".join(map(str, lines)).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)  # a log file shows each epoch when it ends
    except OSError as error:
        sys.stdout = None  # else the interpreter tries it again at its end
        kind = ReaderGone if isinstance(error, BrokenPipeError) else CannotWrite
        raise kind(f"cannot write to standard output ({error.strerror})") from None


def table(columns: dict[str, dict[str, str]], markdown: bool) -> str:
    """Lay the cells out, figures down and groups across."""
    names = next(iter(columns.values()))
    rows = [["", *columns], *([name, *(column[name] for column in columns.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, ["-" * max(width, 3) for width in widths])
    lines = [(" | " if markdown else "  ").join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(f"| {line} |" if markdown else line.rstrip() for line in lines)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line on stderr, once on each machine; the exit code stays 2.

    Defaults are in the help, and of the module's `doc` the first line and what begins with "Exit codes: ".
    """

    def __init__(self, prog: str, doc: str | None, **settings):
        description, _, rest = (doc or "").partition("\n")  # none under python -OO
        codes = " ".join(rest.partition("Exit codes: ")[2].split())
        settings |= {"description": description, "epilog": f"exit codes: {codes}" if codes else None}
        settings |= {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
        super().__init__(prog, **settings)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())} (see --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> None:
        if message and distributed.first_here():
            complain(message.rstrip())
        raise SystemExit(status)

    def print_help(self, file: TextIO | None = None) -> None:
        with contextlib.suppress(ReaderGone):
            say(self.format_help().rstrip())


def path_type(text: str) -> str:
    """An argparse type: a path that can be written into a line of a log, a JSON file and a picture's title.

    `~` is the home directory: a shell leaves it alone in `--out=~/x`.
    """
    path = os.path.expanduser(text)
    if not path or in_one_line(path) != path:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: pass one of printable characters")
    return path


def in_one_line(text: str) -> str:
    """Escape what would end a line or is no text: control characters, line separators, bytes that are no UTF-8."""
    unfit = {character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    return "".join(ascii(character)[1:-1] if character in unfit else character for character in text)


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
            raise argparse.ArgumentTypeError(f"{text!r:.60} is not a {what} in {interval}")
        return value

    return parse
