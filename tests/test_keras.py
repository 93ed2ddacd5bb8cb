"""The proof: the port equals real Keras, in float64 up to rounding, in float32 to a measured tolerance.

Keras runs on its torch backend, in float64 with TensorFlow's rules, which that backend lacks (see `float64`).
Checking the same equality on TensorFlow itself takes minutes; docs/keras.md says how.
"""

import csv
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SHAPE, stand_in
from keras.src.backend.common import dtypes
from keras.src.backend.torch import core

import compare
import model
import optim
import options
import sources
import train
from batchnorm import BatchNorm2d
from data import Batch, as_split, batches
from metrics import Objective, rounded
from model import build_model, from_keras_weights, l2_penalty, parameter_groups, to_keras_weights
from optim import Adam
from reference import draws, keras_notebook, notebook
from running.lock import DirectoryLock, refuse_in_use
from sources.source import fingerprint


@pytest.fixture
def float64(monkeypatch):
    """Keras in float64 on torch, changed to follow TensorFlow in three places where the torch backend differs.

    A Python float is a float32 before it is cast to a tensor's type (the L2 factor, Adam's betas), and where it becomes
    a tensor (what callbacks compare). float64 times float64 stays float64 (the torch backend multiplies a dense layer
    in float32).
    """
    monkeypatch.setattr(core, "floatx", lambda: "float32")
    cast = core.cast
    monkeypatch.setattr(core, "cast", lambda x, dtype: cast(np.float32(x) if isinstance(x, float) else x, dtype))
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    before = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(before)


def glorot_uniform(random, image_shape=(32, 32, 3)):
    """Initial weights drawn by numpy, in Keras's layout: the same whatever the versions of Keras and torch."""
    arrays = []
    for array in to_keras_weights(build_model(image_shape=image_shape)):
        limit = np.sqrt(6 / (array[..., 0].size + array[..., 0, :].size)) if array.ndim > 1 else 0
        arrays.append(random.uniform(-limit, limit, array.shape).astype(np.float32))
    return arrays


def same_start(dtype, dropout=0.0):
    """A compiled Keras model and our network with the same weights, biases not zero."""
    random = np.random.RandomState(0)
    reference = notebook.build_model(dropout=dropout)
    weights = [w + 0.1 * random.standard_normal(w.shape) * (w.ndim == 1) for w in glorot_uniform(random)]
    reference.set_weights(weights)
    notebook.compile_model(reference)
    network = build_model(dropout=dropout).to(dtype)
    from_keras_weights(network, weights)
    return reference, network


def image_batches(dtype, count, size=16):
    """Batches of the stand-in: our images, our labels, Keras's images, Keras's one-hot labels."""
    arrays = stand_in()
    split = as_split(arrays.x_train[: count * size], arrays.y_train[: count * size])
    for images, labels, _ in batches(split, size, dtype=dtype):
        yield images, labels, images.permute(0, 2, 3, 1).numpy(), keras.utils.to_categorical(labels, 10)


