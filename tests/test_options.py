"""Every option of train.py does what its help says: a table with one entry for each, checked against the help itself.

Where an option changes the arithmetic, the expected result is an epoch written by hand with torch's own parts.
"""

import contextlib
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

import options
import train
from model import build_model, from_keras_weights, l2_penalty, to_keras_weights
from reference import keras_notebook
from running import machine

# One step on all 32 training images, without penalty, so that neither their order nor a random draw matters.
STEP = "--batch-size 32 --epochs 1 --dropout 0 --l2 0 --dtype float64"
ROUNDING = 1e-9  # float64 sums over images in another order; a step moves a weight by 1e-6 and more
STILL = "--lr 1e-30 --min-lr 0 --dropout 0"  # no weight moves, so only the callbacks' flags determine what happens when


class Done:
    """A finished run of train.py: what it printed, its files."""

    def __init__(self, out, stdout, stderr):
        self.out, self.stdout, self.stderr = out, stdout, stderr

    def json(self, name):
        return json.loads((self.out / f"{name}.json").read_text())

    @property
    def metrics(self):
        return self.json("metrics")

    @property
    def flags(self):
        return self.json("config")["flags"]

    @property
    def history(self):
        return np.genfromtxt(self.out / "history.csv", delimiter=",", names=True, ndmin=1)

    def weights(self, name="best"):
        with np.load(self.out / f"{name}_weights.npz") as file:
            return list(file.values())

    def network(self, name="best"):
        """The run's network with its `best` or `initial` weights, dropout off."""
        network = build_model(self.flags["model"], SHAPE, dropout=0.0).to(getattr(torch, self.flags["dtype"]))
        from_keras_weights(network, self.weights(name))
        return network


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def few(arrays):
    """The first images of the small data set: 32 for training, 8 for validation, 20 for the test."""
    return {name: array[: 40 if "train" in name else 20] for name, array in arrays.items()}


@pytest.fixture(scope="module")
def trained(few, folder):
    """Train with some flags on these images, once for each set of flags; returns the finished run."""
    kept = {}
    np.savez(folder / "few.npz", **few)

    def run(flags, source=folder / "few.npz"):
        key = flags, source
        if key not in kept:
            out = folder / str(len(kept))
            stdout, stderr = io.StringIO(), Terminal()
            arguments = ["--data", str(source), "--out", str(out), *flags.split()]
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                assert train.main(arguments) == 0, stderr.getvalue()
            kept[key] = Done(out, stdout.getvalue(), stderr.getvalue())
        return kept[key]

    return run


@contextlib.contextmanager
def watched(look):
    """Within the block, `look(layer, output)` is called with each layer's output."""
    handle = register_module_forward_hook(lambda layer, _, output: look(layer, output))
    try:
        yield
    finally:
        handle.remove()


def parts(few, dtype=torch.float64):
    """Training, validation and test images (N, 3, 16, 16) with labels, as they are split by default."""
    cuts = (("train", slice(32)), ("train", slice(32, None)), ("test", slice(None)))
    for name, rows in cuts:
        images = torch.from_numpy(few[f"x_{name}"][rows]).permute(0, 3, 1, 2).to(dtype) / 255
        yield images, torch.from_numpy(few[f"y_{name}"][rows])


def by_hand(run, few, batch_size=32, lr=1e-3, l2=0.0, label_smoothing=0.0):
    """The weights after an epoch of `run` without shuffling, by torch's SGD and the definitions of the losses."""
    network = run.network("initial").train()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, nesterov=True)
    images, labels = next(parts(few))
    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch), truth, label_smoothing=label_smoothing) + l2_penalty(network, l2)
        loss.backward()
        optimizer.step()
    return to_keras_weights(network)


def assert_weights(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING)


def from_hand(flags, **expected):
    """A check: an epoch of SGD with `flags` ends with the weights that `by_hand(**expected)` computes."""

    def check(trained, few, **_):
        run = trained(f"{STEP} --optimizer sgd --no-shuffle {flags}")
        assert_weights(run.weights(), by_hand(run, few, **expected))

    return check


