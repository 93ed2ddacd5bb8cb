"""A folder with a folder of pictures for each class."""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from cli.errors import BadInput, cannot_read
from cli.messages import counted, in_one_line, say, shortened
from running import distributed
from sources import pictures
from sources.source import Arrays, Source

TRAINING, TEST, VALIDATION = "train", "test", "validation"
PARTS = {TRAINING: "train(ing)?", TEST: "test(ing)?", VALIDATION: "val(id(ation)?)?"}  # usual names, in any case
ENDS = "([ _-]?(set|data|images))?"  # of these names, as in training_set
LAYOUT = "put pictures in CLASS/*, for two classes or more, or in train/CLASS/* and test/CLASS/*"
DARK = 64  # the highest value of 14 bits in a 16-bit file, 16383 / 257
TEST_PART = 6  # without a test part, the last sixth of each class is the test part


class Picture(NamedTuple):
    path: Path
    label: int
    key: str  # a hash of its path relative to its part's folder, the same on every machine


class ClassFolders(Source):
    """`FOLDER/CLASS/*`, or `FOLDER/train/CLASS/*` with `FOLDER/test/CLASS/*`; classes are sorted by name.

    Pictures are scaled and center-cropped to `size`, (H, W); without it, all must have the same size. The pictures are
    sorted by a hash of the file's path, so that the last part of the training pictures has pictures of all classes.
    Without a test part, the last sixth of each class is used as one.
    """

    scales = True
    uneven = "add pictures of that class, or pass another --validation-split"

    def __init__(self, text: str, size: tuple[int, int] | None = None):
        super().__init__(text)
        self.folder = Path(text)
        self.size = size

    def load(self) -> Arrays:
        training_folder, test_folder = self._parts()
        classes = self._classes(training_folder)
        names = [*classes]
        if len(names) < 2:
            there = f"one folder of pictures, {names[0]}" if names else f"no folders of pictures in {training_folder}"
            raise BadInput(f"--data {self.text}: {there}; {LAYOUT}")
        training = _listed(training_folder, classes, names)
        test = []
        if test_folder is None:
            training, test = _split(training)
            say(f"No test part in {self.text}: using the last sixth of each class, by a hash ({len(test):,} pictures).")
        else:
            classes = self._classes(test_folder)
            unknown = sorted({*classes} - {*names})
            if unknown:
                names_there = ", ".join(unknown)
                raise BadInput(f"--data {self.text}: {test_folder.name} has {names_there:.200}, not in {TRAINING}")
            test = _listed(test_folder, classes, names)
        shape = self._shape([*training, *test])
        x_train, x_test = self._read(training, shape), self._read(test, shape)
        highest = max(x_train.max(), x_test.max())
        if highest <= DARK:
            remedy = "scale their values up, for example if 16-bit files hold 12-bit values"
            say(f"No pixel of the pictures is above {highest}, where 255 is white; {remedy}.")
        return Arrays(x_train, _labels(training), x_test, _labels(test), tuple(map(in_one_line, names)))

    def describe(self) -> str:
        return f"pictures in {self.text}"

    def _parts(self) -> tuple[Path, Path | None]:
        """Return the folder of training pictures, and the folder of test pictures or None. Raises BadInput."""
        folders = _folders(self.folder)
        training, test, validation = (self._part(folders, kind) for kind in (TRAINING, TEST, VALIDATION))
        if training is None and (test or validation):
            names = " and ".join(path.name for path in (test, validation) if path)
            raise BadInput(f"--data {self.text}: has {names}, but no {TRAINING}; name the training part {TRAINING}")
        if training is None:
            _say_of_loose(self.folder)
            return self.folder, None
        without_classes = [path.name for path in folders if _is_called(path, TEST) and path != test]
        if without_classes:
            remedy = "move it away to train without it: predict.py classifies pictures whose class is not known"
            raise BadInput(f"--data {self.text}: no pictures in folders of classes in {without_classes[0]}; {remedy}")
        test = test or validation
        if test and {training.name, test.name} != {TRAINING, TEST}:
            say(f"{test} is used as the test part; validation is the last part of {training.name}.")
        left_out = [path.name for path in folders if path not in (training, test)]
        if left_out:
            names = ", ".join(left_out)
            say(f"Left out in {self.folder}: {names:.200}; validation is the last part of {training.name}.")
        for folder in filter(None, (self.folder, training, test)):
            _say_of_loose(folder)
        return training, test

    def _part(self, folders: list[Path], kind: str) -> Path | None:
        """Return the folder of that part, None if there is none. Raises BadInput for two."""
        named = [path for path in folders if _is_called(path, kind) and holds(path)]
        if len(named) > 1:
            names = " and ".join(path.name for path in named)
            raise BadInput(f"--data {self.text}: {names} could each be the {kind} part; move one elsewhere")
        return named[0] if named else None

    def _classes(self, part: Path) -> dict[str, list[Path]]:
        """Return the pictures of each class of a part, and print what is left out. Raises BadInput."""
        classes, others, empty = {}, [], []
        for folder in _folders(part):
            contents = pictures.in_folder(folder)
            if contents.unreadable:
                raise BadInput(f"--data {contents.unreadable[0]}: cannot be read; check its permissions, or remove it")
            others += contents.others
            if contents.pictures:
                classes[folder.name] = contents.pictures
            else:
                empty.append(folder)
        if others:
            say(pictures.left_out(others))
        if empty and classes:
            say(f"No class, because no picture is in it: {shortened(empty, 3)}.")
        return classes

    def _shape(self, listed: list[Picture]) -> tuple[int, int, int]:
        """Return the shape of an image, (H, W, C). Raises BadInput for several sizes without `--image-size`."""
        shapes = Counter(_each(listed, "Looking at sizes", pictures.size_and_channels))
        channels = max(channels for *_, channels in shapes)
        sizes = Counter()
        for (height, width, _), count in shapes.items():
            sizes[height, width] += count
        if self.size is None and len(sizes) > 1:
            common = shortened([f"{height}x{width} ({count})" for (height, width), count in sizes.most_common()], 3)
            raise BadInput(f"--data {self.text}: pictures of {common}; pass --image-size HxW, such as 32x32")
        return *(self.size or next(iter(sizes))), channels

    def _read(self, part: list[Picture], shape: tuple[int, int, int]) -> np.ndarray:
        """Return uint8 images (N, H, W, C). Raises BadInput."""
        try:
            images = np.empty((len(part), *shape), np.uint8)
        except MemoryError:
            size = "x".join(map(str, shape[:2]))
            gigabytes = len(part) * math.prod(shape) / 1e9
            raise BadInput(
                f"--data {self.text}: {counted(len(part), 'picture')} of {size} take {gigabytes:,.1f} GB, more memory "
                "than there is; pass a smaller size with --image-size"
            ) from None
        read = _each(part, "Reading pictures", lambda path: pictures.read(path, shape, "take it out"))
        for number, image in enumerate(read):
            images[number] = image
        return images