def in_keras_order(tensors):
    """Tensors shaped like the network's parameters, as arrays in the order and axes of Keras's `get_weights()`."""
    carrier = build_model().double()
    with torch.no_grad():
        for parameter, tensor in zip(carrier.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
    return to_keras_weights(carrier)


def assert_close(ours, theirs, tolerance):
    """Each array agrees to `tolerance` of its greatest value: sums cancel, so small values carry its rounding."""
    for one, other in zip(ours, theirs, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_the_outputs_of_each_layer_equal_those_of_keras_to_1e_12(float64):
    reference, network = same_start(torch.float64)
    _, pool1, _, pool2, flatten, dense1, _, dense2 = reference.layers
    dense2.activation = keras.activations.linear  # logits, as ours
    images, _, keras_images, _ = next(image_batches(torch.float64, 1))
    theirs = keras.Model(reference.inputs[0], [layer.output for layer in (pool1, pool2, flatten, dense1)])(keras_images)

    ours = []
    # What goes into a layer is what came out of the one before, pooling and ReLU included.
    for layer in (network.conv2, network.dense1, network.dropout):
        layer.register_forward_pre_hook(lambda _, inputs: ours.append(inputs[0]))
    logits = network(images)
    pooled, flat, hidden = ours
    pooled = pooled.permute(0, 2, 3, 1)  # to height, width, channel
    ours = [pooled, flat.reshape(-1, 8, 8, 64), flat, hidden, logits]
    theirs = [*theirs, reference(keras_images)]
    assert_close([one.detach() for one in ours], [other.detach() for other in theirs], 1e-12)


def test_the_loss_with_penalty_and_every_gradient_equal_those_of_keras_to_1e_12(float64):
    reference, network = same_start(torch.float64)
    images, labels, keras_images, one_hot = next(image_batches(torch.float64, 1))
    theirs = reference.compute_loss(keras_images, keras.ops.convert_to_tensor(one_hot), reference(keras_images))
    theirs.backward()
    ours = F.cross_entropy(network(images), labels) + l2_penalty(network, 1e-3)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradients = [variable.value.grad for variable in reference.trainable_variables]
    assert_close(in_keras_order([p.grad for p in network.parameters()]), gradients, 1e-12)


def our_steps(network, dtype, count):
    """Take `count` steps as train.py does; returns the losses."""
    optimizer = Adam(parameter_groups(network, 1e-3), lr=rounded(1e-3, dtype))
    losses = []
    for images, labels, _, _ in image_batches(dtype, count):
        loss = F.cross_entropy(network(images), labels)
        losses.append((loss + l2_penalty(network, 1e-3)).item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def keras_steps(reference, dtype, count):
    """Take `count` steps from the same batches in Keras; returns the losses."""
    losses = []
    for _, _, images, labels in image_batches(dtype, count):
        reference.reset_metrics()
        losses.append(reference.train_on_batch(images, labels)[0])
    return losses


def test_fifty_steps_in_float64_give_the_weights_of_keras_to_1e_11(float64):
    reference, network = same_start(torch.float64)
    losses, expected = our_steps(network, torch.float64, 50), keras_steps(reference, torch.float64, 50)
    assert losses[-1] < 0.7 * losses[0]  # something was learnt
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert_close(to_keras_weights(network), reference.get_weights(), 1e-11)


def test_fifty_steps_in_float32_follow_keras_as_far_as_rounding_lets_them():
    reference, network = same_start(torch.float32)
    start = to_keras_weights(network)
    losses, expected = our_steps(network, torch.float32, 50), keras_steps(reference, torch.float32, 50)
    # Five steps differ by rounding only: measured 4e-7.
    np.testing.assert_allclose(losses[:5], expected[:5], rtol=1e-5)

    # Then training multiplies it: a gradient near zero that changes its sign moves its weight by a whole step of 1e-3.
    # Measured from eight starts: after 50 steps two float32 runs, or one and float64, are 0.05 to 17 % of the way
    # travelled apart (root mean square over all weights); ours and Keras's 1 to 15 %.
    def distance(one, other):
        return np.sqrt(np.mean(np.concatenate([(a - b).ravel() ** 2 for a, b in zip(one, other, strict=True)])))

    theirs = reference.get_weights()
    assert distance(to_keras_weights(network), theirs) < 0.3 * distance(theirs, start)


@pytest.fixture(scope="module")
def start_file(tmp_path_factory):
    """The file that both sides start from."""
    path = tmp_path_factory.mktemp("start") / "weights.npz"
    np.savez(path, *glorot_uniform(np.random.RandomState(0), SHAPE))
    return path


def data_file(path, train_images):
    """Write images of the stand-in, every second pixel of each, to `path`, and return it."""
    arrays = stand_in()
    np.savez(
        path,
        x_train=arrays.x_train[:train_images, ::2, ::2],
        y_train=arrays.y_train[:train_images],
        x_test=arrays.x_test[:100, ::2, ::2],
        y_test=arrays.y_test[:100],
    )
    return path


def left_behind(out):
    """The history, metrics and best weights in a run's directory."""
    with (out / "history.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with np.load(out / "best_weights.npz") as file:
        weights = list(file.values())
    return header, np.array(rows, float), json.loads((out / "metrics.json").read_text()), weights


def run_both(tmp_path, *flags):
    """Run the reference and train.py with the same flags; returns what each one leaves behind."""
    found = []
    for name, main in (("keras", keras_notebook.main), ("torch", train.main)):
        assert main([*map(str, flags), "--out", str(tmp_path / name)]) == 0
        found.append(left_behind(tmp_path / name))
    return found


@pytest.mark.parametrize(
    ("images", "flags", "story"),
    [
        (150, ["--lr", "0.006", "--patience", "2", "--lr-patience", "1", "--epochs", "20"], (12, 10, [8, 11, 12])),
        (100, ["--lr", "0.002", "--epochs", "3"], (3, 1, [])),
        # Steps too small to change an output: val_loss is the same to the bit in each epoch.
        (100, ["--lr", "1e-30", "--min-lr", "0", "--patience", "3", "--lr-patience", "2"], (4, 1, [3])),
    ],
    ids=["early stopping after three cuts", "out of epochs, the last one not the best", "ties in val_loss"],
)
def test_whole_runs_in_float64_equal_those_of_keras_in_every_figure_to_1e_9(
    images, flags, story, float64, start_file, tmp_path
):
    fixed = ["--no-shuffle", "--dropout", "0", "--dtype", "float64", "--init-weights", start_file]
    data = ["--data", data_file(tmp_path / "data.npz", images)]
    theirs, ours = run_both(tmp_path, *data, *fixed, *flags)

    assert ours[0] == theirs[0] == ["epoch", "accuracy", "learning_rate", "loss", "val_accuracy", "val_loss"]
    assert ours[1].shape == theirs[1].shape
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9)
    for _, _, metrics, _ in (theirs, ours):
        cuts = [cut["epoch"] for cut in metrics["learning_rate_cuts"]]
        assert (metrics["epochs"], metrics["best_epoch"], cuts) == story
    same = ("seed", "initial_weights", "parameters", "stopped", "learning_rate_cuts", "learning_rate_after_epoch")
    assert {name: ours[2][name] for name in same} == {name: theirs[2][name] for name in same}
    for name in ("test_loss", "test_accuracy"):
        assert ours[2][name] == pytest.approx(theirs[2][name], rel=1e-9)
    assert_close(ours[3], theirs[3], 1e-9)
    if "1e-30" in flags:
        assert len(set(ours[1][:, -1])) == 1


@pytest.mark.parametrize(
    ("images", "both", "ours_only"),
    [
        (250, ["--epochs", 9, "--lr", 0.004, "--patience", 3, "--lr-patience", 1], []),
        (90, ["--epochs", 2, "--model", "improved"], ["--augment"]),
    ],
    ids=["baseline, with cuts", "improved, augmented"],
)
def test_a_keras_run_with_the_draws_of_train_py_equals_ours_to_1e_9(
    images, both, ours_only, float64, start_file, tmp_path
):
    file, out = tmp_path / "draws.npz", {side: tmp_path / side for side in ("keras", "torch")}
    both = [*both, "--data", data_file(tmp_path / "data.npz", images), "--dtype", "float64", "--seed", 3]
    assert draws.main([*map(str, (file, *both, *ours_only))]) == 0
    start = [] if "improved" in both else ["--init-weights", start_file]  # not Keras's own, so that the rate is cut
    in_keras([*map(str, (*both, *start, "--draws", file, "--out", out["keras"]))])
    ours_only = [*ours_only, "--init-weights", out["keras"] / "initial_weights.npz", "--out", out["torch"]]
    assert train.main([*map(str, (*both, *ours_only))]) == 0

    theirs, ours = left_behind(out["keras"]), left_behind(out["torch"])
    assert ours[1].shape == theirs[1].shape
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9)
    assert_close(ours[3], theirs[3], 1e-9)  # moving averages among them
    for name in ("best_epoch", "stopped", "learning_rate_after_epoch", "test_accuracy"):
        assert ours[2][name] == theirs[2][name]
    flags = [json.loads((path / "config.json").read_text())["flags"] for path in out.values()]
    assert flags[0].items() >= {name: flags[1][name] for name in ("augment", "shift", "no_mirror")}.items()
    assert "--lr-patience" not in both or ours[2]["learning_rate_cuts"]
    assert ours[2]["test_loss"] == pytest.approx(theirs[2]["test_loss"], rel=1e-9)


def in_keras(arguments):
    """Run the reference on TensorFlow if it is there, else on torch with TensorFlow's rules."""
    if importlib.util.find_spec("tensorflow") is None:
        assert keras_notebook.main(arguments) == 0
        return
    command = [sys.executable, ROOT / "reference" / "keras_notebook.py", *arguments]
    subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "tensorflow"}, check=True)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax")
