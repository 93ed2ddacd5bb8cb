"""Write what train.py draws with the same flags, for Keras to train with: image order, dropout masks, augmented views.

    python reference/draws.py draws.npz --data cifar10.npz --seed 3 --dtype float64
    python reference/keras_notebook.py --draws draws.npz --data cifar10.npz --seed 3 --dtype float64 --out runs/keras
    python train.py --init-weights runs/keras/initial_weights.npz --data cifar10.npz --seed 3 --dtype float64

For CIFAR-10, the file takes 1 MB per epoch, or 6 MB with augmentation. It contains
- `orders` (epochs, N): the indices of the training images, in the order in which they are used;
- `masks` (epochs, N, bytes): `units` packed bits per image, in that order; 1 where dropout keeps the unit;
- `rows` and `columns` (epochs, N, 32), if augmented: the rows and columns of each stored image that form its view;
- `units`, and what the draws depend on: `dropout`, `batch_size`, `seed`, `no_shuffle`, `augment`, `shift`,
  `no_mirror`, `data_sha256`.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a script, Python adds only its own folder
import data
import train
from cli.command import command
from cli.errors import BadInput
from cli.messages import counted, say
from options import Options, parse
from running import arithmetic, files
from sources.source import fingerprint

OF_RUN = ("dropout", "batch_size", "seed", "no_shuffle", "augment", "shift", "no_mirror")  # what draws depend on


@command("draws.py")
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (None: the process's own): the file to write, then flags of train.py."""
    file, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if file in ("-h", "--help"):
        say(__doc__.strip())
        return
    if not file.endswith(".npz"):
        raise BadInput(f"{file}: first comes the .npz file to write, then the flags of train.py")
    options = parse(flags).checked()
    refuse_others(Path(file))
    files.make_folder(Path(file).parent)
    files.write_npz(Path(file), draws(options))
    say(f"Draws of {counted(options.epochs, 'epoch')} with seed {options.seed}: {file}")


def refuse_others(file: Path) -> None:
    """Raise BadInput if `file` exists but contains no draws: it may be a data set, which is an .npz file too."""
    if os.path.lexists(file):
        try:
            files.read_npz("draws.py", file, ("orders", "masks", "units"))
        except BadInput:
            raise BadInput(f"{file}: exists, and is not a file of draws; pass another name") from None


def draws(options: Options) -> dict[str, np.ndarray]:
    """Return the draws for `--epochs` epochs, made with the generators of train.py and in the same order.

    Raises BadInput for --compile.
    """
    if options.compile:
        raise BadInput("--compile draws its own masks: leave it out, here and in train.py")
    with arithmetic.of_run(options.device, options.threads, options.tf32, options.deterministic):
        return _drawn(options)


@torch.inference_mode()
def _drawn(options: Options) -> dict[str, np.ndarray]:
    arrays = options.source().load()
    model = train.initial_network(options, arrays, None)
    split, _ = data.split_validation(arrays.x_train, arrays.y_train, options.validation_split)
    split = split.to(options.device)
    augmentation = train.augmentation_of(options, arrays)

    steps, last = divmod(len(split), options.batch_size)
    dropped = []  # like dropout's inputs in a full and a short batch: a mask depends on their shape, dtype and layout
    model.dropout.register_forward_pre_hook(lambda _, inputs: dropped.append(torch.ones_like(inputs[0])))
    model.eval()
    few = data.Split(*(part[: options.batch_size + last] for part in split))
    for batch in data.batches(few, options.batch_size, dtype=train.dtype_of(model)):
        model(batch.images)
    whole, short = dropped[0], dropped[-1]
    dropout = torch.nn.Dropout(options.dropout)

    drawn = {"orders": [], "masks": [], "rows": [], "columns": []}
    for epoch in range(options.epochs):
        order, views = data.draw(len(split), options.seed, epoch, not options.no_shuffle, augmentation)
        masks = torch.cat([dropout(ones) for ones in [whole] * steps + [short] * (last > 0)]) != 0
        drawn["orders"].append(torch.arange(len(split)) if order is None else order)
        drawn["masks"].append(np.packbits(masks.cpu().numpy(), axis=1))
        if views is not None:
            drawn["rows"].append(views.rows)
            drawn["columns"].append(views.columns)
    small = {"orders": np.uint32, "masks": np.uint8, "rows": np.uint16, "columns": np.uint16}
    arrays_drawn = {name: np.array(values).astype(small[name]) for name, values in drawn.items() if values}
    of_run = {name: value for name, value in options.flags().items() if name in OF_RUN}
    return arrays_drawn | of_run | {"units": masks.shape[1], "data_sha256": fingerprint(arrays)}


if __name__ == "__main__":
    sys.exit(main())
