"""The argument parser of the commands, and argparse types."""

import argparse
import difflib
import os
import re
from collections.abc import Callable

from cli.messages import complain, in_one_line
from running import distributed


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the defaults of options; keep the lines of the description as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False:  # these tell a reader nothing
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse's parser, but an error is one line on stderr, once per machine; the exit code stays 2.

    The first line of the module docstring `doc` begins the help; its indented examples and its exit codes end it.
    """

    def __init__(self, prog: str, doc: str | None, **settings):
        description, _, rest = (doc or "").partition("\n")  # none under python -OO
        examples = [line for line in rest.splitlines() if line.startswith("    ")]
        codes = rest[rest.find("Exit codes: ") :].strip() if "Exit codes: " in rest else ""
        epilog = "\n".join(["examples:", *examples, "", codes] if examples else [codes])
        settings |= {"description": description, "epilog": epilog, "allow_abbrev": False, "formatter_class": _Formatter}
        super().__init__(prog, **settings)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())}{self._meant(message)} (see --help)\n")

    def _meant(self, message: str) -> str:
        """Return a "did you mean" for a misspelt option; "" if no option is similar."""
        given = re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message)
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(given[1].replace("_", "-"), options, 1) if given else []
        return f"; did you mean {near[0]}?" if near else ""

    def exit(self, status: int = 0, message: str | None = None) -> None:
        if message and distributed.first_here():
            complain(message.rstrip())
        raise SystemExit(status)


def path_type(text: str) -> str:
    """An argparse type: a path that fits into a line of a log, a JSON file and a picture's title.

    `~` becomes the home directory: a shell does not expand it in `--out=~/x`.
    """
    path = os.path.expanduser(text)
    if not path or in_one_line(path) != path:
        raise argparse.ArgumentTypeError(f"{text!r} is not a path: pass one of printable characters")
    return path


def number(kind: type, interval: str) -> Callable[[str], int | float]:
    """An argparse type: a whole (`int`) or any finite (`float`) number within `interval`, such as `[0, 1)`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    what = "whole number" if kind is int else "number"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        at_low = interval[0] == "[" and value == low
        at_high = interval[-1] == "]" and value == high
        if not (low < value < high or at_low or at_high):
            raise argparse.ArgumentTypeError(f"{text!r:.60} is not a {what} in {interval}")
        return value

    return parse