def test_keras_on_jax_computes_in_float64_and_differs_from_tensorflow_only_in_its_constants(start_file, tmp_path):
    common = ["--data", data_file(tmp_path / "data.npz", 250), "--dtype", "float64", "--no-shuffle", "--dropout", 0]
    common += ["--epochs", 2, "--init-weights", start_file]
    command = [sys.executable, ROOT / "reference" / "keras_notebook.py", *map(str, common), "--out", tmp_path / "keras"]
    subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, check=True)
    # Use Python floats as they are, which Keras rounds to float32 on TensorFlow only.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "np", types.SimpleNamespace(float32=float))
        patch.setattr(model, "_in_keras", float)
        assert train.main([*map(str, common), "--out", str(tmp_path / "torch")]) == 0
    theirs, ours = left_behind(tmp_path / "keras"), left_behind(tmp_path / "torch")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12)
    assert_close(ours[3], theirs[3], 1e-11)


def test_the_torch_backend_clips_probabilities_so_that_a_loss_stays_between_1e_7_and_16(float64):
    logits = torch.zeros(3, 10, dtype=torch.float64)
    logits[0, 1] = 30.0  # sure, and wrong
    logits[1, 0] = 30.0  # sure, and right
    logits[2, 1] = 10.0  # wrong, but not as sure
    labels = torch.zeros(3, dtype=torch.long)
    one_hot = keras.utils.to_categorical(labels, 10)
    # TensorFlow, and this port, have no such limits.
    clipped = keras.losses.categorical_crossentropy(one_hot, logits.softmax(1))
    ours = F.cross_entropy(logits, labels, reduction="none")
    unclipped = keras.losses.categorical_crossentropy(one_hot, logits, from_logits=True)
    np.testing.assert_allclose(clipped[:2], [-np.log(1e-7), -np.log1p(-1e-7)], rtol=1e-7)  # 16.118 and 1e-7
    np.testing.assert_allclose(ours[:2], [30.0, 9 * np.exp(-30.0)], rtol=1e-2)  # 8e-13, from 1 + 8e-13
    np.testing.assert_allclose(clipped[2], ours[2], rtol=1e-12)
    np.testing.assert_allclose(ours, unclipped, rtol=1e-12)