def recipe(trained, **_):
    # The flags that README says it stands for.
    written_out = (
        "--model whitened --optimizer muon --lr 0.08 --l2 0 --dropout 0 --label-smoothing 0.1 "
        "--shift 2 --schedule onecycle --patience 10 --batch-size 256 --epochs 1"
    )
    if machine.why_not_bfloat16(torch.device("cpu")) is None:
        written_out += " --mixed-precision"
    run, same = trained("--recipe fast --epochs 1"), trained(written_out)
    own = {"recipe": "fast", "out": str(run.out)}
    assert run.flags == same.flags | own
    assert (run.out / "best_weights.npz").read_bytes() == (same.out / "best_weights.npz").read_bytes()
    assert "recipe fast, whitened" in run.stdout


def model(trained, **_):
    parameters = {"baseline": 151_882, "improved": 647_386, "whitened": 656_482}
    found = {name: trained(f"--epochs 1 --model {name}") for name in parameters}
    assert {run.metrics["model"]: run.metrics["parameters"] for run in found.values()} == parameters
    assert {name: sum(p.numel() for p in run.network().parameters()) for name, run in found.items()} == parameters


def epochs(trained, **_):
    assert len(trained("--epochs 1").history) == 1
    assert len(trained("--epochs 2").history) == 2


def batch_size(trained, few, **_):
    from_hand("--batch-size 16", batch_size=16)(trained, few)
    assert "Epoch 1/1 - 2/2 - " in trained(f"{STEP} --optimizer sgd --no-shuffle --batch-size 16").stdout


def learning_rate(trained, few, **_):
    from_hand("--lr 0.004", lr=0.004)(trained, few)
    assert trained("--epochs 1 --lr 0.004").history["learning_rate"] == np.float32(0.004)


def optimizer(trained, few, **_):
    from_hand("")(trained, few)
    run = trained(f"{STEP} --optimizer adam")
    moved = [np.abs(after - before).max() for after, before in zip(run.weights(), run.weights("initial"), strict=True)]
    assert moved == pytest.approx([1e-3] * 8, rel=1e-3)  # Adam's first step, except for epsilon
    # muon sets a kernel to a fixed norm, and its first step then changes that by up to a thousandth.
    muon = trained(f"{STEP} --optimizer muon").weights()
    assert np.linalg.norm(muon[0]) == pytest.approx(32**0.5, rel=1e-3)
    # adamw differs from adam only in its decay.
    assert_weights(run.weights(), trained(f"{STEP} --optimizer adamw --weight-decay 0").weights())


def weight_decay(trained, **_):
    for name, flags, decay in (
        ("adamw", "", 0.004),  # Keras's default
        ("adamw", "--model improved --no-augment --weight-decay 0.5", 0.5),
        ("sgd", "", 0.0),
        ("sgd", "--weight-decay 0.5", 0.5),
    ):
        run = trained(f"{STEP} --optimizer {name} {flags}")
        plain = trained(f"{STEP} --optimizer {name} {flags} --weight-decay 0")
        assert any(weights.ndim == 1 and weights.any() for weights in run.weights("initial")) == ("improved" in flags)
        initial = run.weights("initial")
        for number, (found, without, before) in enumerate(zip(run.weights(), plain.weights(), initial, strict=True)):
            is_average = "improved" in flags and number % 10 in (3, 4, 8, 9) and found.ndim == 1
            # float64: the roundings of two weights below 1. Keras rounds the decay to float32.
            expected = without if is_average else without - 1e-3 * float(np.float32(decay)) * before
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def lookahead(trained, **_):
    """An epoch has five steps, four of 7 images and one of 4, so at its end all weights go halfway back."""
    flags = "--batch-size 7 --dropout 0 --l2 0 --dtype float64 --no-shuffle --optimizer sgd --epochs"
    plain, halfway = trained(f"{flags} 1"), trained(f"{flags} 1 --lookahead")
    middle = [(first + last) / 2 for first, last in zip(plain.weights("initial"), plain.weights(), strict=True)]
    assert_weights(halfway.weights(), middle)
    assert plain.history["loss"] == halfway.history["loss"]  # the steps are the same
    again = trained(f"{flags} 2 --lookahead")
    assert again.history["loss"][1] != trained(f"{flags} 2").history["loss"][1]


