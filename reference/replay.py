"""Train a Keras model with the order of images, the dropout masks and the views that train.py draws."""

from collections.abc import Iterator

import keras
import numpy as np

from reference.notebook import read_arrays


class GivenMask(keras.layers.Layer):
    """Dropout that keeps the units for which its second input is 1."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def call(self, hidden, mask, training=False):
        return hidden * (mask / (1.0 - self.rate)) if training else hidden


def with_masks(model: keras.Sequential) -> keras.Model:
    """Return a model with the layers and weights of `model`, and its dropout masks as a second input."""
    images = x = keras.Input(model.input_shape[1:])
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            masks = keras.Input(x.shape[1:])
            x = GivenMask(layer.rate)(x, masks)
        else:
            x = layer(x)
    return keras.Model([images, masks], x)


class Draws:
    """The draws that reference/draws.py wrote to the file `path`; raises ValueError, naming it, for any other file."""

    def __init__(self, path: str):
        self.path = path
        arrays = read_arrays(path)
        names = ("orders", "masks", "units", "dropout", "batch_size", "seed", "no_shuffle", "data_sha256")
        names += ("augment", "shift", "no_mirror")
        if not set(names) <= arrays.keys():
            raise ValueError(f"{path}: no draws of this version in it; write it with reference/draws.py")
        self.orders, self.masks = arrays["orders"], arrays["masks"]
        self.rows, self.columns = arrays.get("rows"), arrays.get("columns")
        self.settings = {name: arrays[name].item() for name in names[2:]}
        self.augmentation = {name: self.settings[name] for name in ("augment", "shift", "no_mirror")}
        self.units, self.batch_size = self.settings["units"], self.settings["batch_size"]

    def check(self, images: int, data_sha256: str, args, model: keras.Model) -> None:
        """Raise ValueError unless the draws fit `args`, `model`, the number of training images and the data's hash."""
        epochs, drawn = self.orders.shape
        pairs = {"training images": (drawn, images), "units": (self.units, model.input_shape[1][1])}
        for name in ("batch_size", "dropout", "seed", "no_shuffle"):
            pairs[f"--{name.replace('_', '-')}"] = (self.settings[name], getattr(args, name))
        pairs |= {"--epochs": (min(epochs, args.epochs), args.epochs)}
        pairs |= {"data with the hash": (self.settings["data_sha256"], data_sha256)}
        for name, (here, wanted) in pairs.items():
            if here != wanted:
                raise ValueError(f"{self.path}: drawn for {name} {here}, not {wanted}; draw again with the same flags")

    def batches(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple]:
        """Yield the batches of all epochs, each ((images, masks), labels), from the prepared `images` and `labels`."""
        for epoch, order in enumerate(self.orders):
            for first in range(0, len(order), self.batch_size):
                which = order[first : first + self.batch_size]
                batch = images[which]
                if self.rows is not None:
                    rows, columns = self.rows[epoch, which], self.columns[epoch, which]
                    batch = batch[np.arange(len(which))[:, None, None], rows[:, :, None], columns[:, None, :]]
                masks = np.unpackbits(self.masks[epoch, first : first + len(which)], axis=1, count=self.units)
                yield (batch, masks.astype(images.dtype)), labels[which]

    def beside(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both inputs for evaluating `images`, with masks that evaluation ignores."""
        return images, np.zeros((len(images), self.units), images.dtype)