def test_with_dropout_and_shuffling_both_sides_start_alike_and_log_the_same_fields(start_file, tmp_path):
    data = ["--data", data_file(tmp_path / "data.npz", 100)]
    theirs, ours = run_both(tmp_path, *data, "--init-weights", start_file, "--epochs", 2, "--seed", 5)
    assert ours[0] == theirs[0]
    assert ours[1].shape == theirs[1].shape == (2, 6)
    assert not np.array_equal(ours[1], theirs[1])  # masks and order are each library's own
    assert ours[1][:, 2].tolist() == theirs[1][:, 2].tolist()  # the float32 learning rate
    # Logged figures are float32 values on both sides.
    assert all(np.array_equal(history, history.astype(np.float32)) for history in (ours[1], theirs[1]))
    more = {"bits_changed", "final", "schedule", "test_accuracy_mirrored"}
    more |= {"test_per_class", "test_confusion", "best_epoch_logs"}
    assert ours[2].keys() - more == theirs[2].keys()  # Keras's runs cannot be resumed, nor do they have these options
    same = ("seed", "initial_weights", "parameters", "epochs", "stopped", "learning_rate_after_epoch")
    assert {name: ours[2][name] for name in same} == {name: theirs[2][name] for name in same}
    with np.load(start_file) as file:
        for name in ("torch", "keras"):
            with np.load(tmp_path / name / "initial_weights.npz") as written:
                assert list(written) == list(file)
                assert all(np.array_equal(written[key], file[key]) for key in file)


def test_the_reference_and_train_py_record_the_same_hash_of_the_same_data(npz, tmp_path):
    arguments = ["--data", str(npz), "--epochs", "1", "--out"]
    hashes = set()
    for name, main in (("keras", keras_notebook.main), ("torch", train.main)):
        assert main([*arguments, str(tmp_path / name)]) == 0
        hashes.add(json.loads((tmp_path / name / "config.json").read_text())["data_sha256"])
    assert len(hashes) == 1
    assert compare.main([str(tmp_path / "keras"), str(tmp_path / "torch"), "--out", str(tmp_path)]) == 0
    notes = json.loads((tmp_path / "comparison.json").read_text())["notes"]
    assert notes == [
        f"All are in {tmp_path}.",
        "Settings that differ: keras: model keras notebook; torch: model baseline.",
    ]


