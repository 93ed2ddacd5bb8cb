"""Classify images with a trained run: the likeliest classes of each, with their probabilities.

    python predict.py runs/baseline-seed0 image.png folder-of-images
    python predict.py runs/baseline-seed0 "photos/*.jpg" --top 1 --csv answers.csv

Exit codes: 0 done, 1 failed (disk full), 2 bad input (images that could be read are classified anyway), 130 and
143 interrupted.
"""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import data
from cli.command import command
from cli.errors import BadInput, refusing
from cli.messages import complain, in_one_line, say
from cli.parser import Parser, number, path_type
from model import CIFAR10_SHAPE, MODELS, Network, build_model
from running import checkpoint, files
from running.outcome import CHECKPOINT, CONFIG, WEIGHTS
from sources import pictures
from sources.cifar10 import CLASSES

HEADER = ("path", "class", "probability")  # of --csv


@command("predict.py")
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit code."""
    parser = Parser("predict.py", __doc__)
    parser.add_argument("run", type=path_type, metavar="RUN", help="the directory of a run")
    parser.add_argument(
        "images",
        type=os.path.expanduser,  # not path_type: an odd character in one name must not stop the others
        nargs="+",
        metavar="IMAGE",
        help="image files of any size, patterns with *, or folders: all images in them and in their subfolders",
    )
    parser.add_argument("--top", type=number(int, "[1, 1000]"), default=3, help="number of classes to list per image")
    parser.add_argument("--json", action="store_true", help="print one JSON object: a list of answers for each path")
    parser.add_argument("--csv", type=path_type, metavar="FILE", help="write path, class and probability to this file")
    args = parser.parse_args(argv)
    if args.csv:
        refuse_other_files(Path(args.csv))
    model, shape, names = load_run(Path(args.run))
    code = 0
    answers = {}
    for path in [path for given in args.images for path in image_files(given)]:
        try:
            answers[str(path)] = classes = likeliest(model, pictures.read(path, shape), names, args.top)
            answer = ", ".join(f"{name} {probability:.1%}" for name, probability in classes)
            if not args.json:
                try:
                    say(in_one_line(f"{path}: {answer}"))
                except BrokenPipeError:  # as with `| head`
                    if not args.csv:
                        raise
        except BadInput as error:  # the other images are still classified
            complain(in_one_line(f"predict.py: error: {error}"))
            code = error.code
    if args.json:
        keys = ("class", "probability")
        say(
            json.dumps(
                {path: [dict(zip(keys, one, strict=True)) for one in of_path] for path, of_path in answers.items()}
            )
        )
    if args.csv:
        files.write_bytes(Path(args.csv), as_csv(answers).encode(errors="surrogateescape"))
    return code


def refuse_other_files(table: Path) -> None:
    """Raise BadInput if `table` exists and was not written by predict.py, or its folder does not exist."""
    if not table.parent.is_dir():
        raise BadInput(f"--csv {table}: the folder {table.parent} does not exist; create it, or pass another file")
    if os.path.lexists(table) and (not table.is_file() or not table.read_bytes().startswith(",".join(HEADER).encode())):
        raise BadInput(f"--csv {table}: exists, and was not written by predict.py; pass another file")


def as_csv(answers: dict[str, list[tuple[str, float]]]) -> str:
    """Return a CSV table with a row for each class of each image, the likeliest first."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(HEADER)
    writer.writerows((path, *one) for path, classes in answers.items() for one in classes)
    return buffer.getvalue()


def load_run(run: Path) -> tuple[Network, list[int], list[str]]:
    """Return the network of a run's best epoch so far, ready to predict, with its image shape and class names.

    Raises BadInput.
    """
    path = run / CONFIG
    if not path.is_file():
        instead = run.parent if (run.parent / CONFIG).is_file() else "one, then images"
        raise BadInput(f"{run}: not the directory of a run; pass {instead}")
    config = files.read_json(path)
    with refusing(path, "not of a run of this version", "pass a run's directory as train.py left it"):
        # Older runs have neither; all of their images were like CIFAR-10's.
        shape, names = config.get("image_shape", CIFAR10_SHAPE), config.get("class_names", CLASSES)
        if config["model"] not in MODELS:
            raise ValueError(f"no network {config['model']!r:.60} here")
        model = build_model(config["model"], tuple(shape), len(names)).to(getattr(torch, config["flags"]["dtype"]))
    if not (run / WEIGHTS).exists():
        what = f"recreate it from {CHECKPOINT}" if (run / CHECKPOINT).exists() else "train an epoch"
        remedy = f"{what}: train.py --resume {run}"
        raise BadInput(f"{run / WEIGHTS}: does not exist; {remedy}")
    with refusing(run / WEIGHTS, "not the weights of this run", "pass a run's directory as train.py left it"):
        model.load_state_dict(checkpoint.read_weights(run / WEIGHTS))
    return model.eval(), shape, names


def image_files(given: str) -> list[Path]:
    """Return the image files that `given` names: the file, the matches of a pattern with *, or the images in a folder.

    A folder that has no images or cannot be read is returned itself, so that it is reported in turn. A line on stderr
    lists a folder's other files.
    """
    if not os.path.exists(given) and glob.has_magic(given):  # a pattern that the shell did not expand
        return [path for name in sorted(glob.glob(given)) for path in image_files(name)] or [Path(given)]
    if not os.path.isdir(given):  # "" is none either, although Path("") is the current folder
        return [Path(given)]
    contents = pictures.in_folder(given)
    if contents.others:
        complain(f"predict.py: {pictures.left_out(contents.others)}")
    return contents.pictures + contents.unreadable or [Path(given)]


@torch.inference_mode()
def likeliest(model: torch.nn.Module, image: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Return the `top` likeliest classes of an image, uint8 (H, W, C), with their probabilities, greatest first."""
    split = data.as_split(image[None].copy(), np.zeros(1, np.int64))
    (batch,) = data.batches(split, 1, dtype=next(model.parameters()).dtype)
    probabilities, classes = model(batch.images).softmax(1)[0].topk(min(top, len(names)))
    return [(names[number], value) for number, value in zip(classes.tolist(), probabilities.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
