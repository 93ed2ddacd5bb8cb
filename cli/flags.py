"""Options: their declaration, and their values on the command line, in Python and in an earlier run's config.json.

An option is a dataclass field made by `option`; its metadata holds its properties.
"""

import argparse
import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from cli.errors import BadInput
from cli.parser import path_type
from running import files
from running.directory import CONFIG

ON_OFF = argparse.BooleanOptionalAction  # a switch with a --no-... form
RUN_OR_SWITCH = object()  # a switch that also accepts a run's directory


def option(
    default: object,
    kind: object,
    help: str,
    *,
    may_change: bool = False,
    repeats: bool = False,
    in_loss: bool = False,
    path: bool = False,
    own: bool = False,
    unset: str = "",
):
    """Declare an option.

    `kind` is bool, ON_OFF or RUN_OR_SWITCH for a switch, the choices, or an argparse type. The other properties:
    - `may_change`: a resumed run may have a different value; any other option affects the metrics;
    - `repeats`: repetitions of a training differ in it;
    - `in_loss`: it changes what the reported loss means;
    - `path`: it is a path, and is stored as an absolute path;
    - `own`: it belongs to one run, and `--config` does not copy it;
    - `unset`: for the help, what happens if it is not given and has no default.
    """
    facts = {"may_change": may_change, "repeats": repeats, "in_loss": in_loss, "path": path, "own": own, "unset": unset}
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help} | facts)


def named(options: type, fact: str) -> list[str]:
    """Return the names of the options for which `fact`, a keyword of `option`, is true."""
    return [field.name for field in dataclasses.fields(options) if field.metadata[fact]]


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def declare(parser: argparse.ArgumentParser, options: type, groups: dict[str, str]) -> None:
    """Add --config and a flag for each field of `options` to `parser`. Options that are not given get no value.

    `groups` maps the first field of each group to the group's title in the help.
    """
    for field in dataclasses.fields(options):
        kind, help = field.metadata["kind"], field.metadata["help"].replace("%", "%%")
        if field.name in groups:
            group = parser.add_argument_group(groups[field.name])
        if kind is RUN_OR_SWITCH:
            settings = {"nargs": "?", "const": True, "type": path_type, "metavar": "RUN"}
        elif kind in (bool, ON_OFF):
            settings = {"action": "store_true" if kind is bool else ON_OFF}
        else:
            settings = {"type": kind} if callable(kind) else {"choices": kind}
        settings |= {"help": f"{help} (default: {default_in_words(field)})", "default": argparse.SUPPRESS}
        group.add_argument(flag_of(field.name), **settings)
    help = f"a run's {CONFIG}: start another run with its options, in a directory of its own (default: none)"
    group.add_argument("--config", type=path_type, metavar="FILE", default=argparse.SUPPRESS, help=help)


def default_in_words(field: dataclasses.Field) -> str:
    if field.default is None or field.metadata["unset"]:
        return field.metadata["unset"] or "none"
    return "off" if field.default is False else str(field.default)


def checked(field: dataclasses.Field, value: object) -> object:
    """Return `value`, from Python or a config.json, as its flag would have converted it. Raises BadInput."""
    kind, flag = field.metadata["kind"], flag_of(field.name)
    if value is None and (field.default is None or kind is ON_OFF):  # left open
        return None
    if kind in (bool, ON_OFF, RUN_OR_SWITCH):
        if not isinstance(value, bool):
            run = "; pass a run's directory as out, and its other options again" if kind is RUN_OR_SWITCH else ""
            raise BadInput(f"{flag}: {value!r:.60} is not True or False{run}")
        return value
    if not callable(kind):
        if not isinstance(value, str) or value not in list(kind):
            raise BadInput(f"{flag}: {value!r:.60} is none of {', '.join(kind)}")
        return value
    if value is None:
        raise BadInput(f"{flag}: None is not allowed; pass a value, or leave it out")
    try:
        converted = kind(str(value))
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{flag}: {error}") from None
    return Path(converted) if isinstance(value, Path) else converted


def plain(options: object, words: Collection[str]) -> dict[str, int | float | str | None]:
    """Return the options by name, as JSON values with absolute paths; `words` are values that only look like paths."""
    values = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata["path"] and value is not None and str(value) not in words:
            value = os.path.abspath(value)
        values[field.name] = value if isinstance(value, int | float | None) else str(value)
    return values


def lacking(options: type, config: dict) -> list[str]:
    """Name the options in a run's `config` that are missing from `options`, except those at their defaults or unset."""
    declared = {field.name for field in dataclasses.fields(options)}
    return [
        f"{flag_of(name)} {value!r:.60} (an option that this version lacks)"
        for name, value in config["flags"].items()
        if name not in declared and value is not None and name in config.get("not_default", [name])
    ]


def with_saved(given: dict, options: type, decided: Collection[str]) -> dict:
    """Return the values `given`, completed with those of the run that --resume RUN or --config FILE names.

    The options `decided` are not copied from that run. Raises BadInput.
    """
    run, file = given.get("resume"), given.get("config")
    given = {name: value for name, value in given.items() if name != "config"}
    if isinstance(run, str):
        if "out" in given or file is not None:
            raise BadInput(
                f"--resume {run}: names the directory and the options; omit --out and --config, "
                f"or pass --config {run} with another --out to start a new run"
            )
        if not os.path.isdir(run):
            raise BadInput(f"--resume {run}: no such directory; pass a run's, or only --resume for the run in --out")
        given |= {"out": Path(run), "resume": True}
    elif file is None:
        return given
    flag, file = ("--resume", run) if file is None else ("--config", file)
    try:
        saved = _saved(Path(file, CONFIG) if os.path.isdir(file) else Path(file), options, decided)
    except BadInput as error:  # its message begins with the file
        raise BadInput(f"{flag} {error}") from None
    return saved | given


def _saved(file: Path, options: type, decided: Collection[str]) -> dict:
    """Return the given values in a run's config.json, except those of the options `decided`. Raises BadInput."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file; pass a run's directory or its {CONFIG}")
    config = files.read_json(file)
    if not isinstance(config.get("flags"), dict):
        raise BadInput(f"{file}: no options in it; pass a {CONFIG} that train.py wrote")
    missing = lacking(options, config)
    if missing:
        raise BadInput(f"{file}: {', '.join(missing)}; pass the options that you want one by one")
    saved = {}
    for field in dataclasses.fields(options):
        value = _given(field, config)
        if value is None or field.metadata["own"] or field.name in decided:
            continue
        try:
            saved[field.name] = checked(field, value)
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from None
    return saved


def _given(field: dataclasses.Field, config: dict) -> object:
    """Return the value that was given for an option in the run of `config`; None if it was left open.

    Earlier versions and Keras's side did not save the given values: an option at its default may have been left open.
    """
    if isinstance(config.get("given"), dict):
        return config["given"].get(field.name)
    may_be_open = field.default is None and not field.metadata["may_change"]
    if may_be_open and field.name not in config.get("not_default", [field.name]):
        return None
    return config["flags"].get(field.name)
