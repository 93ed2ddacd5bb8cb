"""The command, run as a user runs it."""

import contextlib
import io
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import termios
import types

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SHAPE, stand_in
from matplotlib.figure import Figure
from PIL import Image

import callbacks
import data
import metrics
import options
import plots
import report
import sources
import train
from cli.errors import Diverged
from metrics import Objective, Tally
from model import Network, build_model, l2_penalty, to_keras_weights
from optim import Adam
from running import machine
from sources.source import Arrays

OBJECTIVE = Objective(l2=1e-3)
HEADER = "epoch,accuracy,learning_rate,loss,val_accuracy,val_loss"


def rows(out):
    return np.genfromtxt(out / "history.csv", delimiter=",", names=True, ndmin=1)


@pytest.fixture(scope="module")
def whole_run(cli, arrays, tmp_path_factory):
    """A whole run with the notebook's settings: the finished process, its directory and its data.

    A quarter of the validation images have a wrong label, so that learning makes val_loss rise after some epochs.
    """
    folder, labels = tmp_path_factory.mktemp("whole"), arrays["y_train"].copy()
    labels[256::4] = (labels[256::4] + 5) % 10
    np.savez(folder / "other.npz", **arrays | {"y_train": labels})
    process = cli("--epochs", 50, "--batch-size", 64, "--data", folder / "other.npz", "--out", folder / "run")
    return process, folder / "run", str(folder / "other.npz")


def test_a_run_leaves_every_file_and_exits_with_0(whole_run):
    process, out, _ = whole_run
    assert process.returncode == 0, process.stderr
    assert sorted(file.name for file in out.iterdir()) == [
        ".lock",
        "best.pt",
        "best_weights.npz",
        "checkpoint.pt",
        "config.json",
        "confusion.png",
        "curves.png",
        "history.csv",
        "initial_weights.npz",
        "metrics.json",
    ]
    assert Image.open(out / "curves.png").size == (1400, 400)


