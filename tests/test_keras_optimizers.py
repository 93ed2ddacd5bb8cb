"""Each optimizer equals Keras's: whole runs in float64, with cuts or a schedule, match real Keras to 1e-9."""

import json

import keras
import numpy as np
import pytest
import torch
from conftest import SHAPE
from test_keras import assert_close, data_file, float64, glorot_uniform

import optim
import train
from callbacks import Cosine
from reference import notebook

__all__ = ["float64"]  # a fixture

MOMENTUM = float(np.float32(0.9))  # on TensorFlow Keras rounds it so; on torch it takes the double
OPTIMIZERS = {  # with a learning rate that is too high, so that there are cuts
    "adam": (0.005, lambda lr, decay: keras.optimizers.Adam(lr)),
    "adamw": (0.005, lambda lr, decay: keras.optimizers.AdamW(lr, weight_decay=decay)),
    "sgd": (0.2, lambda lr, decay: keras.optimizers.SGD(lr, momentum=MOMENTUM, nesterov=True, weight_decay=decay)),
}
FLAGS = dict.fromkeys(OPTIMIZERS, ("", "--l2 0", "--l2 0.01 --label-smoothing 0.1", "--schedule cosine"))
FLAGS |= {name: (*FLAGS[name], "--weight-decay 0.5") for name in ("adamw", "sgd")}  # which adam does not have
EPOCHS, IMAGES, STEPS = 5, 100, 2  # 80 to train on: two steps an epoch


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The file of images, the file of initial weights, and these weights."""
    folder = tmp_path_factory.mktemp("optimizers")
    data_file(folder / "data.npz", IMAGES)
    weights = glorot_uniform(np.random.RandomState(1), SHAPE)
    np.savez(folder / "start.npz", *weights)
    return folder / "data.npz", folder / "start.npz", weights


class Rates(keras.callbacks.Callback):
    """Sets the learning rate of each step to the next of `rates`."""

    def __init__(self, rates):
        super().__init__()
        self.rates = rates

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = next(self.rates)


def cosine_rates(lr, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    schedule = Cosine(optimizer, total_steps=steps, min_lr=1e-6)
    for _ in range(steps):
        yield schedule.rate
        optimizer.step()
        schedule.after_step()


def in_keras(data, weights, name, lr, decay, smoothing, schedule, l2):
    """Train as the flags say; returns the columns of the history, and the best weights."""
    model = notebook.build_model(SHAPE, dropout=0.0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.regularizer = keras.regularizers.L2(l2)
    model.set_weights(weights)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    model.compile(OPTIMIZERS[name][1](lr, decay), loss, metrics=["accuracy"])
    x_train, y_train, _, _ = notebook.prepare(*notebook.load_data(data))
    callbacks = [keras.callbacks.EarlyStopping("val_loss", patience=EPOCHS, restore_best_weights=True)]
    if schedule == "cosine":
        callbacks.append(Rates(cosine_rates(lr, EPOCHS * STEPS)))
    else:
        callbacks.append(keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1))
    settings = {"batch_size": 64, "epochs": EPOCHS, "validation_split": 0.2, "shuffle": False, "verbose": 0}
    history = model.fit(x_train, y_train, callbacks=callbacks, **settings).history
    return history, model.get_weights()


@pytest.mark.parametrize(("name", "flags"), [(name, flags) for name in OPTIMIZERS for flags in FLAGS[name]])
def test_whole_runs_with_each_optimizer_equal_those_of_keras_in_every_figure_to_1e_9(
    name, flags, start, float64, tmp_path
):
    lr, _ = OPTIMIZERS[name]
    given = dict(zip(flags.split()[::2], flags.split()[1::2], strict=True))
    decay = float(given.get("--weight-decay", 0.004 if name == "adamw" else 0)) or None
    data, first, weights = start
    smoothing, schedule = float(given.get("--label-smoothing", 0)), given.get("--schedule", "plateau")
    theirs, best = in_keras(data, weights, name, lr, decay, smoothing, schedule, float(given.get("--l2", 1e-3)))

    fixed = ["--no-shuffle", "--dropout", "0", "--dtype", "float64", "--patience", "6"]
    fixed += ["--lr-patience", "1"] if schedule == "plateau" else []
    arguments = ["--data", str(data), "--init-weights", str(first), "--optimizer", name, *fixed]
    arguments += ["--lr", str(lr), "--epochs", str(EPOCHS), *flags.split(), "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    ours = np.genfromtxt(tmp_path / "run" / "history.csv", delimiter=",", names=True)
    for column in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-9, err_msg=column)
    with np.load(tmp_path / "run" / "best_weights.npz") as file:
        assert_close(list(file.values()), best, 1e-9)
    cuts = json.loads((tmp_path / "run" / "metrics.json").read_text())["learning_rate_cuts"]
    assert (schedule == "cosine") != any(cut["epoch"] < EPOCHS for cut in cuts)  # a cut acts from the next step on


def assert_steps_equal_those_of_keras(optimizer):
    """Take five steps with gradients from far below epsilon to 1, with `optimizer` and with its namesake in Keras."""
    namesake = {name.lower(): one for name, one in vars(keras.optimizers).items()}[optimizer.__name__.lower()]
    scales = np.array([1e-9, 1e-7, 1e-6, 1e-3, 1.0])
    ours, theirs = torch.zeros(5, dtype=torch.float64), keras.Variable(np.zeros(5))
    ours.requires_grad_()
    step, reference = optimizer([ours], lr=0.01), namesake(0.01, **optimizer.keras_settings)
    if optimizer.default_decay:
        step.param_groups[0]["decoupled_decay"] = optimizer.default_decay
    for factor in (1.0, -0.5, 2.0, 0.1, 1.5):
        ours.grad = torch.from_numpy(factor * scales)
        step.step()
        reference.apply([torch.from_numpy(factor * scales)], [theirs])
        # float64; but Keras keeps some constants in float32, and its decay too.
        np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), rtol=1e-7)


WITH_NAMESAKE = [name for name, one in optim.OPTIMIZERS.items() if one.keras_settings is not None]


@pytest.mark.parametrize("name", WITH_NAMESAKE)
def test_every_optimizer_with_a_namesake_in_keras_takes_the_same_steps(name, float64):
    assert_steps_equal_those_of_keras(optim.OPTIMIZERS[name])


def test_the_rmsprop_of_torch_would_be_caught(float64):
    class RMSprop(optim.Stepping, torch.optim.RMSprop):
        pass

    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_steps_equal_those_of_keras(RMSprop)


def test_only_muon_goes_without_a_namesake_in_keras():
    assert set(optim.OPTIMIZERS) - set(WITH_NAMESAKE) == {"muon"}
