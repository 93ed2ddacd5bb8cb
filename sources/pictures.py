"""Pictures as files: find them in a folder, and read one at a given size."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cli.errors import refusing
from cli.messages import shortened

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes, by the number of channels
ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Contents(NamedTuple):
    """The files in a folder and its subfolders, sorted by path, and the subfolders that cannot be read."""

    pictures: list[Path]
    others: list[Path]
    unreadable: list[Path]


def in_folder(folder: str | Path) -> Contents:
    """Return the contents of a folder. The ending of a file decides whether it is a picture."""
    unreadable = []
    paths = sorted(_files(folder, onerror=lambda error: unreadable.append(Path(error.filename))))
    pictures = [path for path in paths if path.suffix.lower() in ENDINGS]
    return Contents(pictures, [path for path in paths if path.suffix.lower() not in ENDINGS], unreadable)


def is_in(folder: Path) -> bool:
    """Return whether there is a picture in `folder`; stop at the first one."""
    return any(path.suffix.lower() in ENDINGS for path in _files(folder))


def left_out(others: list[Path]) -> str:
    """Return a line that names the files `others`, which are not pictures."""
    return f"Left out, because their suffix is not a picture's: {shortened(others, 3)}."


def _files(folder: str | Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the files in `folder` and its subfolders; follow links, but visit each folder once.

    Names that begin with a dot are left out.
    """
    seen = {*Path(folder).resolve().parents}  # a link can lead there, or in a circle
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=onerror):
        real = Path(parent).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read(path: Path, shape: Sequence[int], remedy: str = "pass a .png or .jpg file") -> np.ndarray:
    """Return a picture as uint8 of `shape`, (H, W, C): turned upright, scaled and center-cropped.

    A picture of that size is not scaled. Transparent pixels become white if `shape` has no alpha channel. Raises
    BadInput.
    """
    height, width, channels = shape
    mode = MODES[channels]
    with refusing(path, "not a readable image", remedy), warnings.catch_warnings(action="ignore"):
        if path.is_dir():
            os.listdir(path)  # raises if it cannot be read
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
    """Return height, width and channels (1 if grey, else 3) without reading the pixels. Raises BadInput."""
    with (
        refusing(path, "not a readable image", "take it out"),
        warnings.catch_warnings(action="ignore"),
        Image.open(path) as file,
    ):
        width, height = file.size
        # These orientations swap height and width; for a TIFF, Pillow has already swapped them.
        turned = file.getexif().get(0x0112, 1) >= 5 and file.format != "TIFF"
        channels = 1 if file.mode in ("1", "L", "LA") or file.mode.startswith("I") else 3
    return (width, height, channels) if turned else (height, width, channels)


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image scaled to 8 bits, where Pillow would clip it; return others unchanged.

    Raises ValueError for floats, and for 32 bits unless the highest value is between 256 and 65,535.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    holds_16_bits = image.mode == "I" and low >= 0 and 255 < high <= 65535
    if not (image.mode.startswith("I;16") or holds_16_bits):
        raise ValueError(f"its values go from {low} to {high}; save it with 8 or 16 bits a pixel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