@pytest.mark.slow
def test_the_stand_in_gives_the_callbacks_something_to_do(tmp_path):
    out = tmp_path / "run"
    assert train.main(["--data", "synthetic", "--epochs", "50", "--batch-size", "64", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.8
    assert max(rows(out)["accuracy"][0], rows(out)["val_accuracy"][0]) < 0.95
    assert metrics["learning_rate_cuts"]
    assert metrics["stopped"] == "early stopping"


def test_a_run_on_the_stand_in_says_so_wherever_its_figures_appear(tmp_path, monkeypatch, capsys):
    titles, draw = [], plots.curves
    monkeypatch.setattr(plots, "curves", lambda *args: titles.append(args[-1]) or draw(*args))
    few = Arrays(*(array[:20] for array in stand_in()[:4]), stand_in().class_names)
    monkeypatch.setattr(sources.stand_in, "synthetic", lambda: few)  # the whole data set takes seconds
    out = tmp_path / "run"
    assert train.main(["--data", "synthetic", "--epochs", "1", "--out", str(out)]) == 0
    (title,) = titles
    assert "NOT CIFAR-10" in title
    assert "NOT CIFAR-10" in capsys.readouterr().out
    for file in ("config.json", "metrics.json"):
        assert "NOT CIFAR-10" in json.loads((out / file).read_text())["data"]


@pytest.mark.parametrize(("l2", "name"), [("0.001", "loss with L2 penalty"), ("0", "loss")])
def test_the_picture_names_the_l2_penalty_only_where_there_is_one(l2, name, npz, tmp_path, monkeypatch):
    names, draw = [], plots.curves
    monkeypatch.setattr(plots, "curves", lambda *args: names.append(args[-2]) or draw(*args))
    assert train.main(["--data", str(npz), "--l2", l2, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert names == [name]


def test_history_metrics_and_terminal_tell_the_same_story(whole_run):
    process, out, _ = whole_run
    history, metrics = rows(out), json.loads((out / "metrics.json").read_text())
    epochs, best = metrics["epochs"], metrics["best_epoch"]
    assert history["epoch"].tolist() == list(range(epochs))
    assert history["learning_rate"][0] == 0.0010000000474974513  # float32's 0.001, as a Keras model has it
    for name in history.dtype.names:
        assert np.array_equal(history[name].astype(np.float32), history[name])
    assert history["val_loss"].argmin() == best - 1
    assert (epochs, best, metrics["stopped"]) == (10, 5, "early stopping")  # after five without a gain
    assert [cut["epoch"] for cut in metrics["learning_rate_cuts"]] == [8]  # after three
    # The list is read after the cut, the column before it.
    assert metrics["learning_rate_after_epoch"][:-1] == history["learning_rate"][1:].tolist()
    assert len(metrics["seconds_per_epoch"]) == epochs
    # The median, because a pause of the process lengthens one epoch.
    assert metrics["images_per_second"] == pytest.approx(256 / statistics.median(metrics["seconds_per_epoch"]))
    assert metrics["parameters"] == 151_882
    lines = process.stdout.splitlines()
    assert lines[-7] == f"Test accuracy: {metrics['test_accuracy']:.4f}"
    for cut in metrics["learning_rate_cuts"]:
        rate = cut["learning_rate"]
        assert f"Epoch {cut['epoch']}: ReduceLROnPlateau reducing learning rate to {rate}." in lines
    assert f"Epoch {epochs}: early stopping" in lines
    assert f"Restoring model weights from the end of the best epoch: {best}." in lines
    assert (
        len([line for line in lines if re.match(r"Epoch \d+/50 - 4/4 - \d+s - \d+m?s/step - accuracy: ", line)])
        == epochs
    )


def test_the_best_weights_are_the_ones_evaluated_and_saved(whole_run):
    _, out, source = whole_run
    metrics = json.loads((out / "metrics.json").read_text())
    network = build_model(image_shape=SHAPE)
    network.load_state_dict(torch.load(out / "best.pt", weights_only=True))
    arrays = sources.choose(source).load()
    _, validation = data.split_validation(arrays.x_train, arrays.y_train, 0.2)
    for part, loss, accuracy in (
        (data.as_split(arrays.x_test, arrays.y_test), metrics["test_loss"], metrics["test_accuracy"]),
        (validation, *(rows(out)[metrics["best_epoch"] - 1][name] for name in ("val_loss", "val_accuracy"))),
    ):
        with torch.inference_mode():
            logits = network.eval()(part.images.permute(0, 3, 1, 2) / 255)
            expected = F.cross_entropy(logits, part.labels) + l2_penalty(network, 1e-3)
        assert loss == pytest.approx(expected.item(), rel=1e-5)  # float32, another order of summation
        assert accuracy == pytest.approx((logits.argmax(1) == part.labels).float().mean().item(), abs=1e-6)


def test_the_configuration_records_every_flag_and_what_determines_the_bits(whole_run):
    _, out, source = whole_run
    config = json.loads((out / "config.json").read_text())
    assert config["flags"] == {
        "model": "baseline",
        "recipe": None,
        "optimizer": "adam",
        "weight_decay": 0.0,
        "lookahead": False,
        "label_smoothing": 0.0,
        "augment": False,
        "shift": 4,
        "no_mirror": False,
        "schedule": "plateau",
        "mixed_precision": False,
        "tf32": False,
        "deterministic": False,
        "compile": False,
        "epochs": 50,
        "batch_size": 64,
        "lr": 1e-3,
        "l2": 1e-3,
        "dropout": 0.5,
        "validation_split": 0.2,
        "patience": 5,
        "lr_factor": 0.5,
        "lr_patience": 3,
        "min_lr": 1e-6,
        "seed": 0,
        "no_shuffle": False,
        "dtype": "float32",
        "init_weights": None,
        "device": "cpu" if not torch.cuda.is_available() else "cuda",
        "data": source,
        "image_size": None,
        "out": str(out),
        "quiet": False,
        "threads": None,
        "resume": False,
        "json": False,
        "tensorboard": False,
    }
    assert config["versions"]["torch"] == torch.__version__
    assert config["threads"] == torch.get_num_threads()
    assert config["device_name"]


def test_the_recorded_commit_does_not_depend_on_the_current_folder_and_is_none_without_git(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    here = machine.describe(cpu)
    monkeypatch.chdir(tmp_path)
    assert machine.describe(cpu) == here
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.describe(cpu) == here | {"git_commit": None}
    assert {*here["versions"]} == {"python", "torch", "torchvision", "numpy", "matplotlib", "tqdm"}
    assert here["versions"]["python"] == platform.python_version()


def test_the_configuration_names_the_commit_of_the_code(finished):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = head.stdout.strip() if head.returncode == 0 else None  # unpacked without git
    found = json.loads((finished / "config.json").read_text())["git_commit"]
    assert (found and found.split("-")[0]) == expected


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch-size", "32"), ("--lr", "0.002"), ("--l2", "0.1"), ("--dropout", "0.1"), ("--validation-split", "0.3")],
)
def test_each_training_flag_reaches_the_training(flag, value, npz, tmp_path):
    arguments = ["--data", str(npz), "--epochs", "2", "--out"]
    assert train.main([*arguments, str(tmp_path / "default")]) == 0
    assert train.main([*arguments, str(tmp_path / "changed"), flag, value]) == 0
    default, changed = rows(tmp_path / "default"), rows(tmp_path / "changed")
    assert default["loss"][1] != changed["loss"][1]
    if flag != "--l2":
        return
    # Through the gradient, not only in the reported loss: a larger penalty makes the weights smaller.
    weights = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("default", "changed")]
    assert weights[1]["conv1.weight"].norm() < weights[0]["conv1.weight"].norm()


def test_each_callback_flag_reaches_its_callback(npz, tmp_path):
    # At so small a rate no weight moves, so only the flags determine what happens when.
    out = tmp_path / "run"
    flags = {"--lr": "1e-30", "--min-lr": "3e-31", "--lr-factor": "0.4", "--lr-patience": "2", "--patience": "6"}
    arguments = [word for pair in flags.items() for word in pair]
    assert train.main(["--data", str(npz), "--epochs", "20", "--dropout", "0", "--out", str(out), *arguments]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["epochs"], metrics["best_epoch"], metrics["stopped"]) == (7, 1, "early stopping")
    assert [cut["epoch"] for cut in metrics["learning_rate_cuts"]] == [3, 5]
    found = [cut["learning_rate"] for cut in metrics["learning_rate_cuts"]]
    assert found == pytest.approx([4e-31, 3e-31], rel=1e-6, abs=0)  # float32's; approx's own abs is 1e-12
    assert found[1] == float(np.float32(3e-31))  # the floor is a float32 too, as in Keras


@pytest.fixture(scope="module")
def told(npz, quick_pictures, tmp_path_factory):
    """A run whose best epoch is not its last, with cuts of the rate: its lines, its directory and its drawn figures."""
    out, stdout, drawn = tmp_path_factory.mktemp("told") / "run", io.StringIO(), []
    # No weight moves; dropout is off, but images are augmented.
    arguments = ["--data", str(npz), "--lr", "1e-30", "--min-lr", "0", "--lr-patience", "1", "--dropout", "0"]
    arguments += ["--augment", "--seed", "7", "--epochs", "3", "--out", str(out)]
    with contextlib.redirect_stdout(stdout), pytest.MonkeyPatch.context() as patch:
        for name, draw in quick_pictures.items():
            patch.setattr(plots, name, draw)
        patch.setattr(Figure, "savefig", lambda figure, *_, **options: drawn.append(figure))
        assert train.main(arguments) == 0
    return stdout.getvalue().splitlines(), out, drawn


def test_a_run_prints_its_network_data_augmentation_and_directory(told, npz):
    lines, out, _ = told
    config = json.loads((out / "config.json").read_text())
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    machine = f"{config['device_name']}, {threads}, float32"
    first = lines.index(f"baseline, 151,882 parameters, seed 7, {machine}")
    assert lines[first + 1] == f"data from {npz}: 256 training, 64 validation, 100 test images of 16x16x3, 10 classes"
    assert lines[first + 2] == "Training images are mirrored or not, and shifted by up to 4 pixels, at random."
    assert lines[first + 3] == f"Run directory: {out}"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["model"], metrics["seed"], metrics["schedule"]) == ("baseline", 7, "plateau")
    mirrored = f"{metrics['test_accuracy_mirrored']:.4f}"
    assert f"Test accuracy, logits averaged with the mirror image's: {mirrored}" in lines


def test_the_pictures_of_a_run_show_its_metrics_and_name_it(told, npz):
    _, out, (curves, confusion) = told
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["best_epoch"], [cut["epoch"] for cut in metrics["learning_rate_cuts"]]) == (1, [2, 3])
    (rate,) = curves.axes[2].patches
    assert [*rate.get_data().values][1:] == metrics["learning_rate_after_epoch"][:-1]
    assert [line.get_xdata()[0] for line in curves.axes[2].get_lines()] == [1, 2, 3]  # the best epoch, the cuts
    counts = {text.get_position(): text.get_text() for text in confusion.axes[0].texts}
    expected = metrics["test_confusion"]
    assert counts == {(across, down): str(expected[down][across]) for down in range(10) for across in range(10)}
    title = f"baseline, seed 7, {npz.name}: test accuracy {metrics['test_accuracy']:.4f}"
    assert [figure._suptitle.get_text() for figure in (curves, confusion)] == [title] * 2


def test_two_processes_with_the_same_seed_give_the_same_bits_and_another_seed_gives_others(start, little, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        log = tmp_path / f"{name}.log"
        process = start(["--data", little, "--epochs", 2, "--seed", seed, "--out", tmp_path / name], log)
        process.join()
        assert process.exitcode == 0, log.read_text()
    for file in ("history.csv", "best.pt"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_running_out_of_epochs_restores_the_best_weights_too(arrays, tmp_path, capsys):
    # The validation images have wrong labels, so that learning makes the last epoch worse than an earlier one.
    labels = arrays["y_train"].copy()
    labels[256:] = (labels[256:] + 5) % 10
    out, npz = tmp_path / "run", tmp_path / "other.npz"
    np.savez(npz, **arrays | {"y_train": labels})
    arguments = ["--data", str(npz), "--epochs", "4", "--lr", "0.006", "--augment", "--out", str(out)]
    assert train.main(arguments) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stopped"] == "all epochs used"
    assert metrics["best_epoch"] < 4
    assert (
        f"Restoring model weights from the end of the best epoch: {metrics['best_epoch']}." in capsys.readouterr().out
    )
    # The test figures are the best weights', not the last epoch's.
    network, mirrored = build_model(image_shape=SHAPE).eval(), []
    part = data.as_split(*sources.choose(str(npz)).load()[2:4])
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    for weights in (saved["model"], torch.load(out / "best.pt", weights_only=True)):
        network.load_state_dict(weights)
        with torch.inference_mode():
            images = part.images.permute(0, 3, 1, 2) / 255
            logits = network(images)
            expected = F.cross_entropy(logits, part.labels) + l2_penalty(network, 1e-3)
            mirrored.append(((logits + network(images.flip(3))).argmax(1) == part.labels).double().mean().item())
    assert metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)  # float32, another order of summation
    assert metrics["test_accuracy_mirrored"] == pytest.approx(mirrored[1], abs=1e-6) != pytest.approx(mirrored[0])


def test_the_seconds_of_an_epoch_are_those_between_its_start_and_end(npz, tmp_path, monkeypatch):
    clock = itertools.count(step=2.5)
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    out = tmp_path / "run"
    assert train.main(["--data", str(npz), "--epochs", "2", "--quiet", "--out", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text())["seconds_per_epoch"] == [2.5, 2.5]


def test_each_epoch_has_its_own_random_draws_which_depend_only_on_seed_and_epoch():
    orders, masks, views = [], [], []
    for seed in (0, 0, 1):
        for epoch in range(3):
            order, view = data.draw(256, seed, epoch, augmentation=data.Augmentation(32, 32))
            orders.append(order.tolist())
            views.append([*view.rows.flatten().tolist(), *view.columns.flatten().tolist()])
            masks.append(F.dropout(torch.ones(100)).tolist())
        torch.rand(17)  # what happened to the generator elsewhere does not matter
    assert all(sorted(order) == list(range(256)) for order in orders)
    for draws in (orders, masks, views):
        assert draws[:3] == draws[3:6]
        assert len({tuple(draw) for draw in draws}) == 6  # three epochs of either seed, all different


def test_a_seed_gives_the_same_draws_in_every_version():
    data.seed_torch(0, 1)
    assert torch.initial_seed() == 5836529245451711556
    # The only process, or the first of several, continues to draw where the order ended.
    data.draw(256, seed=3, epoch=5)
    mask = torch.rand(9)
    data.seed_torch(3, 6)
    torch.randperm(256)
    assert torch.equal(torch.rand(9), mask)
    order, views = data.draw(256, 3, 5, augmentation=data.Augmentation(32, 32))
    assert order[:6].tolist() == [122, 209, 170, 139, 35, 159]
    corners = [(rows[0], columns[0]) for rows, columns in zip(views.rows.tolist(), views.columns.tolist(), strict=True)]
    assert corners[:6] == [(1, 29), (4, 2), (4, 4), (2, 28), (2, 30), (4, 31)]


def test_the_loop_draws_for_its_seed_epoch_and_process(npz, tmp_path, monkeypatch):
    seen, draw = [], data.draw
    monkeypatch.setattr(data, "draw", lambda *args: seen.append(args) or draw(*args))
    arguments = ["--data", str(npz), "--epochs", "2", "--seed", "7", "--out"]
    assert train.main([*arguments, str(tmp_path / "plain"), "--no-shuffle"]) == 0
    assert train.main([*arguments, str(tmp_path / "augmented"), "--augment", "--shift", "3"]) == 0
    views = data.Augmentation(16, 16, shift=3)
    assert seen == [
        (256, 7, 0, False, None, 0),
        (256, 7, 1, False, None, 0),
        (256, 7, 0, True, views, 0),
        (256, 7, 1, True, views, 0),
    ]


def test_training_figures_are_averages_over_images_whatever_the_batches(npz):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_train[:150], arrays.y_train[:150])
    torch.manual_seed(0)
    network = build_model(image_shape=SHAPE, dropout=0.0)
    with torch.inference_mode():
        logits = network(part.images.permute(0, 3, 1, 2) / 255)
        loss = F.cross_entropy(logits, part.labels) + l2_penalty(network, 1e-3)
    still = Adam(network.parameters(), lr=0.0)  # no weight changes, so batches of 64, 64 and 22 add up to the whole
    figures = train.train_epoch(network, data.batches(part, 64), OBJECTIVE, still)
    assert figures.loss == pytest.approx(loss.item(), rel=1e-5)  # float32, another order of summation
    assert figures.accuracy == pytest.approx((logits.argmax(1) == part.labels).double().mean().item(), abs=1e-7)
    again = train.evaluate(network, part, OBJECTIVE)
    assert figures.loss == pytest.approx(again.loss, rel=1e-5)
    assert figures.confusion == again.confusion


def test_losses_are_summed_in_float64_whatever_the_dtype_of_the_network():
    class Penalised(Network):
        def l2_weights(self):
            return [torch.ones(1)]

    tally = Tally(Penalised(), 0.5)
    tally.add(torch.zeros(1, 10), torch.tensor(2.0**24), torch.zeros(1, dtype=torch.long))
    assert tally.total().loss == 2.0**24 + 0.5  # not a float32


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_first_batch_with_a_non_finite_loss_is_named_however_often_the_loss_is_checked(every, monkeypatch):
    monkeypatch.setitem(metrics.CHECK_EVERY, "cpu", every)
    tally = Tally(build_model(), 0.0, "evaluation batch")

    def add_up():
        for loss in (1.0, float("inf"), 1.0, 1.0, float("nan"), 1.0):
            tally.add(torch.zeros(1, 10), torch.tensor(loss), torch.zeros(1, dtype=torch.long))
        tally.total()

    with pytest.raises(Diverged, match="in evaluation batch 2"):
        add_up()


def test_dropout_is_on_in_training_and_off_in_evaluation_whatever_came_before(npz):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_train, arrays.y_train)
    network = build_model(image_shape=SHAPE, dropout=0.5)
    still = Adam(network.parameters(), lr=0.0)
    trained, evaluated = set(), set()
    for _ in range(3):
        trained.add(train.train_epoch(network, data.batches(part, 64), OBJECTIVE, still).loss)
        evaluated.add(train.evaluate(network, part, OBJECTIVE).loss)
    assert len(trained) == 3  # different masks, different losses
    assert len(evaluated) == 1


def test_the_epoch_line_equals_that_of_keras_with_verbose_2(capsys, monkeypatch):
    logs = {"accuracy": 0.43212, "loss": 1.6, "val_accuracy": 0.5, "val_loss": 1.40005, "learning_rate": 1e-3}
    for seconds, logs["learning_rate"] in ((12.3, 0.0010000000474974513), (0.04, 5e-4), (2500.0, 1e-6)):
        bar = keras.utils.Progbar(625, verbose=2, stateful_metrics=list(logs))
        clock = bar._start + seconds
        monkeypatch.setattr("keras.src.utils.progbar.time.time", lambda clock=clock: clock)
        monkeypatch.setattr(bar, "_estimate_step_duration", lambda current, now, t=seconds: t / 625)
        bar.update(625, list(logs.items()), finalize=True)
        assert capsys.readouterr().out.strip() == report.keras_line(625, seconds, logs)
        monkeypatch.undo()


def test_a_terminal_shows_a_moving_progress_bar_unless_quiet_is_given(little, tmp_path):
    started, drawing = [], {"COLUMNS": "80", "TQDM_MININTERVAL": "0"}  # drawn after each step
    for quiet in (False, True):
        controller, terminal = os.openpty()
        termios.tcsetwinsize(terminal, (24, 100))  # tqdm draws nothing on a terminal without a size
        command = [sys.executable, ROOT / "train.py", "--data", little, "--epochs", "2", "--batch-size", "16"]
        command += ["--out", tmp_path / f"run{quiet}", "--threads", "1", *["--quiet"] * quiet]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=os.environ | drawing
        )
        os.close(terminal)
        started.append((quiet, controller, process))
    for quiet, controller, process in started:
        seen = b""
        try:
            while chunk := os.read(controller, 4096):
                seen += chunk
        except OSError:  # Linux's end of file on a terminal
            pass
        os.close(controller)
        out = process.stdout.read()
        assert process.wait() == 0
        for epoch in (b"1", b"2"):
            counts = re.findall(rb"Epoch " + epoch + rb"/2: [^\r]*? (\d+)/4 \[", seen)
            assert counts == ([] if quiet else [b"0", b"1", b"2", b"3", b"4"])
        assert len(re.findall(r"^Epoch \d/2 - 4/4 - ", out, re.MULTILINE)) == 2


