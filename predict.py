"""Say what a trained run sees in images: the three likeliest classes of each, with their probabilities.

    python predict.py runs/baseline-seed0 image.png folder-of-images

Exit codes: 0 done, 2 bad input (images that could be read are answered all the same).
"""

from harness import signals

if __name__ == "__main__":
    signals.end_at_once("predict.py")  # before the next imports, which take seconds

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import data
from harness import checkpoint, files
from harness.console import Parser, command, path_type, say
from harness.errors import BadInput, refusing
from harness.run import CONFIG, WEIGHTS
from model import MODELS, Network, build_model

TOP = 3


@command("predict.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = Parser(prog="predict.py", description="Name the three likeliest classes of each image.")
    parser.add_argument("run", type=path_type, metavar="RUN", help="a run's directory as train.py leaves it")
    parser.add_argument(
        "images", type=path_type, nargs="+", metavar="IMAGE", help="image files of any size, or folders of them"
    )
    args = parser.parse_args(argv)
    model, names = load_run(Path(args.run))
    code = 0
    for given in args.images:
        try:
            paths = image_files(Path(given))
        except BadInput as error:  # the others are answered all the same
            paths, code = [], refuse(error)
        for path in paths:
            try:
                shown = likeliest(model, read_image(path), names)
                say(f"{path}: {', '.join(f'{name} {probability:.1%}' for name, probability in shown)}")
            except BadInput as error:
                code = refuse(error)
    return code


def refuse(error: BadInput) -> int:
    print(f"predict.py: error: {error}", file=sys.stderr)
    return error.code


def load_run(run: Path) -> tuple[Network, tuple[str, ...]]:
    """Return the network of a run's best epoch so far, ready to predict, and its classes' names. Raises BadInput."""
    path = run / CONFIG
    config = files.read_json(path)
    flags = config.get("flags") if isinstance(config.get("flags"), dict) else {}
    name, source, dtype = config.get("model"), flags.get("data"), flags.get("dtype")
    if not all(isinstance(value, str) for value in (name, source, dtype)) or dtype not in ("float32", "float64"):
        raise BadInput(f"{path}: lacks model, data or dtype; pass a run's directory as train.py left it")
    if name not in MODELS:
        raise BadInput(f"{path}: no model {name!r:.60} here; pass a run of this version")
    model = build_model(name).to(getattr(torch, dtype))
    model.load_state_dict(checkpoint.read_weights(run / WEIGHTS, model.state_dict()))
    return model.eval(), data.class_names(source)


def image_files(given: Path) -> list[Path]:
    """The files that `given` names: itself, or those in a folder whose ending Pillow knows, sorted."""
    if not given.is_dir():
        return [given]
    known = Image.registered_extensions()
    found = sorted(file for file in given.iterdir() if file.suffix.lower() in known)
    if not found:
        raise BadInput(f"{given}: no image in that folder; pass one that holds .png or .jpg files")
    return found


def read_image(path: Path) -> np.ndarray:
    """Return an image file as uint8 (32, 32, 3): upright, its middle square, averaged down or scaled up."""
    with refusing(path, "not a readable image", "pass a .png or .jpg file"):
        if not path.exists():
            raise BadInput(f"{path}: no such file; pass an image that exists")
        if not path.is_file():
            raise ValueError("not a file")  # a pipe would be waited for
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning), Image.open(path) as file:
            image = with_8_bits(ImageOps.exif_transpose(file)).convert("RGB")
            return np.asarray(ImageOps.fit(image, (32, 32), Image.Resampling.BICUBIC))


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
def likeliest(model: torch.nn.Module, image: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the three likeliest classes of an image, uint8 (32, 32, 3), with their probabilities, greatest first."""
    split = data.as_split(image[None].copy(), np.zeros(1, np.int64))
    (batch,) = data.batches(split, 1, dtype=next(model.parameters()).dtype)
    probabilities, classes = model(batch.images).softmax(1)[0].topk(TOP)
    return [(names[number], value) for number, value in zip(classes.tolist(), probabilities.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