def holds(folder: Path) -> bool:
    """Return whether `folder` contains folders of pictures."""
    return os.path.isdir(folder) and any(pictures.is_in(path) for path in _folders(folder))


def endings(folder: Path) -> list[str]:
    """Return the endings of the files in the folders in `folder`, the most frequent first."""
    contents = (pictures.in_folder(path) for path in _folders(folder))
    counts = Counter(file.suffix for of_class in contents for file in of_class.pictures + of_class.others)
    return [ending or "nothing" for ending, _ in counts.most_common()]


def size(text: str) -> tuple[int, int] | None:
    """Return (H, W) for `H` or `HxW`, each from 1 to 9999; None for any other text."""
    match = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _is_called(folder: Path, kind: str) -> bool:
    return bool(re.fullmatch(PARTS[kind] + ENDS, folder.name, re.IGNORECASE))


def _say_of_loose(folder: Path) -> None:
    """Print which pictures are next to the class folders, and so left out."""
    loose = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in pictures.ENDINGS)
    if loose:
        say(f"Left out, because they are in no class folder: {shortened(loose, 3)}.")


def _folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted; [] if it is not a folder."""
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
    """Return the training part and the test part: the last sixth of each class, but at least one picture."""
    classes = defaultdict(list)
    for picture in listed:
        classes[picture.label].append(picture)
    test = set()
    for of_class in classes.values():
        test |= set(of_class[-max(1, len(of_class) // TEST_PART) :])
    return [one for one in listed if one not in test], [one for one in listed if one in test]


def _labels(part: list[Picture]) -> np.ndarray:
    return np.array([picture.label for picture in part], np.int64)


def _each(part: list[Picture], what: str, look: Callable[[Path], Any]) -> Iterator[Any]:
    """Yield what `look` returns for each picture's path. Raises BadInput at the end, for all unreadable pictures."""
    hide = distributed.rank() > 0 or None  # None: unless stderr is a terminal
    faults = {}
    for picture in tqdm(part, what, leave=False, unit="picture", disable=hide):
        try:
            yield look(picture.path)
        except BadInput as error:
            faults[picture.path] = error
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        names = shortened([*faults], 3)
        first = next(iter(faults.values()))
        raise BadInput(f"{len(faults)} pictures cannot be read: {names}; take them out. The first: {first}")