def test_a_non_finite_loss_ends_the_run_with_advice(npz, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main(["--data", str(npz), "--lr", "1e9", "--epochs", "9", "--out", str(out), "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert "the loss is not finite in" in err
    assert "--lr" in err
    assert not (out / "metrics.json").exists()


def test_with_json_the_last_line_of_stdout_is_what_metrics_json_holds(npz, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(out), "--json"]) == 0
    *_, figures = capsys.readouterr().out.splitlines()
    assert json.loads(figures) == json.loads((out / "metrics.json").read_text())


def test_a_second_run_into_the_same_directory_is_refused_and_changes_nothing(npz, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--data", str(npz), "--epochs", "1", "--out", str(out)]
    assert train.main(arguments) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()
    assert train.main(arguments) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "already holds a run" in err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_default_directory_names_model_data_and_seed(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", str(npz), "--epochs", "1", "--seed", "7"]) == 0
    assert (tmp_path / "runs" / "baseline-small-seed7" / "metrics.json").exists()


def test_fewer_images_than_a_batch_and_one_image_for_validation_are_legal(arrays, tmp_path):
    np.savez(tmp_path / "few.npz", **{name: array[:10] for name, array in arrays.items()})
    arguments = ["--data", str(tmp_path / "few.npz"), "--validation-split", "0.1", "--epochs", "2"]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0


BAD_FLAGS = {
    "--epochs": ["0", "-1", "1.5", "many", ""],
    "--batch-size": ["0", "-64", "64.0", "1000001"],
    "--lr": ["0", "-0.001", "nan", "inf", "fast", "1e-60"],
    "--l2": ["-0.001", "nan"],
    "--dropout": ["1", "-0.1", "50%"],
    "--validation-split": ["0", "1", "20"],
    "--patience": ["-1", "1.5"],
    "--lr-factor": ["0", "1", "2"],
    "--lr-patience": ["-1", "x"],
    "--min-lr": ["-1e-6", "nan"],
    "--seed": ["-1", "0.5"],
    "--threads": ["0", "257", "two"],
    "--dtype": ["float16", "int"],
    "--model": ["resnet"],
    "--recipe": ["slow"],
    "--optimizer": ["rmsprop"],
    "--schedule": ["step"],
    "--shift": ["-1", "32 --augment", "1.5"],
    "--label-smoothing": ["1", "-0.1"],
    "--weight-decay": ["-1", "nan", "0.25"],  # the last one without --optimizer
    "--device": ["gpu", "cuda:x", "tpu", "cuda:99"],
    "--image-size": ["None", "0", "32x"],
    "--data": ["none.npz", "notes.txt", "dtaa", "no/such/folder"],
    "--out": ["notes.txt"],
    "--resume": ["none", "notes.txt", "."],
    "--config": ["none.json", "notes.txt", "."],
}


@pytest.mark.parametrize(("size", "images"), [(8, 256), (32, 256), (64, 64), (100, 26), (1000, 1)])
def test_fewer_images_are_evaluated_at_once_if_they_are_large(size, images):
    split = data.Split(torch.zeros(2, size, size, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert train.evaluation_batch(split) == images


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in BAD_FLAGS.items() for value in values])
def test_a_bad_value_is_refused_in_one_line_that_names_it(flag, value, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert train.main(["--data", str(npz), f"{flag}={value}"]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert flag in printed.err
    assert value in printed.err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["--unknown"], ["stray"], ["--epochs"]])
def test_an_unknown_or_incomplete_argument_is_refused(arguments, capsys):
    assert train.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_auto_reports_that_it_uses_the_cpu_and_explicit_cuda_is_an_error(npz, tmp_path, capsys):
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("No CUDA device")]
    assert re.fullmatch(r"No CUDA device: training on the CPU \(.+\)\.", line)
    assert train.main(["--data", str(npz), "--device", "cuda", "--out", str(tmp_path / "other")]) == 2
    assert "'cuda' is not available" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


DEFAULTS = {
    "--recipe": "none",
    "--model": "baseline",
    "--optimizer": "adam",
    "--weight-decay": "0.004 for adamw as in Keras, 0 for sgd",
    "--lookahead": "off",
    "--label-smoothing": "0.0",
    "--augment,": "on, but off with baseline",
    "--shift": "4",
    "--no-mirror": "off",
    "--schedule": "plateau",
    "--mixed-precision,": "off; with --recipe fast, on where it is faster",
    "--tf32": "off",
    "--deterministic": "off",
    "--compile": "off",
    "--epochs": "50",
    "--batch-size": "64",
    "--lr": "0.001",
    "--l2": "0.001",
    "--dropout": "0.5",
    "--validation-split": "0.2",
    "--patience": "5",
    "--lr-factor": "0.5",
    "--lr-patience": "3",
    "--min-lr": "1e-06",
    "--no-shuffle": "off",
    "--seed": "0",
    "--device": "auto",
    "--threads": "torch's choice",
    "--dtype": "float32",
    "--init-weights": "drawn from the seed",
    "--image-size": "as they are",
    "--data": "data",
    "--out": "runs/<name><data>-seed<seed>",
    "--resume": "off",
    "--quiet": "off",
    "--json": "off",
    "--tensorboard": "off",
    "--config": "none",
}


def test_help_lists_every_flag_with_its_default(capsys):
    assert train.main(["--help"]) == 0
    _, *flags = re.split(r"\n +(?=--)", capsys.readouterr().out)
    shown = {text.split()[0]: re.search(r"\(default: ([^()]+)\)", " ".join(text.split()))[1] for text in flags}
    assert shown == DEFAULTS


@pytest.mark.slow
def test_an_epoch_on_real_images_passes_45_percent_validation_accuracy(cli, real_npz, tmp_path):
    out = tmp_path / "run"
    process = cli("--data", real_npz, "--epochs", 1, "--out", out)
    assert process.returncode == 0, process.stderr
    assert rows(out)["val_accuracy"].max() > 0.45  # Keras: 0.48 to 0.53
    assert json.loads((out / "metrics.json").read_text())["test_accuracy"] > 0.45


def test_a_run_started_from_its_own_initial_weights_is_the_same_run_bit_for_bit(npz, tmp_path):
    flags = ["--data", str(npz), "--epochs", "2", "--seed", "3", "--out"]
    assert train.main([*flags, str(tmp_path / "a")]) == 0
    again = ["--init-weights", str(tmp_path / "a" / "initial_weights.npz")]
    assert train.main([*flags, str(tmp_path / "b"), *again]) == 0
    for name in ("history.csv", "initial_weights.npz", "best_weights.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert train.main([*flags[:-2], "4", "--out", str(tmp_path / "c"), *again]) == 0
    assert (tmp_path / "a" / "initial_weights.npz").read_bytes() == (
        tmp_path / "c" / "initial_weights.npz"
    ).read_bytes()
    assert (tmp_path / "a" / "history.csv").read_bytes() != (tmp_path / "c" / "history.csv").read_bytes()


def test_the_best_weights_for_keras_are_those_of_best_pt(whole_run):
    _, out, _ = whole_run
    network = build_model(image_shape=SHAPE)
    network.load_state_dict(torch.load(out / "best.pt", weights_only=True))
    with np.load(out / "best_weights.npz") as file:
        assert all(map(np.array_equal, file.values(), to_keras_weights(network)))


def test_a_float64_run_computes_and_logs_in_float64(npz, tmp_path):
    flags = ["--data", str(npz), "--epochs", "1", "--out"]
    assert train.main([*flags, str(tmp_path / "32")]) == 0
    assert train.main([*flags, str(tmp_path / "64"), "--dtype", "float64"]) == 0
    single, double = (rows(tmp_path / name)[0] for name in ("32", "64"))
    assert double["learning_rate"] == 0.001
    assert double["loss"] != np.float32(double["loss"])
    assert double["loss"] == pytest.approx(single["loss"], rel=1e-3)  # masks and order are the same, roundings not
    with np.load(tmp_path / "64" / "best_weights.npz") as file:
        assert {array.dtype for array in file.values()} == {np.dtype(np.float64)}
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("32", "64"))
    assert one["initial_weights"] == other["initial_weights"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "no such file"),
        ([np.zeros(3)], "1 arrays; this network has 8"),
        ([np.zeros((3, 3, 3, 32))] * 8, "array 1 (conv1.bias) has shape (3, 3, 3, 32); it must be (32,)"),
        ({"kernel": np.zeros(3)}, "no array 'arr_0'"),
        ([np.array([None])], "not a readable .npz"),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused_before_anything_is_written(
    weights, message, npz, tmp_path, capsys
):
    path = tmp_path / "w.npz"
    if isinstance(weights, dict):
        np.savez(path, **weights)
    elif weights:
        np.savez(path, *weights)
    out = tmp_path / "run"
    assert train.main(["--data", str(npz), "--init-weights", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"--init-weights {path}" in error
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_mixed_precision_in_float64_is_refused(npz, capsys):
    assert train.main(["--data", str(npz), "--mixed-precision", "--dtype", "float64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--mixed-precision does not go with --dtype float64" in line


def test_a_schedule_that_would_rise_to_its_minimum_rate_is_refused(npz, capsys):
    arguments = ["--data", str(npz), "--schedule", "cosine", "--lr", "1e-7"]
    assert train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--lr 1e-07 is below --min-lr 1e-06, to which cosine would rise" in line
    assert options.parse([*arguments, "--min-lr", "0"]).checked().lr == 1e-7
    assert options.parse(["--schedule", "onecycle", "--lr", "1e-7"]).checked().lr == 1e-7


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--schedule onecycle --min-lr 1e-4", "--min-lr 0.0001 has no effect with --schedule onecycle"),
        ("--schedule cosine --lr-patience 2", "--lr-patience 2 has no effect with --schedule cosine"),
        ("--recipe fast --lr-factor 0.1", "--lr-factor 0.1 has no effect with --schedule onecycle"),
        ("--shift 2", "--shift 2 has no effect with --no-augment"),
        ("--model improved --no-augment --no-mirror", "--no-mirror True has no effect with --no-augment"),
        ("--recipe fast --no-augment --shift 4", "has no effect with --no-augment; leave it at its default, 2"),
    ],
)
def test_an_option_that_has_no_effect_with_the_others_is_refused(words, line, npz, capsys):
    assert train.main(["--data", str(npz), *words.split()]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error


def test_an_option_that_has_no_effect_is_accepted_at_its_default():
    fast = options.parse(["--recipe", "fast", "--no-augment", "--min-lr", "1e-6"]).checked()
    assert (fast.shift, fast.augment) == (2, False)
    assert (
        options.parse(["--schedule", "cosine", "--min-lr", "1e-4", "--augment", "--shift", "2"]).checked().min_lr
        == 1e-4
    )


def test_a_rate_too_small_for_float32_is_accepted_with_float64():
    assert options.parse(["--lr", "1e-60", "--dtype", "float64"]).checked().lr == 1e-60


def test_early_stopping_waits_for_the_highest_rate_of_onecycle(npz, tmp_path):
    # No weight moves, so every epoch after the first is one without a gain.
    still = ["--lr", "1e-30", "--dropout", "0", "--patience", "1", "--epochs", "60"]
    arguments = ["--data", str(npz), *still, "--out", str(tmp_path / "run"), "--schedule", "onecycle"]
    assert train.main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["stopped"], metrics["epochs"], metrics["best_epoch"]) == ("early stopping", 3, 1)


def test_sorted_training_arrays_are_reported(arrays, tmp_path, capsys):
    order = np.argsort(arrays["y_train"], kind="stable")
    np.savez(tmp_path / "sorted.npz", **arrays | {name: arrays[name][order] for name in ("x_train", "y_train")})
    assert train.main(["--data", str(tmp_path / "sorted.npz"), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "but some validation images are" in line]
    assert "No training image is labelled class 8, class 9" in line
    assert "shuffle sorted arrays first" in line


def test_metrics_include_the_best_epochs_logs_so_that_nobody_selects_by_the_test_figures(whole_run):
    _, out, _ = whole_run
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["best_epoch"] < metrics["epochs"]
    best = rows(out)[metrics["best_epoch"] - 1]
    assert metrics["best_epoch_logs"] == {name: best[name] for name in best.dtype.names if name != "epoch"}


def test_a_recipe_sets_defaults_that_flags_override():
    for name, recipe in options.RECIPES.items():
        resolved = vars(options.parse(["--recipe", name]).checked())
        fixed = {flag: value for flag, value in recipe.defaults.items() if value is not None}
        assert {flag: resolved[flag] for flag in fixed} == fixed
        assert str(resolved["out"]) == f"runs/{name}-seed0"
        changed = vars(options.parse(["--lr", "0.125", "--recipe", name, "--model", "baseline"]).checked())
        assert (changed["lr"], changed["model"]) == (0.125, "baseline")
        # What a recipe sets is legal, and differs from the default.
        notebook = vars(options.parse([]).checked())
        assert all(notebook[flag] != value for flag, value in recipe.defaults.items())


def test_the_help_lists_each_recipe(capsys):
    assert train.main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"{name}: [\d.]+ % test accuracy", printed) for name in options.RECIPES)


def test_augmentation_is_on_for_improved_and_off_for_baseline_unless_a_flag_says_otherwise():
    for model, flags, expected in (
        ("improved", [], True),
        ("baseline", [], False),
        ("improved", ["--no-augment"], False),
        ("baseline", ["--augment"], True),
    ):
        assert options.parse(["--model", model, *flags]).checked().augment is expected


def test_only_training_images_are_augmented(npz, tmp_path, monkeypatch):
    seen, batches = [], data.batches

    def spy(split, size, order, views, *rest):
        seen.append((len(split), views is not None))
        return batches(split, size, order, views, *rest)

    monkeypatch.setattr(data, "batches", spy)
    assert train.main(["--data", str(npz), "--epochs", "2", "--augment", "--out", str(tmp_path / "run")]) == 0
    # Two epochs, then the test images, and their mirror images.
    assert seen == [(256, True), (64, False)] * 2 + [(100, False)] * 2


def test_the_confusion_adds_up_to_the_test_figures(whole_run):
    process, out, source = whole_run
    metrics = json.loads((out / "metrics.json").read_text())
    confusion = np.array(metrics["test_confusion"])
    labels = sources.choose(source).load().y_test
    assert confusion.sum(1).tolist() == np.bincount(labels).tolist()
    assert np.trace(confusion) / len(labels) == pytest.approx(metrics["test_accuracy"], abs=1e-7)
    accuracies = [figures["accuracy"] for figures in metrics["test_per_class"].values()]
    assert accuracies == (np.diag(confusion) / confusion.sum(1)).tolist()
    assert any(line.startswith("Most confused: class ") for line in process.stdout.splitlines())
    assert Image.open(out / "confusion.png").size == (800, 700)


def test_a_mirrored_evaluation_averages_the_logits_of_image_and_mirror_image(npz):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_test, arrays.y_test)
    network = build_model(image_shape=SHAPE).eval()
    images = part.images.permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = F.cross_entropy((network(images) + network(images.flip(3))) / 2, part.labels)
    figures = train.evaluate(network, part, Objective(l2=0.0), mirrored=True)
    assert figures.loss == pytest.approx(expected.item(), rel=1e-5)  # float32, another order of summation


def test_the_mirrored_test_accuracy_is_that_of_the_mean_logits_of_image_and_mirror_image(arrays, tmp_path):
    # Noise, labelled with the class that the mean logits predict; the rate is so low that the weights do not change.
    torch.manual_seed(0)
    network = build_model(image_shape=SHAPE).double().eval()
    noise = np.random.default_rng(0).integers(0, 256, (100, *SHAPE), np.uint8)
    images = torch.from_numpy(noise).permute(0, 3, 1, 2).double() / 255
    with torch.inference_mode():
        logits = network(images)
        labels = (logits + network(images.flip(3))).argmax(1)
        plain = (logits.argmax(1) == labels).double().mean().item()
    assert plain < 0.95
    np.savez(tmp_path / "w.npz", *to_keras_weights(network))
    few = {name: array[:10] for name, array in arrays.items()} | {"x_test": noise, "y_test": labels.numpy()}
    np.savez(tmp_path / "noise.npz", **few)
    arguments = ["--data", str(tmp_path / "noise.npz"), "--init-weights", str(tmp_path / "w.npz"), "--augment"]
    arguments += ["--epochs", "1", "--lr", "1e-30", "--dtype", "float64", "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test_accuracy"] == pytest.approx(plain)
    assert metrics["test_accuracy_mirrored"] == 1


def test_whitening_looks_at_training_images_alone(arrays, tmp_path):
    few = {name: array[:40] for name, array in arrays.items()}
    images = few["x_train"]  # 32 for training, the last 8 for validation
    changed = {
        "same": {},
        "others": {"x_train": np.concatenate([images[:32], 255 - images[32:]]), "x_test": 255 - few["x_test"]},
        "training": {"x_train": np.concatenate([255 - images[:32], images[32:]])},
    }
    started = {}
    for name, change in changed.items():
        np.savez(tmp_path / f"{name}.npz", **few | change)
        arguments = ["--data", str(tmp_path / f"{name}.npz"), "--model", "whitened", "--epochs", "1"]
        assert train.main([*arguments, "--out", str(tmp_path / name)]) == 0
        started[name] = (tmp_path / name / "initial_weights.npz").read_bytes()
    assert started["same"] == started["others"] != started["training"]


def test_whitening_leaves_given_initial_weights_alone(npz, tmp_path):
    random = np.random.default_rng(0)
    shapes = [array.shape for array in to_keras_weights(build_model("whitened", SHAPE))]
    given = [random.uniform(0.1, 0.2, shape).astype(np.float32) for shape in shapes]
    np.savez(tmp_path / "w.npz", *given)
    arguments = ["--data", str(npz), "--model", "whitened", "--epochs", "1", "--batch-size", "256"]
    assert train.main([*arguments, "--init-weights", str(tmp_path / "w.npz"), "--out", str(tmp_path / "run")]) == 0
    with np.load(tmp_path / "run" / "initial_weights.npz") as file:
        assert all(map(np.array_equal, file.values(), given))


@pytest.mark.precision
def test_mixed_precision_rounds_to_bfloat16_and_keeps_weights_and_figures_in_float32(npz):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_test, arrays.y_test)
    torch.manual_seed(0)
    network = build_model("improved", SHAPE)
    figures = [train.evaluate(network, part, Objective(0.0, 0.0, mixed)).loss for mixed in (False, True)]
    assert figures[0] != figures[1] == pytest.approx(figures[0], rel=0.02)  # bfloat16 has 8 bits, so 0.4 % a product
    optimizer = Adam(network.parameters(), lr=1e-3)
    objective = Objective(0.0, 0.0, mixed_precision=True)
    logits, loss = objective(network, next(data.batches(part, 64)))
    assert logits.dtype == loss.dtype == torch.float32
    train.train_epoch(network, data.batches(part, 64), objective, optimizer)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
