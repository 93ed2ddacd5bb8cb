"""An option as a flag of the command line, as a value given in Python, and as one of an earlier run's config.json.

An option is a dataclass's field with `kind` and `help` in its metadata: the kind is bool or ON_OFF for a switch, the
choices, or an argparse type.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from harness import distributed, files
from harness.console import path_type
from harness.errors import BadInput
from harness.run import CONFIG

ON_OFF = argparse.BooleanOptionalAction  # a switch that has a --no-... too
SETTINGS = {"resume": {"nargs": "?", "const": True, "type": path_type, "metavar": "RUN"}}  # argparse's, of some flags
PATHS = ("data", "init_weights")  # which are relative to where the run was started
OWN = {"out", "resume"}  # a run's own, which no other takes over


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def declare(parser: argparse.ArgumentParser, options: type, groups: dict[str, str]) -> None:
    """Give `parser` a flag for each of the fields of `options`, and --config. What is not given gets no value.

    `groups` are their titles in the help, by the first field of each.
    """
    for field in dataclasses.fields(options):
        kind, help = field.metadata["kind"], field.metadata["help"].replace("%", "%%")
        if field.name in groups:
            group = parser.add_argument_group(groups[field.name])
        if field.name in SETTINGS:
            settings = SETTINGS[field.name]
        elif kind in (bool, ON_OFF):
            settings = {"action": "store_true" if kind is bool else ON_OFF}
        else:
            settings = {"type": kind} if callable(kind) else {"choices": kind}
        settings = settings | {"help": f"{help} (default: {field.default})", "default": argparse.SUPPRESS}
        group.add_argument(flag_of(field.name), **settings)
    help = f"a run's {CONFIG}: start another like it, but for what other flags say, in a new directory (default: None)"
    group.add_argument("--config", type=path_type, metavar="FILE", default=argparse.SUPPRESS, help=help)


def checked(field: dataclasses.Field, value: object) -> object:
    """Return a value that came without a command line as its flag would have made it of its text. Raises BadInput."""
    kind, flag = field.metadata["kind"], flag_of(field.name)
    if value is None and field.default is None:
        return None
    if kind in (bool, ON_OFF):
        if not isinstance(value, bool):
            raise BadInput(f"{flag}: {value!r:.60} is not True or False")
        return value
    if not callable(kind):
        if value not in list(kind):
            raise BadInput(f"{flag}: {value!r:.60} is none of {', '.join(kind)}")
        return value
    if value is None:
        raise BadInput(f"{flag}: None is no value of it; pass one, or leave it out")
    try:
        found = kind(str(value))
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{flag}: {error}") from None
    return Path(found) if isinstance(value, Path) else found


def lacking(options: type, config: dict) -> list[str]:
    """Name the options in a run's `config` that `options` has not, unless they were at their defaults or not given."""
    known = {field.name for field in dataclasses.fields(options)}
    return [
        f"{flag_of(name)} {value!r:.60} (an option that this version lacks)"
        for name, value in config["flags"].items()
        if name not in known and value is not None and name in config.get("not_default", [name])
    ]


def with_saved(given: dict, options: type, words: tuple[str, ...], decided: set[str]) -> dict:
    """Return the values `given` over those of the run that --resume RUN or --config FILE names.

    `words` look like paths and are none; what is `decided` is not asked of the run. Raises BadInput.
    """
    run, file = given.get("resume"), given.get("config")
    given = {name: value for name, value in given.items() if name != "config"}
    if isinstance(run, str):
        if "out" in given or file is not None:
            raise BadInput(f"--resume {run}: names directory and flags; leave --out and --config out")
        if not os.path.isdir(run):
            raise BadInput(f"--resume {run}: no such directory; pass a run's, or none to go on with the one in --out")
        given |= {"out": Path(run), "resume": True}
    elif file is None:
        return given
    flag, file = ("--resume", run) if file is None else ("--config", file)
    try:
        saved = _saved(Path(file, CONFIG) if os.path.isdir(file) else Path(file), options, words, decided | OWN)
    except BadInput as error:  # it begins with the file
        raise BadInput(f"{flag} {error}") from None
    return saved | given


def _saved(file: Path, options: type, words: tuple[str, ...], others: set[str]) -> dict:
    """Return the values of the config.json `file`, but for the `others`, as they are from here. Raises BadInput."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file; pass a run's directory or its {CONFIG}")
    config = files.read_json(file)
    if not isinstance(config.get("flags"), dict):
        raise BadInput(f"{file}: no flags in it; pass what train.py left in a run's directory")
    missing = lacking(options, config)
    if missing:
        raise BadInput(f"{file}: {', '.join(missing)}; give the flags that are wanted one by one")
    saved, found = config["flags"], {}
    if "backend" in config:  # Keras's, where None is an option that was not given
        saved = {name: value for name, value in saved.items() if value is not None}
    base = _started_in(file.parent, saved.get("out"))
    for field in dataclasses.fields(options):
        if field.name not in saved or field.name in others or _follows(field, config):
            continue
        value = saved[field.name]
        if field.name in PATHS and base is not None and isinstance(value, str) and value not in words:
            value = str(base / value)  # an absolute one stays as it is
        if field.name == "device" and distributed.launched():
            value = str(value).partition(":")[0]  # what was saved is the first process's own
        try:
            found[field.name] = checked(field, value)
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from None
    return found


def _follows(field: dataclasses.Field, config: dict) -> bool:
    """Tell whether the run had its default, which depends on other options: with other ones it is another."""
    decides = field.default is None and not field.metadata["may_change"]
    return decides and field.name not in config.get("not_default", [field.name])


def _started_in(run: Path, out: object) -> Path | None:
    """The folder in which the run at `run` was told to write to `out`; None if it is this one, or cannot be told."""
    here = Path(os.path.abspath(run)).parts
    parts = Path(out).parts if isinstance(out, str) else ()
    if not parts or ".." in parts or here[-len(parts) :] != parts:
        return None
    base = Path(*here[: -len(parts)])
    return None if base == Path.cwd() else base