def label_smoothing(trained, few, **_):
    from_hand("--label-smoothing 0.2", label_smoothing=0.2)(trained, few)
    run = trained(f"{STEP} --optimizer sgd --no-shuffle --label-smoothing 0.2")
    (row,) = run.history
    losses = (row["loss"], row["val_loss"], run.metrics["test_loss"])
    # The training figures are from before the only step, the others from after it.
    for name, loss, (images, labels) in zip(("initial", "best", "best"), losses, parts(few), strict=True):
        with torch.inference_mode():
            expected = F.cross_entropy(run.network(name)(images), labels, label_smoothing=0.2)
        assert loss == pytest.approx(expected.item(), rel=ROUNDING)


def augment(trained, **_):
    without, mirrored = trained(f"{STEP} --no-augment"), trained(f"{STEP} --augment")
    assert trained(STEP).metrics["test_accuracy_mirrored"] is without.metrics["test_accuracy_mirrored"] is None
    assert mirrored.metrics["test_accuracy_mirrored"] is not None
    assert mirrored.history["loss"] != without.history["loss"]
    assert trained(STEP).history["loss"] == without.history["loss"]
    on, off = (trained(f"{STEP} --model improved {flag}") for flag in ("", "--no-augment"))
    assert on.history["loss"] != off.history["loss"]


def shift(trained, few, folder, **_):
    # Images that equal their own mirror images, so that the shift is the only visible effect of augmentation.
    x_train = np.concatenate([few["x_train"][:, :, :8], few["x_train"][:, :, 7::-1]], axis=2)
    assert np.array_equal(x_train, x_train[:, :, ::-1])
    symmetric = folder / "symmetric.npz"
    np.savez(symmetric, **few | {"x_train": x_train})
    flags = ("--no-augment", "--augment --shift 0", "--augment --shift 1", "--augment --shift 4", "--augment")
    none, zero, one, four, default = (trained(f"{STEP} {given}", symmetric).history["loss"].item() for given in flags)
    # Not bit for bit: the same pixels arrive by another code path, with another order of summation.
    assert zero == pytest.approx(none, rel=ROUNDING)
    assert four == default
    assert len({none, one, four}) == 3


def no_mirror(trained, **_):
    flags = ("--no-augment", "--augment --shift 0", "--augment --shift 0 --no-mirror")
    none, mirrored, still = (trained(f"{STEP} {given}") for given in flags)
    assert still.history["loss"] == pytest.approx(none.history["loss"], rel=ROUNDING)
    assert mirrored.history["loss"] != pytest.approx(none.history["loss"], rel=ROUNDING)
    assert still.metrics["test_accuracy_mirrored"] is None
    assert "Training images are shifted by up to 0 pixels, at random." in still.stdout
    assert "Training images are mirrored or not, and shifted by up to 0 pixels, at random." in mirrored.stdout


def l2(trained, few, **_):
    from_hand("--l2 0.05", l2=0.05)(trained, few)
    run, without = (trained(f"{STEP} --optimizer sgd --no-shuffle {flags}") for flags in ("--l2 0.05", ""))
    penalty = l2_penalty(run.network("initial"), 0.05).item()
    assert run.history["loss"] - without.history["loss"] == pytest.approx(penalty, rel=ROUNDING)


def dropout(trained, few, **_):
    images, labels = next(parts(few))
    for name in ("baseline", "improved"):
        losses = []
        for part in (0.0, 0.3, 0.5):
            run = trained(f"{STEP} --model {name} --no-augment --dropout {part}")
            losses.append(run.history["loss"].item())
        # Without dropout, training uses the network as it is, and BatchNorm uses the batch's statistics.
        with torch.no_grad():
            expected = F.cross_entropy(run.network("initial").train()(images), labels).item()
        assert losses[0] == pytest.approx(expected, rel=ROUNDING)
        assert len({*losses}) == 3


