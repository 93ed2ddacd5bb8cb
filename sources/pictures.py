"""Pictures as files: which ones there are in a folder, and how one is read at a given size."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cli.errors import refusing

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
ENDINGS = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def in_folder(folder: str | Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the pictures in a folder and its subfolders, sorted by path; other files; and folders that cannot be read.

    A file is a picture by its ending. What has a name that begins with a dot is left out.
    """
    pictures, others, unreadable = [], [], []
    for parent, subfolders, names in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                (pictures if Path(name).suffix.lower() in ENDINGS else others).append(Path(parent, name))
    return sorted(pictures), sorted(others), unreadable


def read(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Return a picture as uint8 of `shape`, (H, W, C): upright, its middle, averaged down or scaled up.

    One of that size is taken as it is. Raises BadInput.
    """
    height, width, channels = shape
    mode = MODES[channels]
    with refusing(path, "not a readable image", "pass a .png or .jpg file"), warnings.catch_warnings(action="ignore"):
        if path.is_dir():
            os.listdir(path)  # raises what keeps it from being read
            raise ValueError("a folder without images")
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with Image.open(path) as file:
            image = _with_8_bits(ImageOps.exif_transpose(file))
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
