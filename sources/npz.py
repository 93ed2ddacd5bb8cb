"""A data set in an `.npz` file laid out like Keras's own: read, converted where that is safe, or refused."""

from pathlib import Path

import numpy as np

from cli.errors import BadInput
from cli.messages import in_one_line, say
from running import files
from sources.source import Arrays, Source, numbered

CLASSES_LIMIT = 1000  # metrics.json has a count for each pair of classes
ROUNDING = 1e-6  # how far a float may lie from n / 255


class NpzFile(Source):
    """An `.npz` file with the arrays of Keras's dataset files."""

    def load(self) -> Arrays:
        return load_npz(Path(self.text))

    def short_name(self) -> str:
        return super().short_name().removesuffix(".npz")

    def for_keras(self) -> str:
        return self.text


def load_npz(path: Path) -> Arrays:
    """Return x_train, y_train, x_test, y_test of a file, and the names of all classes.

    Prints a line for each conversion. Raises BadInput.
    """
    names, more = ["x_train", "y_train", "x_test", "y_test"], ["class_names"]
    arrays = files.read_npz("--data", path, names, more)
    with np.load(path) as file:
        others = [name for name in file.files if name not in (*names, *more)]
    if others:
        say(f"Not used of {path}: {in_one_line(', '.join(others)):.200}. Validation images are the last of x_train.")
    try:
        x_train = _images("x_train", arrays["x_train"])
        y_train, trained = _labels("y_train", arrays["y_train"])
        x_test = _images("x_test", arrays["x_test"])
        y_test, tested = _labels("y_test", arrays["y_test"])
        for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
            if len(images) != len(labels):
                raise ValueError(f"x_{part} has {len(images):,} images and y_{part} {len(labels):,} labels")
        if trained != tested and _is_one_hot(arrays["y_train"]) and _is_one_hot(arrays["y_test"]):
            raise ValueError(f"y_train has {trained} columns and y_test {tested}, so one column may mean two classes")
        _say_of_range(x_train, x_test)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"x_train has images of {x_train.shape[1:]} and x_test of {x_test.shape[1:]}")
        return Arrays(x_train, y_train, x_test, y_test, _class_names(arrays.get("class_names"), max(trained, tested)))
    except ValueError as error:
        raise BadInput(f"--data {path}: {error}") from None


def _images(name: str, images: np.ndarray) -> np.ndarray:
    """Return images as uint8 (N, H, W, C). Raises ValueError."""
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.size == 0 or images.shape[3] > 4:
        turned = ", here with transpose(0, 2, 3, 1)" if images.ndim == 4 and images.shape[1] <= 4 else ""
        raise ValueError(
            f"{name} has shape {shape}; images must be (N, H, W) or (N, H, W, C) "
            f"with N of at least 1 and C of 1 to 4{turned}"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {images.dtype}; images must be uint8, 0 to 255")
    scale = 255 if images.dtype.kind == "f" and images.max() <= 1 + ROUNDING else 1
    values = "0/255, 1/255 ... 255/255" if scale == 255 else "whole numbers from 0 to 255"
    whole = np.empty(images.shape, np.uint8)
    for number, image in enumerate(images):  # one at a time: a float64 copy of all might not fit in memory
        pixels = np.rint(image.astype(np.float64) * scale)
        # The first condition also fails for values that are not finite.
        if not (np.abs(pixels / scale - image) <= ROUNDING).all() or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(
                f"{name} is {images.dtype}, and image {number} has values other than {values}; "
                "images must be uint8, 0 to 255"
            )
        whole[number] = pixels
    levels = "in [0, 1], taken as 256 levels" if scale == 255 else "of whole numbers, taken as uint8"
    say(f"{name}: {images.dtype} {levels}.")
    return whole


def _say_of_range(x_train: np.ndarray, x_test: np.ndarray) -> None:
    """Warn about uint8 images that were divided by 255: they are nearly black, and train badly."""
    highest = {"x_train": x_train.max(), "x_test": x_test.max()}
    dark = [name for name, most in highest.items() if most <= 1]
    if dark:
        others = "".join(f", {name} up to {most}" for name, most in highest.items() if name not in dark)
        remedy = "undo any division by 255"
        say(f"{' and '.join(dark)}: no pixel above 1{others}, where 255 is white; {remedy}.")


def _labels(name: str, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return labels as int64 (N,), from 0, and how many classes they need. Raises ValueError."""
    if _is_one_hot(labels):
        say(f"{name}: one-hot labels of {labels.shape[1]} classes, taken as their numbers.")
        return labels.argmax(1), labels.shape[1]
    if labels.dtype.kind == "f" and labels.size and np.isfinite(labels).all() and (labels % 1 == 0).all():
        say(f"{name}: {labels.dtype} of whole numbers, taken as labels.")
        labels = labels.astype(np.int64)
    if not np.issubdtype(labels.dtype, np.integer):
        numbered = f"class_names, {name} = np.unique({name}, return_inverse=True)"
        how = f"; number names with {numbered}" if labels.dtype.kind in "US" else "; convert them with astype(int)"
        raise ValueError(f"{name} is {labels.dtype}; labels must be whole numbers from 0{how}")
    if labels.size == 0 or labels.shape not in ((labels.size,), (labels.size, 1)):
        raise ValueError(f"{name} has shape {labels.shape}; labels must be (N,) or (N, 1), or one-hot (N, classes)")
    if labels.min() < 0 or labels.max() >= CLASSES_LIMIT:
        raise ValueError(
            f"{name} has labels from {labels.min()} to {labels.max()}; they must be from 0 to {CLASSES_LIMIT - 1}"
        )
    return labels.reshape(-1).astype(np.int64), 1 + int(labels.max())


def _is_one_hot(labels: np.ndarray) -> bool:
    if labels.ndim != 2 or not 2 <= labels.shape[1] <= CLASSES_LIMIT or labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1, dtype=np.int64) == 1).all())


def _class_names(given: np.ndarray | None, classes: int) -> tuple[str, ...]:
    """Return a name for each class; `given` must have at least as many as the labels need. Raises ValueError."""
    if given is None:
        names = numbered(classes)
    else:
        if given.ndim != 1 or given.dtype.kind != "U":
            raise ValueError(f"class_names is {given.dtype} {given.shape}; it must be strings, one for each class")
        names = tuple(given.tolist())
        bad = [name for name in names if not name.strip() or in_one_line(name) != name]
        if bad or len({*names}) != len(names):
            raise ValueError(f"class_names has {bad[0]!r:.60}" if bad else "class_names has a name twice")
        if len(names) < classes or len(names) > CLASSES_LIMIT:
            raise ValueError(f"class_names has {len(names)} names; the labels need {classes} to {CLASSES_LIMIT}")
    if len(names) < 2:
        raise ValueError("all labels are 0; at least two classes are needed")
    return names