def no_shuffle(trained, few, **_):
    batch_size(trained, few)
    shuffled = trained(f"{STEP} --optimizer sgd --batch-size 16")
    in_order = trained(f"{STEP} --optimizer sgd --no-shuffle --batch-size 16")
    assert shuffled.history["loss"] != in_order.history["loss"]


def seed(trained, **_):
    zero, default, other = (trained(f"--epochs 1{flags}") for flags in (" --seed 0", "", " --seed 1"))
    for name in ("initial_weights.npz", "history.csv"):
        same, another = ((run.out / name).read_bytes() for run in (zero, other))
        assert (default.out / name).read_bytes() == same != another


def device(trained, **_):
    seen = set()
    with watched(lambda layer, output: seen.add(output.device.type)):
        trained("--epochs 1 --device cpu")
    assert seen == {"cpu"}


def threads(trained, **_):
    before, seen = torch.get_num_threads(), set()
    try:
        with watched(lambda layer, output: seen.add(torch.get_num_threads())):
            run = trained(f"--epochs 1 --threads {before + 1}")
    finally:
        torch.set_num_threads(before)
    assert seen == {before + 1}
    assert f", {before + 1} threads, float32\n" in run.stdout


def dtype(trained, **_):
    for flags, expected in (("", torch.float32), (" --dtype float64", torch.float64)):
        seen = set()
        with watched(lambda layer, output, seen=seen: seen.add(output.dtype)):
            run = trained(f"--epochs 1 --seed 2{flags}")
        assert seen == {expected}
        assert {torch.from_numpy(array).dtype for array in run.weights()} == {expected}


def mixed_precision(trained, **_):
    figures = []
    for flags, expected in (
        ("", {torch.float32}),
        ("--no-mixed-precision", {torch.float32}),
        ("--mixed-precision", {torch.bfloat16}),
    ):
        seen = set()

        def look(layer, output, seen=seen):
            if isinstance(layer, torch.nn.Conv2d):
                seen.add(output.dtype)

        with watched(look):
            run = trained(f"--epochs 1 --seed 3 {flags}")
        assert seen == expected
        assert run.weights()[0].dtype == np.float32
        figures.append(run.history["loss"].item())
    assert figures[0] == figures[1] != figures[2]


