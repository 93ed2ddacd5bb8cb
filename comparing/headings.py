"""The headings of runs and groups in a table."""

import os
from pathlib import Path


def differing_parts(paths: list[str]) -> tuple[list[str], str]:
    """Return the differing part of each path, and the folder that contains them all, "" if there is none.

    Paths stay as they are if all are the same, or if they have only the root folder in common.
    """
    expanded = [os.path.expanduser(path) for path in paths]
    absolute = any(map(os.path.isabs, expanded))
    parts = [Path(os.path.abspath(path) if absolute else os.path.normpath(path)).parts for path in expanded]
    if len({*parts}) < 2:
        return paths, ""
    shortest = min(map(len, parts))
    before = _alike(parts, range(shortest - 1))
    after = _alike(parts, range(-1, min(before - shortest, -1), -1))  # leave at least one part of each
    folder = os.path.join("", *parts[0][:before])
    if folder == os.path.sep:
        return paths, ""
    differing = [str(Path(*of_path[before : len(of_path) - after])) for of_path in parts]
    return differing, folder


def _alike(parts: list[tuple[str, ...]], places: range) -> int:
    """Count the places, from the first on, at which all paths have the same part."""
    for count, place in enumerate(places):
        if len({of_path[place] for of_path in parts}) > 1:
            return count
    return len(places)
