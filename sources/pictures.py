"""Pictures as files: which ones there are in a folder, and how one is read at a given size."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cli.errors import refusing
from cli.messages import shortened

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Contents(NamedTuple):
    """The files in a folder and its subfolders, sorted by path, and the subfolders that cannot be read."""

    pictures: list[Path]
    others: list[Path]
    unreadable: list[Path]


def in_folder(folder: str | Path) -> Contents:
    """Return what is in a folder. A file is a picture by its ending."""
    unreadable = []
    paths = sorted(_files(folder, onerror=lambda error: unreadable.append(Path(error.filename))))
    pictures = [path for path in paths if path.suffix.lower() in ENDINGS]
    return Contents(pictures, [path for path in paths if path.suffix.lower() not in ENDINGS], unreadable)


def is_in(folder: Path) -> bool:
    """Tell whether there is a picture in `folder`, looking no further than the first."""
    return any(path.suffix.lower() in ENDINGS for path in _files(folder))


def left_out(others: list[Path]) -> str:
    """Return the line that says which files of a folder are no pictures."""
    return f"Left out, because their suffix is not a picture's: {shortened(others, 3)}."


def _files(folder: str | Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the files in `folder` and its subfolders, also in those that are links, but in each folder once.

    What has a name that begins with a dot is left out.
    """
    seen = {*Path(folder).resolve().parents}  # a link can lead there, or round in a circle
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=onerror):
        real = Path(parent).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read(path: Path, shape: Sequence[int], remedy: str = "pass a .png or .jpg file") -> np.ndarray:
    """Return a picture as uint8 of `shape`, (H, W, C): upright, its middle, averaged down or scaled up.

    One of that size is taken as it is. Where `shape` has no channel for it, what is transparent becomes white. Raises
    BadInput.
    """
    height, width, channels = shape
    mode = MODES[channels]
    with refusing(path, "not a readable image", remedy), warnings.catch_warnings(action="ignore"):
        if path.is_dir():
            os.listdir(path)  # raises what keeps it from being read
            raise ValueError("a folder without images")
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with Image.open(path) as file:
            image = _with_8_bits(ImageOps.exif_transpose(file))
            if mode in ("L", "RGB") and image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image if image.mode == mode else image.convert(mode)
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).reshape(shape)


def size_and_channels(path: Path) -> tuple[int, int, int]:
    """Return height, width, and 1 channel for a grey picture, else 3, without reading its pixels. Raises BadInput."""
    with (
        refusing(path, "not a readable image", "take it out"),
        warnings.catch_warnings(action="ignore"),
        Image.open(path) as file,
    ):
        width, height = file.size
        # Orientations that lie on their side; of a TIFF Pillow has turned the size already.
        turned = file.getexif().get(0x0112, 1) >= 5 and file.format != "TIFF"
        channels = 1 if file.mode in ("1", "L", "LA") or file.mode.startswith("I") else 3
    return (width, height, channels) if turned else (height, width, channels)


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits with 8 bits a pixel: Pillow would clip it, not scale it. Others come back as is.

    Raises ValueError for floats, and for 32 bits unless they hold the values of 16.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    holds_16_bits = image.mode == "I" and low >= 0 and 255 < high <= 65535
    if not (image.mode.startswith("I;16") or holds_16_bits):
        raise ValueError(f"its values go from {low} to {high}; save it with 8 or 16 bits a pixel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
