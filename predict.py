"""Say what a trained run sees in images: the three likeliest classes of each, with their probabilities.

    python predict.py runs/baseline-seed0 image.png folder-of-images

Exit codes: 0 done, 1 failed (disk full), 2 bad input (images that could be read are answered all the same), 130 and
143 interrupted.
"""

from harness import signals

if __name__ == "__main__":
    signals.end_at_once("predict.py")  # before the next imports, which take seconds

import itertools
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import data
from harness import checkpoint, files
from harness.console import Parser, command, complain, in_one_line, path_type, say
from harness.datasets import CLASSES_LIMIT
from harness.errors import BadInput, refusing
from harness.run import CONFIG, WEIGHTS
from model import CIFAR10_SHAPE, MODELS, Network, build_model

TOP = 3
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
LARGEST = 10_000  # pixels a side of what a network takes
LARGE, LIMIT = 89_000_000, 500_000_000  # pixels: above LARGE a JPEG is decoded at a half, a quarter or an eighth
DRAFT = 1024  # pixels a side that such a JPEG keeps
# Whose endings are looked at in a folder: Pillow knows others too, such as PDF, that it cannot read.
KINDS = {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"}


@command("predict.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = Parser("predict.py", __doc__)
    parser.add_argument("run", type=path_type, metavar="RUN", help="a run's directory as train.py leaves it")
    parser.add_argument(
        "images",
        type=os.path.expanduser,  # any: a name with an odd character is no reason to leave the others unanswered
        nargs="+",
        metavar="IMAGE",
        help="image files of any size, or folders: all images in them and in their subfolders, by name; "
        "links are followed, hidden files left out",
    )
    args = parser.parse_args(argv)
    run, code = Path(args.run), 0
    check_run(run)
    model, shape, names = load_run(run)
    for found in itertools.chain.from_iterable(map(image_files, args.images)):
        try:
            if isinstance(found, BadInput):
                raise found
            shown = likeliest(model, read_image(found, shape), names)
            say(in_one_line(f"{found}: {', '.join(f'{name} {probability:.1%}' for name, probability in shown)}"))
        except BadInput as error:  # the others are answered all the same
            complain(in_one_line(f"predict.py: error: {error}"))
            code = error.code
    return code


def check_run(run: Path) -> None:
    """Raise BadInput, which says what RUN is, unless `run` holds a run."""
    try:
        fault = None if CONFIG in os.listdir(run) else f"has no {CONFIG}"
    except OSError as error:
        fault = error.strerror
    if fault:
        instead = run.parent if os.path.isfile(run.parent / CONFIG) else "one, then images"
        raise BadInput(f"{run}: {fault}; RUN is a run's directory as train.py leaves it; pass {instead}")


def load_run(run: Path) -> tuple[Network, list[int], list[str]]:
    """Return the network of a run's best epoch so far, ready to predict, its images' shape and its classes' names.

    Raises BadInput.
    """
    path = run / CONFIG
    config = files.read_json(path)
    flags = config.get("flags") if isinstance(config.get("flags"), dict) else {}
    name, dtype = config.get("model"), flags.get("dtype")
    if not isinstance(name, str) or dtype not in ("float32", "float64"):
        raise BadInput(f"{path}: lacks model or dtype; pass a run's directory as train.py left it")
    if name not in MODELS:
        raise BadInput(f"{path}: no model {name!r:.60} here; pass a run of this version")
    # Runs that have neither are older, and had images like CIFAR-10's only.
    shape, names = config.get("image_shape", CIFAR10_SHAPE), config.get("class_names", data.CLASSES)
    with refusing(path, "image_shape or class_names is wrong", "pass a run's directory as train.py left it"):
        height, width, channels = shape
        if not (0 < height <= LARGEST and 0 < width <= LARGEST and channels in MODES):
            raise ValueError(f"{shape!r:.60}")
        if not (isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)):
            raise ValueError(f"{names!r:.60}")
        if len({*names}) < len(names) or len(names) > CLASSES_LIMIT:
            raise ValueError(f"{names!r:.60}")
        model = build_model(name, (height, width, channels), len(names)).to(getattr(torch, dtype))
    model.load_state_dict(checkpoint.read_weights(run / WEIGHTS, model.state_dict()))
    return model.eval(), shape, names


def image_files(given: str) -> Iterator[Path | BadInput]:
    """Yield the images that `given` names: itself, or those in the folder and its subfolders; faults in their turn.

    They come sorted by name, a folder's own files before its subfolders. Only files whose ending is that of an image
    are taken, and nothing whose name begins with a dot: macOS leaves `._a.png` beside `a.png`. Links are followed, but
    no folder is entered twice.
    """
    if not os.path.isdir(given):
        yield Path(given)
        return
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in KINDS}
    entered, faults, left_out, count = set(), [], Counter(), 0
    for folder, folders, names in os.walk(given, onerror=faults.append, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            if path.suffix.lower() in endings:
                count += 1
                yield path
            else:
                left_out[path.suffix.lower() or "without one"] += 1
    for error in faults:
        yield BadInput(f"{error.filename}: cannot be looked into ({error.strerror}); pass a folder that can be read")
    if left_out:
        most = ", ".join(f"{number:,} {ending}" for ending, number in left_out.most_common(5))
        said = f"predict.py: {given}: files left out, as they are no images by their ending: {most}"
        complain(in_one_line(said))
    if not (count or faults):
        yield BadInput(f"{given}: no image in that folder; pass one that holds .png or .jpg files")


def read_image(path: Path, shape: Sequence[int] = CIFAR10_SHAPE) -> np.ndarray:
    """Return an image file as uint8 of `shape`, (H, W, C): upright, its middle, averaged down or scaled up."""
    height, width, channels = shape
    image = open_image(path, MODES[channels])
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).reshape(shape)


