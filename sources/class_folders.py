"""A folder with a folder of pictures for each class."""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cli.errors import BadInput, cannot_read
from cli.messages import in_one_line, say
from running import distributed
from sources import pictures
from sources.source import Arrays, Source

TRAINING, TEST = "train", "test"
INSTEAD_OF_TEST = ("val", "valid", "validation")
LAYOUT = "pictures lie in CLASS/*, of two classes or more, or in train/CLASS/* and test/CLASS/*"
TEST_PART = 6  # of a folder without a test part, every class's last sixth is it


class Picture(NamedTuple):
    path: Path
    label: int
    key: str  # a hash of its path below the folder of its part, the same on every machine


class ClassFolders(Source):
    """`FOLDER/CLASS/*`, or `FOLDER/train/CLASS/*` with `FOLDER/test/CLASS/*`; classes are sorted by name.

    Pictures of several sizes are scaled, and their middle taken, to `size`, (H, W). Without a test part the last sixth
    of each class is it, by a hash of the file's path. The training pictures come in an order by such a hash, so that
    their last part has pictures of all classes.
    """

    scales = True

    def __init__(self, text: str, size: tuple[int, int] | None = None):
        super().__init__(text)
        self.folder, self.size = Path(text), size

    def load(self) -> Arrays:
        training_folder, test_folder = self._parts()
        classes = self._classes(training_folder)
        names = [*classes]
        if len(names) < 2:
            there = f"one folder of pictures, {names[0]}" if names else f"no folders of pictures in {training_folder}"
            raise BadInput(f"--data {self.text}: {there}; {LAYOUT}")
        training, test = _listed(training_folder, classes, names), []
        if test_folder is None:
            training, test = _split(training)
            say(f"No test part in {self.text}: it is the last sixth of each class, by a hash ({len(test):,} pictures).")
        else:
            classes = self._classes(test_folder)
            unknown = sorted({*classes} - {*names})
            if unknown:
                names_there = ", ".join(unknown)
                raise BadInput(f"--data {self.text}: {test_folder.name} has {names_there:.200}, no class of {TRAINING}")
            if not classes:
                raise BadInput(f"--data {self.text}: no pictures in folders of classes in {test_folder.name}; {LAYOUT}")
            absent = [name for name in names if name not in classes]
            if absent:
                say(in_one_line(f"No picture in {test_folder} of: {', '.join(absent)!s:.200}."))
            test = _listed(test_folder, classes, names)
        shape = self._shape([*training, *test])
        parts = [(_read(part, shape), np.array([one.label for one in part], np.int64)) for part in (training, test)]
        return Arrays(*parts[0], *parts[1], tuple(map(in_one_line, names)))

    def describe(self) -> str:
        return f"pictures in {self.text}"

    def _parts(self) -> tuple[Path, Path | None]:
        """Return the folder of training pictures, and that of test pictures, None if there is none."""
        if not (self.folder / TRAINING).is_dir():
            return self.folder, None
        there = [name for name in (TEST, *INSTEAD_OF_TEST) if (self.folder / name).is_dir()]
        if there and there[0] != TEST:
            say(f"{self.folder / there[0]} is used as the test part; validation is the last part of {TRAINING}.")
        left_out = [path.name for path in _folders(self.folder) if path.name not in (TRAINING, *there[:1])]
        if left_out:
            say(f"Left out in {self.folder}: {', '.join(left_out)!s:.200}; validation is the last part of {TRAINING}.")
        return self.folder / TRAINING, self.folder / there[0] if there else None

    def _classes(self, part: Path) -> dict[str, list[Path]]:
        """Return the pictures of each class of a part, and say what is left out. Raises BadInput."""
        classes, others, empty = {}, [], []
        for folder in _folders(part):
            found = pictures.in_folder(folder)
            if found.unreadable:
                raise BadInput(f"--data {found.unreadable[0]}: cannot be read; check its permissions, or remove it")
            others += found.others
            if found.pictures:
                classes[folder.name] = found.pictures
            else:
                empty.append(folder)
        if others:
            say(pictures.left_out(others))
        if empty and classes:
            say(f"No class, because no picture is in it: {pictures.some(empty)}.")
        return classes

    def _shape(self, listed: list[Picture]) -> tuple[int, int, int]:
        """Return what images are to be, (H, W, C). Raises BadInput for several sizes where none was asked for."""
        shapes = Counter(pictures.size_and_channels(picture.path) for picture in _with_bar(listed, "Looking at sizes"))
        channels = max(channels for *_, channels in shapes)
        sizes = Counter()
        for (height, width, _), count in shapes.items():
            sizes[height, width] += count
        if self.size is None and len(sizes) > 1:
            common = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes.most_common(3))
            more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
            raise BadInput(f"--data {self.text}: pictures of {common}{more}; pass --image-size HxW, such as 32x32")
        return *(self.size or next(iter(sizes))), channels


def holds(folder: Path) -> bool:
    """Tell whether `folder` has folders of pictures in it, or parts that have."""
    if not os.path.isdir(folder):
        return False
    parts = [folder, *(folder / name for name in (TRAINING, TEST))]
    return any(pictures.is_in(path) for part in parts for path in _folders(part))


def size(text: str) -> tuple[int, int] | None:
    """Return (H, W) of `H` or `HxW`; None if it is neither, or of no pixel."""
    match = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted; none if it is none."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_read(f"--data {folder}", error) from None


def _listed(part: Path, classes: dict[str, list[Path]], names: list[str]) -> list[Picture]:
    """Return the pictures of a part in the order of their keys."""
    listed = []
    for name, paths in classes.items():
        label = names.index(name)
        keys = [hashlib.sha256(os.fsencode(path.relative_to(part).as_posix())).hexdigest() for path in paths]
        listed += [Picture(path, label, key) for path, key in zip(paths, keys, strict=True)]
    return sorted(listed, key=lambda picture: picture.key)


def _split(listed: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Return the training part and the test part: of each class the last sixth, but one picture at least."""
    test = set()
    for label in {picture.label for picture in listed}:
        of_class = [picture for picture in listed if picture.label == label]
        test |= set(of_class[-max(1, len(of_class) // TEST_PART) :])
    return [one for one in listed if one not in test], [one for one in listed if one in test]


def _read(part: list[Picture], shape: tuple[int, int, int]) -> np.ndarray:
    """Return uint8 images (N, H, W, C)."""
    images = np.empty((len(part), *shape), np.uint8)
    for number, picture in enumerate(_with_bar(part, "Reading pictures")):
        images[number] = pictures.read(picture.path, shape)
    return images


def _with_bar(part: list[Picture], what: str) -> Iterable[Picture]:
    hide = distributed.rank() > 0 or not sys.stderr.isatty()
    return tqdm(part, what, leave=False, unit="picture", disable=hide)