def test_a_note_says_what_keras_computes_in_float32_on_this_backend_despite_float64(npz, tmp_path, capsys):
    arguments = ["--data", str(npz), "--epochs", "1", "--dtype", "float64"]
    try:
        assert keras_notebook.main([*arguments, "--out", str(tmp_path / "keras")]) == 0
    finally:
        notebook.set_precision("float32")
    assert (
        "note: on this backend Keras computes dense layers and reported metrics in float32" in capsys.readouterr().err
    )
    _, rows, _, weights = left_behind(tmp_path / "keras")
    assert weights[0].dtype == np.float64
    losses = rows[:, [3, 5]]
    assert np.array_equal(losses, losses.astype(np.float32))


def test_keras_does_not_multiply_in_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    notebook.set_precision("float32")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_keras_run_that_diverges_writes_no_metrics(npz, tmp_path, capsys):
    out = tmp_path / "keras"
    assert keras_notebook.main(["--data", str(npz), "--epochs", "2", "--lr", "1e30", "--out", str(out)]) == 1
    assert "training diverged: a loss is not finite" in capsys.readouterr().err
    assert not (out / "metrics.json").exists()


def test_train_py_reads_the_options_of_a_keras_run_but_does_not_resume_it(npz, tmp_path, capsys):
    keras_run = str(tmp_path / "keras")
    flags = ["--data", str(npz), "--epochs", "1"]
    assert keras_notebook.main([*flags, "--dropout", "0.25", "--out", keras_run]) == 0
    taken = options.parse(["--config", f"{keras_run}/config.json"]).checked()
    assert (taken.dropout, taken.epochs, taken.data, taken.augment) == (0.25, 1, str(npz), False)
    config = json.loads((tmp_path / "keras/config.json").read_text())
    assert config["flags"]["augment"] is False  # else the second network's default would be taken
    config["flags"]["data"] = None  # Keras's own CIFAR-10
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert options.parse(["--config", f"{tmp_path}/config.json"]).checked().data == options.DEFAULT
    capsys.readouterr()
    assert train.main([*flags, "--dropout", "0.25", "--out", keras_run, "--resume"]) == 2
    assert "config.json: not written by train.py; pass another --out" in capsys.readouterr().err


def test_a_second_run_of_keras_in_one_directory_is_refused(npz, tmp_path, capsys):
    begin = functools.partial(keras_notebook.main, ["--data", str(npz), "--epochs", "1", "--out", str(tmp_path)])
    first = DirectoryLock(tmp_path)
    first.claim()
    assert begin() == 2
    assert f"--out {tmp_path}: in use by process {os.getpid()} on " in capsys.readouterr().err
    first.release()
    assert begin() == 0
    refuse_in_use(tmp_path)
    assert begin() == 2
    assert "already holds a run" in capsys.readouterr().err
    again = ["--data", str(npz), "--out", str(tmp_path), "--resume"]
    assert keras_notebook.main([*again, "--epochs", "1"]) == 0
    assert keras_notebook.main([*again, "--epochs", "2", "--seed", "3"]) == 2
    assert "the run there had --epochs 1, --seed 0; pass another --out" in capsys.readouterr().err


def test_a_finished_keras_run_is_not_reused_for_different_data_weights_or_draws(npz, arrays, tmp_path, capsys):
    own, out = tmp_path / "own.npz", tmp_path / "run"
    np.savez(own, **arrays)
    again = ["--data", str(own), "--epochs", "1", "--out", str(out), "--resume"]
    start = ["--init-weights", str(out / "initial_weights.npz")]
    assert keras_notebook.main(again) == 0
    assert keras_notebook.main([*again, *start]) == 0
    np.savez(out / "other.npz", *(array + 1 for array in np.load(out / "initial_weights.npz").values()))
    for flags, fault in (
        (["--init-weights", str(out / "other.npz")], "other initial weights"),
        (["--draws", "draws.npz"], "--draws None"),
        (["--data", str(npz)], None),  # the same under another name
    ):
        assert keras_notebook.main([*again, *flags]) == (2 if fault else 0)
        assert fault is None or f"the run there had {fault}; pass another" in capsys.readouterr().err
    np.savez(own, **arrays | {"x_test": arrays["x_test"][::-1]})
    assert keras_notebook.main(again) == 2
    assert "the run there had other images or labels; pass another --out" in capsys.readouterr().err
    own.unlink()
    assert keras_notebook.main(again) == 0
    assert f"note: {own}: not a readable .npz file" in capsys.readouterr().err