def open_image(path: Path, mode: str) -> Image.Image:
    """Return an image file in Pillow's `mode`, of 8 bits, upright. Raises BadInput."""
    with refusing(path, "not a readable image", "pass a .png or .jpg file"):
        try:
            status = os.stat(path)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; pass an image that can be read") from None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")  # a pipe would be waited for
        Image.MAX_IMAGE_PIXELS = LIMIT // 2  # Pillow warns above it, and refuses above twice as many
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
                if file.width * file.height > LARGE:
                    file.draft(None, (DRAFT, DRAFT))
                ImageOps.exif_transpose(file, in_place=True)  # a copy of a large image takes gigabytes
                for remark in remarks(file, mode):
                    complain(in_one_line(f"predict.py: {path}: {remark}"))
                image = with_8_bits(file)
                return image if image.mode == mode else image.convert(mode)
        except Image.DecompressionBombError:
            raise BadInput(f"{path}: more than {LIMIT:,} pixels; pass a smaller image") from None


def remarks(image: Image.Image, mode: str) -> list[str]:
    """Say what of an image is not seen when it is taken in `mode`, or seen although a viewer would not show it."""
    found = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        found.append(f"the first of its {frames} frames is taken")
    hides = "transparency" in image.info or ("A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255)
    if hides and "A" not in mode:
        found.append("its transparency is left out, so that what it hides counts")
    return found


def with_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits, or of floats in [0, 1], with 8 bits a pixel: Pillow would clip it, not scale it.

    Others come back as they are. Raises ValueError for values whose range cannot be told.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        least, most, scale = 0, 1, 255
    else:  # 32 bits hold what was 16, or something else
        least, most, scale = 256 if image.mode == "I" else 0, 65535, 1 / 257
    black = low == high == 0
    if not black and not (low >= 0 and least <= high <= most):
        raise ValueError(f"whether its values, {low} to {high}, have 8 bits, 16, or lie in [0, 1] cannot be told")
    return Image.fromarray(np.round(values * scale).astype(np.uint8))


@torch.inference_mode()
def likeliest(model: torch.nn.Module, image: np.ndarray, names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the three likeliest classes of an image, uint8 (H, W, C), with their probabilities, greatest first."""
    split = data.as_split(image[None].copy(), np.zeros(1, np.int64))
    (batch,) = data.batches(split, 1, dtype=next(model.parameters()).dtype)
    probabilities, classes = model(batch.images).softmax(1)[0].topk(min(TOP, len(names)))
    return [(names[number], value) for number, value in zip(classes.tolist(), probabilities.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
