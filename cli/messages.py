"""What a command prints: lines on standard output and standard error, and tables."""

import sys
import unicodedata
from collections.abc import Sequence

from cli.errors import CannotWrite
from running import distributed


def say(*lines: object) -> None:
    """Print `lines`, in the first process only. Raises CannotWrite, BrokenPipeError."""
    if distributed.rank() == 0:
        say_everywhere(*lines)


def say_everywhere(*lines: object) -> None:
    """Print `lines`, in every process. Raises CannotWrite, BrokenPipeError."""
    try:
        print(*lines, sep="\n", flush=True)  # flushed, so that a log file shows each epoch as it ends
    except OSError as error:
        sys.stdout = None  # else the interpreter tries again at exit
        if isinstance(error, BrokenPipeError):
            raise
        raise CannotWrite("to standard output", error) from None


def complain(line: str) -> None:
    """Print `line` to standard error."""
    print(line, file=sys.stderr)


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, such as "1 run" or "1,200 runs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(names: Sequence[object], most: int = 5) -> str:
    """Return the first `most` names, in one line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return in_one_line(", ".join(map(str, names[:most]))) + more


def in_one_line(text: str) -> str:
    """Escape what would end a line or is not text: control characters, line separators, bytes that are not UTF-8."""
    unfit = {character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    return "".join(ascii(character)[1:-1] if character in unfit else character for character in text)


def table(columns: dict[str, dict[str, str]], markdown: bool) -> str:
    """Return the cells, by column and row, as a table in plain text or Markdown."""
    names = next(iter(columns.values()))
    rows = [["", *columns], *([name, *(column[name] for column in columns.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, ["-" * max(width, 3) for width in widths])
    lines = [(" | " if markdown else "  ").join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(f"| {line} |" if markdown else line.rstrip() for line in lines)