def test_the_reference_says_in_one_line_that_keras_cannot_get_cifar_10(tmp_path, monkeypatch, capsys):
    def fails():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fails)
    assert keras_notebook.main(["--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Keras has no CIFAR-10 (URL fetch failure); pass --data FILE.npz")


@pytest.mark.parametrize("kept", [None, "history.csv"])
def test_the_reference_leaves_files_that_it_did_not_write_alone(kept, finished, npz, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    for path in out.iterdir():
        if kept not in (None, path.name):
            path.unlink()
    shutil.copy(npz, out / "mine.npz")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    command = ["--data", str(out / "mine.npz"), "--epochs", "1", "--out", str(out), "--resume"]
    assert keras_notebook.main(command) == 2
    assert "already holds a run; pass another --out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before | {".lock": b""}


def test_a_full_disk_ends_a_keras_run_with_one_line(npz, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert keras_notebook.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device; fix that, delete" in line
    refuse_in_use(tmp_path / "run")


def test_keras_gets_the_same_test_figures_from_the_best_weights_of_a_run(start_file, tmp_path):
    data = data_file(tmp_path / "data.npz", 100)
    assert train.main(["--data", str(data), "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    reference = notebook.build_model(SHAPE)
    notebook.compile_model(reference)
    with np.load(tmp_path / "run" / "best_weights.npz") as file:
        reference.set_weights(list(file.values()))
    _, _, images, labels = notebook.prepare(*notebook.load_data(data))
    loss, accuracy = reference.evaluate(images, labels, verbose=0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert accuracy == metrics["test_accuracy"]
    assert loss == pytest.approx(metrics["test_loss"], rel=1e-6)  # float32: another order of summation


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data", "missing.npz", "missing.npz"),
        ("--data", "weights.npz", "no array x_train"),
        ("--init-weights", "data.npz", "weights"),
        ("--init-weights", "notes.txt", "notes.txt: not a readable .npz"),
        ("--out", "taken", "--out taken: already holds a run"),
        ("--epochs", "0", "argument --epochs: '0' is not a whole number of at least 1"),
        ("--dropout", "2", "argument --dropout: '2' is not a number of at least 0 and below 1"),
        ("--dropout", "1", "argument --dropout"),
        ("--lr", "-1", "argument --lr"),
        ("--lr", "nan", "argument --lr"),
        ("--min-lr", "nan", "argument --min-lr"),
        ("--patience", "-1", "argument --patience"),
        ("--seed", "4294967296", "argument --seed"),
        ("--init-weights", "", "argument --init-weights: invalid path value: ''"),
        ("--draws", "", "argument --draws"),
        ("--out", "a\nb", "argument --out: invalid path value: 'a\\nb'"),
        ("--data", "negative.npz", "negative.npz: labels from -1 on; they must be whole numbers from 0"),
    ],
)
def test_the_reference_refuses_bad_input_in_one_line(flag, value, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data_file("data.npz", 100)
    np.savez("weights.npz", np.zeros(3))
    with np.load("data.npz") as file:
        np.savez("negative.npz", **{name: array - (name == "y_train") for name, array in file.items()})
    (tmp_path / "notes.txt").write_text("no arrays")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").touch()
    flags = {"--data": "data.npz", "--epochs": "1", "--out": "new"} | {flag: value}
    assert keras_notebook.main([part for pair in flags.items() for part in pair]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("keras_notebook.py: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_draws_overwrite_only_earlier_draws(npz, tmp_path, capsys):
    taken, small = tmp_path / "mine.npz", ["--data", str(npz), "--epochs", "1"]
    taken.write_bytes(npz.read_bytes())
    assert draws.main([str(taken), *small]) == 2
    assert f"{taken}: exists, and is not a file of draws; pass another name" in capsys.readouterr().err
    assert taken.read_bytes() == npz.read_bytes()
    assert draws.main([str(taken / "draws.npz"), *small]) == 2
    for _ in range(2):
        assert draws.main([str(tmp_path / "draws.npz"), *small]) == 0


def test_the_reference_refuses_draws_of_another_run_in_one_line(npz, tmp_path, capsys):
    small = ["--data", str(npz), "--epochs", "2"]
    file = str(tmp_path / "draws.npz")
    assert draws.main([file, *small]) == 0
    for flags, message in (
        (["--batch-size", "32"], "--batch-size 64, not 32"),
        (["--dropout", "0.25"], "--dropout 0.5, not 0.25"),
        (["--epochs", "3"], "--epochs 2, not 3"),
        (["--model", "improved"], "units 128, not 192"),
        (["--seed", "1"], "--seed 0, not 1"),
        (["--no-shuffle"], "--no-shuffle False, not True"),
        (["--data", str(data_file(tmp_path / "data.npz", 100))], "training images 256, not 80"),
        (["--data", str(data_file(tmp_path / "other.npz", 320))], "data with the hash "),
        (["--draws", str(npz)], "no draws of this version in it"),
    ):
        out = tmp_path / "new"
        assert keras_notebook.main([*small, "--draws", file, *flags, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_draws_are_refused_with_compile_which_makes_its_own():
    with pytest.raises(options.BadInput, match="--compile draws its own masks"):
        draws.draws(options.Options(compile=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draws", "--seed", "1"], "draws: first comes the .npz file to write, then the flags of train.py"),
        (["draws.npz", "--epochs", "0"], "argument --epochs: '0' is not a whole number"),
        (["DATA/draws.npz"], "File exists"),
    ],
)
def test_draws_py_refuses_bad_input_in_one_line(arguments, message, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert draws.main([argument.replace("DATA", str(npz)) for argument in arguments]) > 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_reference_shows_its_help_without_loading_keras_and_says_in_one_line_if_keras_is_missing(capsys):
    command = [sys.executable, "-X", "importtime", ROOT / "reference" / "keras_notebook.py"]
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    shown = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "--draws FILE.npz" in shown.stdout
    assert not re.search(r"\| +(keras|torch|tensorflow)$", shown.stderr, re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "keras", None)
        assert keras_notebook.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras_notebook.py: error: Keras cannot be used (")
    assert error.endswith("); pip install keras torch, or set KERAS_BACKEND to tensorflow, torch, jax\n")


def test_the_reference_shuffles_anew_each_epoch_and_repeats_its_orders_with_the_same_seed(monkeypatch, tmp_path):
    seen = []

    class Recorder(keras.layers.Layer):
        def call(self, images, training=False):
            if training:
                seen.extend(images[:, 0, 0, 0].tolist())
            return images

    def recording(image_shape, classes, dropout):
        layers = [keras.Input(image_shape), Recorder(), keras.layers.Flatten(), keras.layers.Dense(classes, "softmax")]
        return keras.Sequential(layers)

    monkeypatch.setitem(notebook.MODELS, "baseline", recording)
    images = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 32, 32, 3))
    data = tmp_path / "data.npz"
    np.savez(data, x_train=images, y_train=np.arange(100) % 10, x_test=images, y_test=np.arange(100) % 10)

    def orders(name, *flags):
        seen.clear()
        out = ["--out", str(tmp_path / name)]
        assert keras_notebook.main(["--data", str(data), "--epochs", "2", *out, *flags]) == 0
        order = (np.array(seen) * 255).round().astype(int).tolist()
        return order[:80], order[80:]

    first, second = orders("a", "--seed", "1")
    assert sorted(first) == sorted(second) == list(range(80))
    assert first != second != list(range(80)) != first
    assert orders("b", "--seed", "1") == (first, second)
    assert orders("c", "--seed", "2") != (first, second)
    assert orders("d", "--no-shuffle") == (list(range(80)), list(range(80)))


# --- other images and classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "improved"])
@pytest.mark.parametrize(
    ("shape", "classes"), [((28, 28, 1), 10), ((32, 32, 3), 100), ((64, 48, 3), 3), ((29, 18, 2), 4)], ids=str
)
def test_the_network_equals_that_of_keras_for_any_image_shape_and_number_of_classes(name, shape, classes, float64):
    torch.manual_seed(0)
    reference = notebook.MODELS[name](shape, classes, 0.0)
    notebook.compile_model(reference)
    network = build_model(name, shape, classes, dropout=0.0).double()
    from_keras_weights(network, reference.get_weights())
    assert all(map(np.array_equal, to_keras_weights(network), reference.get_weights()))
    images, labels = torch.rand(8, *shape, dtype=torch.float64), torch.arange(8) % classes
    ours = images.permute(0, 3, 1, 2)
    assert_close([network.eval()(ours).softmax(1).detach()], [reference(images.numpy()).detach()], 1e-12)

    optimizer = Adam(parameter_groups(network.train(), 1e-3), lr=rounded(1e-3, torch.float64))
    for _ in range(3):
        F.cross_entropy(network(ours), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        reference.train_on_batch(images.numpy(), keras.utils.to_categorical(labels, classes))
    # Adam's first steps are as long for a gradient near 0, which is half rounding, as for any other.
    assert_close(to_keras_weights(network), reference.get_weights(), 1e-5)


def test_both_sides_give_a_file_of_grey_images_the_same_hash(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    np.savez(tmp_path / "grey.npz", x_train=images, y_train=np.arange(6)[:, None], x_test=images, y_test=np.arange(6))
    theirs = notebook.load_data(str(tmp_path / "grey.npz"))
    assert notebook.fingerprint(theirs) == fingerprint(sources.choose(str(tmp_path / "grey.npz")).load())
    assert theirs[4] == 6


# --- the second experiment's network ----------------------------------------------------------------------------------


def test_five_steps_of_the_improved_network_equal_those_of_keras_including_running_statistics(float64):
    torch.manual_seed(0)
    network = build_model("improved", dropout=0.0).double()
    reference = notebook.build_improved(dropout=0.0)
    notebook.compile_model(reference)
    weights = to_keras_weights(network)
    random = np.random.RandomState(0)
    weights = [
        w + 0.1 * random.random_sample(w.shape) * (w.ndim == 1) for w in weights
    ]  # gamma, beta, statistics, bias
    from_keras_weights(network, weights)
    reference.set_weights(weights)
    assert all(map(np.array_equal, to_keras_weights(network), reference.get_weights()))

    images, labels, keras_images, one_hot = next(image_batches(torch.float64, 1))
    assert_close([network.eval()(images).softmax(1).detach()], [reference(keras_images).detach()], 1e-12)

    # Gradients of the loss with its penalty, through the statistics of the batch.
    twin = keras.models.clone_model(reference)
    twin.set_weights(weights)
    notebook.compile_model(twin)
    theirs = twin.compute_loss(keras_images, keras.ops.convert_to_tensor(one_hot), twin(keras_images, training=True))
    theirs.backward()
    ours = F.cross_entropy(network.train()(images), labels) + l2_penalty(network, 1e-3)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradients = [variable.value.grad for variable in twin.trainable_variables]
    transposed = [p.grad.permute(2, 3, 1, 0) if p.ndim == 4 else p.grad.T for p in network.parameters() if p.ndim > 1]
    assert_close(transposed, [gradient for gradient in gradients if gradient.ndim > 1], 1e-11)
    flat = [p.grad for p in network.parameters() if p.ndim == 1]
    assert_close(flat, [gradient for gradient in gradients if gradient.ndim == 1], 1e-11)

    from_keras_weights(network, weights)  # the forward pass has moved the statistics
    np.testing.assert_allclose(
        our_steps(network, torch.float64, 5), keras_steps(reference, torch.float64, 5), rtol=1e-10
    )
    assert_close(to_keras_weights(network), reference.get_weights(), 1e-9)


def test_batchnorm_keeps_the_moving_averages_of_keras_even_of_a_single_value(float64):
    reference, ours = keras.layers.BatchNormalization(), BatchNorm2d(3).double()
    random = np.random.default_rng(0)
    for shape in ((4, 5, 5, 3), (2, 1, 1, 3), (1, 1, 1, 3)):
        images = random.standard_normal(shape)
        theirs = reference(images, training=True)
        found = ours(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found.detach(), theirs.detach(), rtol=0, atol=1e-14)
    for mine, name in (("running_mean", "moving_mean"), ("running_var", "moving_variance")):
        np.testing.assert_allclose(getattr(ours, mine), getattr(reference, name).value.detach(), rtol=0, atol=1e-15)


def test_labels_are_smoothed_as_keras_smooths_them():
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(20) % 10
    batch = Batch(logits, labels, len(labels))
    _, ours = Objective(l2=0.0, label_smoothing=0.1)(lambda images: images, batch)
    smoothing = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    one_hot = np.eye(10)[labels]
    assert ours.item() / 20 == pytest.approx(float(smoothing(one_hot, logits.numpy())), rel=1e-6)  # Keras's is float32


def test_the_reference_refuses_channels_first_and_resets_the_epsilon_of_keras(npz, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(keras.config, "image_data_format", lambda: "channels_first")
        assert keras_notebook.main(arguments) == 2
        assert "Keras is set to channels_first" in capsys.readouterr().err
    keras.config.set_epsilon(1e-3)
    assert keras_notebook.main(arguments) == 0
    assert keras.config.epsilon() == 1e-7
