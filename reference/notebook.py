"""The notebook in Keras 3: its data, its networks, its own callback."""

import hashlib
import os
import random
import time
import zipfile

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
import keras


class EpochLog(keras.callbacks.Callback):
    """Records the learning rate after each epoch, like the notebook's own callback, and the epoch's wall time."""

    def __init__(self):
        super().__init__()
        self.learning_rates, self.seconds = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.learning_rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self.seconds.append(time.perf_counter() - self.started)


def seed_everything(seed: int) -> None:
    """Seed the initial weights and dropout masks, and the order of images unless that would freeze it.

    On TensorFlow, `keras.utils.set_random_seed` would give every epoch the same permutation (tensorflow#44195), because
    the shuffle in its input pipeline restarts. There, the order is left random, as in the notebook.
    """
    random.seed(seed)  # Keras draws the seeds of its initialisers and dropout layers from it
    np.random.seed(seed)
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(seed)


def set_precision(dtype: str) -> None:
    """Make Keras compute in `dtype`, not in TF32, the default on newer GPUs, or float32, the default of JAX."""
    keras.config.set_epsilon(1e-7)  # whatever ~/.keras/keras.json says; losses are clipped with it
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)  # which no longer follows floatx once a layer exists
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    elif backend == "torch":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    elif backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", dtype == "float64")
        jax.config.update("jax_default_matmul_precision", "highest")


def build_model(image_shape=(32, 32, 3), classes: int = 10, dropout: float = 0.5) -> keras.Model:
    """Return the notebook's first network."""
    layers = keras.layers
    penalty = keras.regularizers.L2(0.001)
    return keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Conv2D(32, 3, activation="relu", padding="same", kernel_regularizer=penalty),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu", padding="same", kernel_regularizer=penalty),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def build_improved(image_shape=(32, 32, 3), classes: int = 10, dropout: float = 0.5) -> keras.Model:
    """Return the notebook's second network: three stages of conv, pool, BatchNorm, ReLU, conv, BatchNorm, ReLU."""
    layers = keras.layers
    penalty = keras.regularizers.L2(0.001)
    sequence = [keras.Input(image_shape)]
    for width in (48, 96, 192):
        for pool in (True, False):
            sequence += [layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_regularizer=penalty)]
            sequence += [layers.MaxPooling2D(2)] * pool
            sequence += [layers.BatchNormalization(), layers.ReLU()]
    sequence += [layers.GlobalMaxPooling2D(), layers.Dropout(dropout), layers.Dense(classes, activation="softmax")]
    return keras.Sequential(sequence)


MODELS = {"baseline": build_model, "improved": build_improved}


def compile_model(model: keras.Model, learning_rate: float = 1e-3) -> None:
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])


def read_arrays(path: str, names: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the arrays in the `.npz` file `path`, only `names` if given; raise ValueError if it is unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if not names or name in names}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from None


def in_order(weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays that `np.savez(FILE, *model.get_weights())` wrote, in that order: arr_0, arr_1 and so on."""
    return [weights[name] for name in sorted(weights, key=lambda name: (len(name), name))]


def hash_of(weights: list[np.ndarray]) -> str:
    """Return the SHA-256 of a network's weights, as train.py computes it."""
    return hashlib.sha256(b"".join(array.astype("<f8").tobytes() for array in weights)).hexdigest()


def load_data(path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Return x_train, y_train, x_test, y_test, and the number of classes: images (N, H, W, C) of 0 to 255, labels (N,).

    Raises ValueError if the file contains anything else, or if no file is given and Keras cannot load CIFAR-10.
    """
    if path is None:
        try:
            (x_train, y_train), (x_test, y_test) = keras.datasets.cifar10.load_data()
        except Exception as error:  # Keras raises no narrower class if a download fails
            raise ValueError(f"Keras has no CIFAR-10 ({error}); pass --data FILE.npz") from None
        names = ()
    else:
        arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test", "class_names"))
        missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
        if missing:
            raise ValueError(f"{path}: no array {', '.join(missing)} in it")
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        names = arrays.get("class_names", ())
        x_train, x_test = (images[..., None] if images.ndim == 3 else images for images in (x_train, x_test))
        if x_train.dtype != np.uint8 or x_test.dtype != np.uint8:
            raise ValueError(
                f"{path}: images are {x_train.dtype} and {x_test.dtype}; here they must be uint8, 0 to 255"
            )
        if x_train.ndim != 4 or x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"{path}: images of {x_train.shape[1:]} and {x_test.shape[1:]}; they must be of one size")
        for images, labels in ((x_train, y_train), (x_test, y_test)):
            if labels.size and np.issubdtype(labels.dtype, np.integer) and labels.min() < 0:
                raise ValueError(f"{path}: labels from {labels.min()} on; they must be whole numbers from 0")
            if labels.shape not in ((len(images),), (len(images), 1)) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{path}: labels {labels.shape} of {labels.dtype}; here they must be whole numbers (N,)"
                )
    y_train, y_test = y_train.reshape(-1).astype(np.int64), y_test.reshape(-1).astype(np.int64)
    return x_train, y_train, x_test, y_test, max(len(names), 1 + int(y_train.max()), 1 + int(y_test.max()))


def prepare(x_train, y_train, x_test, y_test, classes: int) -> tuple[np.ndarray, ...]:
    """Return the images scaled to [0, 1] in Keras's floatx, and one-hot labels."""
    dtype = keras.config.floatx()
    return (
        x_train.astype(dtype) / 255,
        keras.utils.to_categorical(y_train, classes),
        x_test.astype(dtype) / 255,
        keras.utils.to_categorical(y_test, classes),
    )


def fingerprint(arrays: tuple[np.ndarray, ...]) -> str:
    """Return the SHA-256 of the stored data, as train.py computes it, so that compare.py recognizes the same data."""
    digest = hashlib.sha256()
    for array in arrays[:4]:
        digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