def tf32(trained, **_):
    for flags in ("", "--tf32"):
        seen = set()

        def look(layer, output, seen=seen):
            seen.update((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

        with watched(look):
            trained(f"--epochs 1 --seed 4 {flags}")
        assert seen == {bool(flags)}


def determinism():
    return torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def deterministic(trained, monkeypatch, **_):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        for flags in ("--deterministic", ""):
            seen = set()
            with watched(lambda layer, output, seen=seen: seen.add(determinism())):
                trained(f"--epochs 1 --seed 5 {flags}")
            assert seen == {(bool(flags), ":4096:8" if flags else None)}  # cuBLAS requires it
    finally:
        torch.use_deterministic_algorithms(False)


def compiled(trained, monkeypatch, **_):
    # Compiling takes half a minute and a compiler; test_cuda.py does it where there is one.
    given = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: given.append(network) or network)
    monkeypatch.setattr(shutil, "which", lambda name, *rest, **options: f"/usr/bin/{name}")
    usual = trained("--epochs 1")
    assert given == []
    run = trained("--epochs 1 --compile")
    assert len(given) == 1
    assert (run.out / "history.csv").read_bytes() == (usual.out / "history.csv").read_bytes()


def patience(trained, **_):
    metrics = trained(f"{STILL} --epochs 4 --patience 2").metrics
    assert (metrics["epochs"], metrics["stopped"]) == (3, "early stopping")
    metrics = trained(f"{STILL} --epochs 3 --patience 2").metrics  # it stops in the last epoch
    assert (metrics["epochs"], metrics["stopped"]) == (3, "early stopping")
    metrics = trained(f"{STILL} --epochs 4 --lr-patience 1").metrics
    assert (metrics["epochs"], metrics["stopped"]) == (4, "all epochs used")


def schedule(trained, **_):
    rates = {
        "plateau": [1e-3, 1e-3, 1e-3],
        "cosine": [1e-3, (1e-3 + 1e-6) / 2, 1e-6],  # halfway at half of the steps, down to --min-lr
        # 8 steps, 9 rates: up from 1/25 in half a step, down to 4e-6 of the rate in the others.
        "onecycle": [4e-5, np.interp(4, [0.5, 8], [1e-3, 4e-9]), 4e-9],
    }
    for name, expected in rates.items():
        run = trained(f"--epochs 2 --batch-size 8 --schedule {name}")
        # The history has the rate that an epoch began with, metrics.json the one that it ended with.
        found = [run.history["learning_rate"][0], *run.metrics["learning_rate_after_epoch"]]
        assert found == pytest.approx(expected, rel=1e-6, abs=0)  # float32's 0.001
        assert run.history["learning_rate"].tolist() == found[:-1]
        assert run.metrics["learning_rate_cuts"] == []


def rates(flags, *expected):
    """A check: with `flags`, and no weight moving, these are the epochs' rates and the one after the last epoch."""

    def check(trained, **_):
        run = trained(f"{STILL} --epochs 4 {flags}")
        found = [*run.history["learning_rate"], run.metrics["learning_rate_after_epoch"][-1]]
        assert found == pytest.approx(expected, rel=1e-6, abs=0)  # float32's; approx's own abs is 1e-12
        cuts = [epoch for epoch in range(1, 5) if found[epoch] < found[epoch - 1]]
        assert [cut["epoch"] for cut in run.metrics["learning_rate_cuts"]] == cuts

    return check


def data_path(trained, few, folder, **_):
    other = folder / "other.npz"
    np.savez(other, **few | {"x_train": few["x_train"][:30], "y_train": few["y_train"][:30]})
    run = trained("--epochs 1", other)
    assert f"{other}: 24 training, 6 validation, 20 test images of 16x16x3, 10 classes\n" in run.stdout


def image_size(trained, few, folder, **_):
    for name, size in (("a", (20, 10)), ("b", (12, 12))):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", size, (number * 20, 0, 0)).save(folder / "pictures" / name / f"{number}.png")
    run = trained("--epochs 1 --image-size 8x16", folder / "pictures")
    assert " images of 8x16x3, 2 classes: " in run.stdout
    assert run.flags["image_size"] == "8x16"


def validation_split(trained, **_):
    assert ": 20 training, 20 validation, 20 test images of " in trained("--epochs 1 --validation-split 0.5").stdout
    assert ": 32 training, 8 validation, 20 test images of " in trained("--epochs 1").stdout


def init_weights(trained, **_):
    given = trained("--epochs 1 --seed 1").out / "initial_weights.npz"
    run = trained(f"--epochs 1 --init-weights {given}")
    assert (run.out / "initial_weights.npz").read_bytes() == given.read_bytes()
    assert (run.out / "history.csv").read_bytes() != (trained("--epochs 1").out / "history.csv").read_bytes()


def out(trained, folder, **_):
    trained(f"--epochs 1 --seed 6 --out {folder}/<name>-<seed>")
    assert (folder / "baseline-6" / "metrics.json").exists()


def resume(trained, folder, **_):
    first = shutil.copytree(trained("--epochs 1").out, folder / "resumed")
    run = trained(f"--epochs 2 --resume --out {first}")
    assert "Resuming after epoch 1.\n" in run.stdout
    assert (first / "history.csv").read_bytes() == (trained("--epochs 2").out / "history.csv").read_bytes()


def quiet(trained, **_):
    assert "Epoch 1/1:" in trained("--epochs 1").stderr
    run = trained("--epochs 1 --quiet")
    assert run.stderr == ""
    assert "Epoch 1/1 - 1/1 - " in run.stdout


def as_json(trained, **_):
    run = trained("--epochs 1 --json")
    assert json.loads(run.stdout.splitlines()[-1]) == run.metrics
    assert "{" not in trained("--epochs 1").stdout


def tensorboard(trained, monkeypatch, **_):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained("--epochs 2 --tensorboard")
    events = EventAccumulator(str(run.out)).Reload()
    for name in {*run.history.dtype.names} - {"epoch"}:
        points = [(point.step, point.value) for point in events.Scalars(name)]
        assert points == [(epoch, np.float32(value)) for epoch, value in enumerate(run.history[name])]
    assert not list(trained("--epochs 2").out.glob("events*"))


def config(trained, folder, monkeypatch, **_):
    like = trained("--epochs 1 --seed 8 --lr 0.004")
    monkeypatch.chdir(folder)
    assert train.main(["--config", str(like.out / "config.json"), "--quiet"]) == 0
    again = folder / "runs" / "baseline-few-seed8"
    assert (again / "history.csv").read_bytes() == (like.out / "history.csv").read_bytes()
    before = {file: file.read_bytes() for file in like.out.iterdir()}
    run = trained(f"--config {like.out} --lr 0.001")
    assert run.flags == like.flags | {"lr": 0.001, "out": str(run.out)}
    assert {file: file.read_bytes() for file in like.out.iterdir()} == before


# If no weight moves, the first epoch is the best one, and the rate is cut --lr-patience epochs later.
OPTIONS = {
    "--recipe": recipe,
    "--model": model,
    "--epochs": epochs,
    "--batch-size": batch_size,
    "--lr": learning_rate,
    "--optimizer": optimizer,
    "--weight-decay": weight_decay,
    "--lookahead": lookahead,
    "--label-smoothing": label_smoothing,
    "--augment": augment,
    "--shift": shift,
    "--no-mirror": no_mirror,
    "--l2": l2,
    "--dropout": dropout,
    "--no-shuffle": no_shuffle,
    "--seed": seed,
    "--device": device,
    "--threads": threads,
    "--dtype": dtype,
    "--mixed-precision": mixed_precision,
    "--tf32": tf32,
    "--deterministic": deterministic,
    "--compile": compiled,
    "--patience": patience,
    "--schedule": schedule,
    "--lr-patience": rates("--lr-patience 1", 1e-30, 1e-30, 5e-31, 2.5e-31, 1.25e-31),
    "--lr-factor": rates("--lr-factor 0.1", 1e-30, 1e-30, 1e-30, 1e-30, 1e-31),
    "--min-lr": rates("--lr-patience 1 --min-lr 3e-31", 1e-30, 1e-30, 5e-31, 3e-31, 3e-31),
    "--data": data_path,
    "--image-size": image_size,
    "--validation-split": validation_split,
    "--init-weights": init_weights,
    "--out": out,
    "--resume": resume,
    "--quiet": quiet,
    "--json": as_json,
    "--tensorboard": tensorboard,
    "--config": config,
}


OF_PRECISION = ("--recipe", "--mixed-precision")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=name, marks=[pytest.mark.precision] * (name in OF_PRECISION))
        for name, check in OPTIONS.items()
    ],
)
def test_each_option_does_what_its_help_says(check, trained, few, folder, monkeypatch):
    check(trained=trained, few=few, folder=folder, monkeypatch=monkeypatch)


def test_the_table_has_every_option_that_the_help_lists(capsys):
    assert train.main(["--help"]) == 0
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted({*listed} - {"--help"}) == sorted(OPTIONS)


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["--data=~/cifar10.npz", "--init-weights", "~/start.npz"]
    found = options.parse([*paths, "--out=~/runs/<name>-<seed>"]).checked()
    assert found.data == "/home/me/cifar10.npz"
    assert [str(path) for path in (found.init_weights, found.out)] == ["/home/me/start.npz", "/home/me/runs/baseline-0"]
    assert str(options.parse(["--out=~root"]).checked().out) == os.path.expanduser("~root") != "~root"
    assert (
        str(options.parse(["--out=~nobody-of-that-name"]).checked().out) == "~nobody-of-that-name"
    )  # unchanged, as in a shell
    reference = keras_notebook.parse_arguments([*paths, "--out=~/runs/<seed>"])
    assert reference.data == found.data
    assert [reference.init_weights, str(reference.out)] == ["/home/me/start.npz", "/home/me/runs/0"]
