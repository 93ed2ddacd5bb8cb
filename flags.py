"""What the commands' flags share: one line on stderr for a bad value, and the types that check it."""

import argparse
import unicodedata


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line on stderr; the exit code stays 2. Defaults are in the help."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())} (see --help)\n")


def path_type(text: str) -> str:
    """An argparse type: a path that can be written into a line of a log, a JSON file and a picture's title."""
    if not text or any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no path: pass one of printable characters")
    return text


def number(kind: type, interval: str):
    """An argparse type: a whole (`int`) or any finite (`float`) number within `interval`, such as `[0, 1)`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def parse(text: str):
        try:
            value = kind(text)
            inside = (
                low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
            )
        except ValueError:
            inside = False
        if not inside:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number in {interval}")
        return value

    return parse
