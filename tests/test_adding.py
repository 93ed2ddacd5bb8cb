"""CONTRIBUTING.md's recipes, followed: what is added in one place can be trained with, and resumed bit for bit."""

import dataclasses
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from matplotlib.figure import Figure
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import callbacks
import compare
import metrics
import model
import optim
import options
import predict
import sources
import sweep
import train
from callbacks import Callback, Schedule, Stop
from model import Network
from optim import Stepping
from running.outcome import CHECKPOINT, CONFIG, HISTORY, WEIGHTS
from sources.source import Arrays, Source
from sweeping.reference import Reference


@pytest.fixture
def trained(npz, tmp_path):
    """Train to the last of `epochs` in one go, and resumed at each; assert equal files; return the first directory."""

    def train_both(*flags, epochs=("1", "2")):
        arguments = ["--data", str(npz), *flags, "--out"]
        assert train.main([*arguments, str(tmp_path / "whole"), "--epochs", epochs[-1]]) == 0
        for count in epochs:
            assert train.main([*arguments, str(tmp_path / "run"), "--epochs", count, "--resume"]) == 0
        for name in (HISTORY, WEIGHTS):
            assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        return tmp_path / "whole"

    return train_both


class Tiny(Network):
    """A network of one dense layer, whose kernel carries L2 and whose bias is the mean of the training images."""

    augmented = True

    def __init__(self, image_shape, classes, dropout):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(image_shape[2], classes)

    def l2_weights(self):
        return [self.dense.weight]

    @torch.no_grad()
    def prepare(self, images):
        self.dense.bias.fill_(images.double().mean() / 255)

    def forward(self, images):
        return self.dense(self.dropout(images.mean((2, 3))))


def test_a_new_network_needs_only_a_class_and_a_name(trained, monkeypatch, arrays, tmp_path, capsys):
    monkeypatch.setitem(model.MODELS, "tiny", Tiny)
    out = trained("--model", "tiny")
    config = json.loads((out / CONFIG).read_text())
    assert config["flags"]["augment"] is True
    assert config["parameters"] == 40
    state = torch.load(out / CHECKPOINT, weights_only=True)
    # The first group is the one with L2.
    assert state["optimizer"]["param_groups"][0]["weight_decay"] > 0
    assert state["optimizer"]["state"][0]["exp_avg"].shape == (10, 3)
    assert train.main(["--help"]) == 0
    assert "tiny" in capsys.readouterr().out
    from PIL import Image

    Image.fromarray(arrays["x_test"][0]).save(tmp_path / "image.png")
    assert predict.main([str(out), str(tmp_path / "image.png")]) == 0


class Warmup(Schedule, lr_scheduler.SequentialLR):
    """Raises the rate linearly for the first half of the steps, then lowers it along half a cosine."""

    def __init__(self, optimizer, *, total_steps, min_lr):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=total_steps // 2)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps - total_steps // 2, eta_min=min_lr)
        super().__init__(optimizer, [rise, fall], milestones=[total_steps // 2])


def broken_off(monkeypatch, after):
    """End the loop, as if interrupted, once it has kept `after` epochs."""
    keep, kept = train.Run.keep, []

    def breaking(self, state, improved):
        keep(self, state, improved)
        kept.append(1)
        if len(kept) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Run, "keep", breaking)


def test_a_new_schedule_needs_only_a_class_and_a_name_and_may_subclass_one_of_torch(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(callbacks.SCHEDULES, "warmup", Warmup)
    arguments = ["--data", str(npz), "--schedule", "warmup", "--epochs", "3", "--out"]
    assert train.main([*arguments, str(tmp_path / "whole")]) == 0
    assert "The learning rate followed the warmup schedule." in capsys.readouterr().out
    rates = json.loads((tmp_path / "whole" / "metrics.json").read_text())["learning_rate_after_epoch"]
    assert rates[0] == pytest.approx(0.7e-3, rel=1e-6)  # 4 of 6 steps up from a tenth
    assert rates[-1] == pytest.approx(1e-6, rel=1e-6)
    with monkeypatch.context() as patch:
        broken_off(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            train.main([*arguments, str(tmp_path / "run")])
    assert train.main([*arguments, str(tmp_path / "run"), "--resume"]) == 0
    for name in (HISTORY, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class RMSprop(Stepping, torch.optim.RMSprop):
    """torch's, with what this project adds to each optimizer."""


@pytest.mark.parametrize("flags", ["", "--weight-decay 0.1"])
def test_a_new_optimizer_needs_only_a_class_and_a_name(flags, trained, monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, "rmsprop", RMSprop)
    out = trained("--optimizer", "rmsprop", *flags.split())
    assert json.loads((out / CONFIG).read_text())["flags"]["optimizer"] == "rmsprop"


@dataclasses.dataclass
class More(options.Options):
    """One more option, whose default is what every run did before."""

    made_up: float = options.option(0.999, options.number(float, "[0, 1)"), "nothing")


def test_a_new_flag_needs_only_one_line_and_cannot_change_when_a_run_is_resumed(
    trained, npz, tmp_path, monkeypatch, capsys
):
    trained()  # without the flag
    monkeypatch.setattr(options, "Options", More)
    resume = ["--data", str(npz), "--out", str(tmp_path / "run"), "--resume", "--epochs", "3"]
    assert train.main([*resume, "--made-up", "0.5"]) == 2
    assert "--made-up 0.5 (was 0.999)" in capsys.readouterr().err
    assert train.main(resume) == 0  # a run of the earlier version counts as made with the default
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["flags"]["made_up"] == 0.999
    assert train.main(["--made-up", "1"]) == 2
    assert "--made-up: '1' is not a number in [0, 1)" in capsys.readouterr().err


def test_a_run_made_with_an_option_that_this_version_lacks_is_refused_unless_it_was_at_its_default(
    npz, tmp_path, monkeypatch, capsys
):
    arguments = ["--data", str(npz), "--epochs", "1", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(options, "Options", More)
        assert train.main([*arguments, str(tmp_path / "default")]) == 0
        assert train.main([*arguments, str(tmp_path / "other"), "--made-up", "0.5"]) == 0
    capsys.readouterr()
    before = {file: file.read_bytes() for file in (tmp_path / "other").iterdir()}
    arguments[3] = "2"
    assert train.main([*arguments, str(tmp_path / "other"), "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--made-up 0.5 (an option that this version lacks)" in line
    assert {file: file.read_bytes() for file in (tmp_path / "other").iterdir()} == before
    config = json.loads((tmp_path / "other" / CONFIG).read_text())
    del config["not_default"]  # without that list nobody knows what the default was
    (tmp_path / "other" / CONFIG).write_text(json.dumps(config))
    assert train.main([*arguments, str(tmp_path / "other"), "--resume"]) == 2
    assert train.main([*arguments, str(tmp_path / "default"), "--resume"]) == 0


@pytest.mark.parametrize(("name", "default"), [("augment", True), ("weight_decay", 0.004), ("no_mirror", False)])
def test_an_option_missing_from_the_config_of_an_earlier_version_counts_as_its_default(name, default, npz, tmp_path):
    out = tmp_path / "run"
    flags = ["--data", str(npz), "--model", "improved", "--optimizer", "adamw", "--out", str(out)]
    assert train.main([*flags, "--epochs", "1"]) == 0
    config = json.loads((out / CONFIG).read_text())
    assert config["flags"].pop(name) == default
    del config["not_default"]  # earlier versions did not write it
    (out / CONFIG).write_text(json.dumps(config))
    other = {"augment": "--no-augment", "weight_decay": "--weight-decay=0.1", "no_mirror": "--no-mirror"}[name]
    assert train.main([*flags, "--epochs", "2", "--resume", other]) == 2
    assert train.main([*flags, "--epochs", "2", "--resume"]) == 0


class Frozen(model.BaselineCNN):
    """A network whose first layer is not trained."""

    def __init__(self, image_shape, classes, dropout):
        super().__init__(image_shape, classes, dropout)
        self.conv1.weight.requires_grad_(False)


@pytest.mark.parametrize("flags", ["", "--optimizer adamw --weight-decay 0.5"])
def test_a_frozen_weight_stays_unchanged_and_its_run_can_be_resumed(flags, trained, monkeypatch):
    monkeypatch.setitem(model.MODELS, "frozen", Frozen)
    out = trained("--model", "frozen", *flags.split())
    with np.load(out / "initial_weights.npz") as first, np.load(out / "best_weights.npz") as best:
        assert np.array_equal(first["arr_0"], best["arr_0"])
        assert not np.array_equal(first["arr_2"], best["arr_2"])


class Averaged(Callback):
    """torch's moving average of the weights, which is evaluated and kept as best in their place."""

    def __init__(self, model):
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.network = self.average.module

    def after_step(self):
        self.average.update_parameters(self.model)

    def state_dict(self):
        return self.average.state_dict()

    def load_state_dict(self, state_dict):
        self.average.load_state_dict(state_dict)


class OneEpochAtATime(Callback):
    """Stops after one epoch of each process, as a time limit does; the run can be resumed."""

    def after_epoch(self, epoch, logs):
        self.stop = Stop("time limit", final=False)


def add_callback(monkeypatch, make):
    """Put `make(options, model)` among the callbacks, as a line in `train.make_callbacks` would."""
    before = train.make_callbacks

    def with_one_more(options, model, schedule):
        return before(options, model, schedule) | {"added": make(options, model)}

    monkeypatch.setattr(train, "make_callbacks", with_one_more)


def test_a_callback_that_averages_weights_has_its_average_evaluated_and_kept_as_best(
    trained, npz, tmp_path, monkeypatch
):
    arguments = ["--data", str(npz), "--epochs", "2", "--out", str(tmp_path / "raw")]
    assert train.main(arguments) == 0
    add_callback(monkeypatch, lambda options, model: Averaged(model))
    out = trained()
    saved = torch.load(out / CHECKPOINT, weights_only=True)
    best = torch.load(out / WEIGHTS, weights_only=True)
    for name, weights in best.items():
        assert torch.equal(weights, saved["added"][f"module.{name}"])  # the last epoch was the best
        assert not torch.equal(weights, saved["model"][name])
    raw, averaged = (np.genfromtxt(run / HISTORY, delimiter=",", names=True) for run in (tmp_path / "raw", out))
    assert raw["loss"].tolist() == averaged["loss"].tolist()  # what is trained is the same
    assert raw["val_loss"].tolist() != averaged["val_loss"].tolist()


def test_a_callback_may_be_added_when_a_run_is_resumed_but_a_missing_one_is_refused_by_name(
    npz, tmp_path, monkeypatch, capsys
):
    arguments = ["--data", str(npz), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    with monkeypatch.context() as patch:
        add_callback(patch, lambda options, model: Averaged(model))
        assert train.main([*arguments, "2"]) == 0
    assert train.main([*arguments, "3"]) == 2
    assert "it has parts that this version lacks: added" in capsys.readouterr().err


def test_a_callback_that_stops_a_run_gives_its_reason_and_says_whether_the_run_is_finished(
    npz, tmp_path, monkeypatch, capsys
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    arguments = ["--data", str(npz), "--epochs", "3", "--resume", "--out"]
    assert train.main([*arguments, str(whole)]) == 0
    add_callback(monkeypatch, lambda options, model: OneEpochAtATime())
    for epoch in (1, 2):
        assert train.main([*arguments, str(run)]) == 0
        printed = capsys.readouterr().out
        assert f"Training ended after epoch {epoch} of 3: time limit." in printed
        assert "The run is not complete: --resume continues it." in printed
        assert compare.main([str(run), str(whole), "--out", str(tmp_path / "compared")]) == 2
        assert f"has not finished (time limit after epoch {epoch}, can be resumed)" in capsys.readouterr().err
    assert train.main([*arguments, str(run)]) == 0
    for name in (HISTORY, WEIGHTS):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    # A stop that is final ends the run for good.
    monkeypatch.setattr(OneEpochAtATime, "after_epoch", lambda self, *_: setattr(self, "stop", Stop("good enough")))
    assert train.main([*arguments[:-1], "--out", str(tmp_path / "final")]) == 0
    capsys.readouterr()
    assert train.main([*arguments, str(tmp_path / "final")]) == 0
    assert "It had already finished, after epoch 1: good enough." in capsys.readouterr().out


class Top3(metrics.Figures):
    """One more metric, which Top3Tally sets."""

    LOGGED = (*metrics.Figures.LOGGED, "top_3_accuracy")


class Top3Tally(metrics.Tally):
    def __init__(self, *args):
        super().__init__(*args)
        self.seen = self.right = 0

    def add(self, logits, loss, labels):
        super().add(logits, loss, labels)
        self.seen += len(labels)
        self.right += (logits.topk(3).indices == labels[:, None]).sum().item()

    def total(self):
        figures = Top3(*super().total())
        figures.top_3_accuracy = self.right / self.seen
        return figures


@pytest.fixture
def counting_top_3(monkeypatch):
    monkeypatch.setattr(train, "Tally", Top3Tally)
    monkeypatch.setattr(train, "Figures", Top3)


@pytest.mark.pictures
def test_a_new_metric_is_logged_printed_and_drawn(counting_top_3, trained, monkeypatch, capsys):
    titles, savefig = [], Figure.savefig

    def noting(figure, *args, **settings):
        titles.append([axes.get_title() for axes in figure.axes])
        return savefig(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", noting)
    out = trained()
    rows = np.genfromtxt(out / HISTORY, delimiter=",", names=True)
    assert (rows["top_3_accuracy"] >= rows["accuracy"]).all()
    assert (rows["val_top_3_accuracy"] > rows["val_accuracy"]).any()
    assert f"val_top_3_accuracy: {rows['val_top_3_accuracy'][-1]:.4f}" in capsys.readouterr().out
    assert titles[0] == ["Accuracy", "Loss", "Top 3 accuracy", "Learning rate"]


def test_a_resumed_run_keeps_its_history_columns_and_is_refused_by_a_version_that_lacks_one(
    npz, tmp_path, request, capsys
):
    arguments = ["--data", str(npz), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    header = (tmp_path / "run" / HISTORY).read_text().splitlines()[0]
    request.getfixturevalue("counting_top_3")
    assert train.main([*arguments, "2"]) == 0
    assert (tmp_path / "run" / HISTORY).read_text().splitlines()[0] == header
    assert "top_3" not in header
    arguments[3] = str(tmp_path / "new")
    assert train.main([*arguments, "1"]) == 0
    request.getfixturevalue("monkeypatch").undo()  # an earlier version
    capsys.readouterr()
    config = (tmp_path / "new" / CONFIG).read_bytes()
    assert train.main([*arguments, "2"]) == 2
    assert "columns that this version does not log: top_3_accuracy, val_top_3_accuracy" in capsys.readouterr().err
    assert (tmp_path / "new" / CONFIG).read_bytes() == config


class Restarts(Schedule, lr_scheduler.CosineAnnealingWarmRestarts):
    """Falls along half a cosine to `min_lr` and restarts every `period` epochs, which is an option of its own."""

    spans_all_epochs = False

    def __init__(self, optimizer, *, min_lr, period, steps_per_epoch):
        super().__init__(optimizer, T_0=period * steps_per_epoch, eta_min=min_lr)


@dataclasses.dataclass(init=False)
class WithPeriod(options.Options):
    period: int = options.option(2, options.number(int, "[1, 1000]"), "epochs between two restarts")


def test_a_schedule_may_have_its_own_option_and_may_restart(trained, monkeypatch, capsys):
    monkeypatch.setitem(callbacks.SCHEDULES, "restarts", Restarts)
    monkeypatch.setattr(options, "Options", WithPeriod)
    out = trained("--schedule", "restarts", "--period", "1", epochs=("1", "2", "3"))
    rates = json.loads((out / "metrics.json").read_text())["learning_rate_after_epoch"]
    assert rates == pytest.approx([1e-3] * 3)  # each epoch ends where the next begins: at the top
    monkeypatch.setitem(callbacks.SCHEDULES, "restarts", Restarts)
    for flags, message in (
        (
            ["--schedule", "restarts", "--lr", "1e-7"],
            "--lr 1e-07 is below --min-lr 1e-06, to which restarts would rise",
        ),
        (["--period", "3"], "--period 3 has no effect with --schedule plateau"),
    ):
        capsys.readouterr()
        assert train.main(flags) == 2
        assert message in capsys.readouterr().err


class Focal(metrics.Objective):
    """The focal loss, for training."""

    def __call__(self, network, batch, mirrored=False):
        logits, _ = super().__call__(network, batch, mirrored)
        of_class = F.log_softmax(logits, 1).gather(1, batch.labels[:, None])
        return logits, -((1 - of_class.exp()).square() * of_class).sum()


@dataclasses.dataclass(init=False)
class WithFocal(options.Options):
    focal: bool = options.option(False, bool, "the focal loss, in training", in_loss=True)


def test_training_may_use_a_different_loss_from_evaluation(trained, npz, tmp_path, monkeypatch, capsys):
    fit = train.fit

    def with_focal(given, run, network, objective, *rest):
        return fit(given, run, network, Focal(*objective) if given.focal else objective, *rest)

    for module in (options, compare):
        monkeypatch.setattr(module, "Options", WithFocal)
    monkeypatch.setattr(train, "fit", with_focal)
    plain = ["--data", str(npz), "--epochs", "2", "--out", str(tmp_path / "plain")]
    assert train.main(plain) == 0
    out = trained("--focal")
    focal, usual = (np.genfromtxt(run / HISTORY, delimiter=",", names=True) for run in (out, tmp_path / "plain"))
    assert focal["loss"][0] < 0.9 * usual["loss"][0]  # each term is smaller
    assert focal["val_loss"][0] == pytest.approx(usual["val_loss"][0], rel=0.2)  # cross-entropy in both
    assert compare.main([str(out), str(tmp_path / "plain"), "--out", str(tmp_path / "compared")]) == 3
    assert "The loss is not the same" in capsys.readouterr().out


class Stripes(Source):
    """Images told apart by the width of their stripes; a file ending in .stripes holds the seed of their noise."""

    def load(self):
        random = np.random.default_rng(int(Path(self.text).read_text()))
        labels = np.arange(120) % 3
        images = np.repeat((np.arange(16) // (labels[:, None] + 1) % 2 * 200)[:, None, :, None], 16, 1).repeat(3, 3)
        images = (images + random.integers(0, 50, images.shape)).astype(np.uint8)
        return Arrays(images[:90], labels[:90], images[90:], labels[90:], ("fine", "middle", "coarse"))

    def describe(self):
        return f"stripes in {self.text}"


def test_a_new_source_of_images_needs_only_one_class(tmp_path, monkeypatch, capsys):
    choose = sources.choose

    def with_stripes(text, *size):
        return Stripes(text) if text.endswith(".stripes") else choose(text, *size)

    monkeypatch.setattr(sources, "choose", with_stripes)
    monkeypatch.chdir(tmp_path)
    Path("a.stripes").write_text("1")
    assert train.main(["--data", "a.stripes", "--epochs", "2"]) == 0
    out = Path("runs/baseline-a.stripes-seed0")
    printed = capsys.readouterr().out
    assert "stripes in a.stripes: 72 training, 18 validation, 30 test images of 16x16x3, 3 classes" in printed
    assert json.loads((out / CONFIG).read_text())["class_names"] == ["fine", "middle", "coarse"]
    Path("a.stripes").write_text("2")
    assert train.main(["--resume", str(out), "--epochs", "3"]) == 2
    assert f"other images or labels than '{tmp_path}/a.stripes' had" in capsys.readouterr().err
    Path("a.stripes").rename("b.stripes")
    Path("b.stripes").write_text("1")
    assert train.main(["--resume", str(out), "--epochs", "3", "--data", "b.stripes"]) == 0


class StochasticDepth(model.BaselineCNN):
    """A network that draws random numbers without dropout: it skips its second convolution half of the time."""

    def forward(self, images):
        kept = 1.0 if not self.training else torch.rand((), device=images.device).round()
        handle = self.conv2.register_forward_hook(lambda layer, inputs, output: output * kept)
        try:
            return super().forward(images)
        finally:
            handle.remove()


def test_a_network_may_draw_random_numbers_of_its_own(trained, monkeypatch):
    monkeypatch.setitem(model.MODELS, "stochastic", StochasticDepth)
    trained("--model", "stochastic", "--dropout", "0")


OTHER_FRAMEWORK = """
import sys
sys.path.insert(0, {root!r})
import running.directory, running.outcome, train
for module in (running.directory, running.outcome, train):
    module.TRAIN = {program!r}  # stands for any program that trains and writes a run's files
sys.exit(train.main([*sys.argv[1:], "--threads", "1", "--quiet"]))
"""


def test_a_new_reference_framework_needs_only_a_class_and_a_name(little, tmp_path, monkeypatch, capsys):
    program = str(tmp_path / "other.py")
    (tmp_path / "other.py").write_text(OTHER_FRAMEWORK.format(root=str(ROOT), program=program))

    class Other(Reference):
        label, options = "other", ("epochs", "lr", "init_weights")

        def describe(self):
            return "another framework, 1.0"

    Other.program = program
    monkeypatch.setattr(sweep, "REFERENCES", (*sweep.REFERENCES, Other()))
    own = ["--data", str(little), "--epochs", "1", "--quiet", "--out", str(tmp_path / "runs" / "<seed>")]
    arguments = ["--seeds", "0", "--other", "--", *own]
    assert sweep.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "another framework, 1.0" in printed
    compared = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    assert [*compared["groups"]] == ["other", "torch"]
    assert compared["difference"]["mean"] == 0.0  # the same program, from the same weights
    assert sweep.main(["--seeds", "1", "--other", "--", *own, "--l2", "0"]) == 2
    assert f"--other: {program} has no --l2 0.0; leave that or --other out" in capsys.readouterr().err


# --- everything at once, killed ---------------------------------------------------------------------------------------


def add_everything():
    """Add everything that the tests above add, all at once, in a process of its own."""
    patch = pytest.MonkeyPatch()
    add_callback(patch, lambda options, model: Averaged(model))
    patch.setitem(callbacks.SCHEDULES, "restarts", Restarts)
    patch.setitem(model.MODELS, "stochastic", StochasticDepth)
    patch.setitem(optim.OPTIMIZERS, "rmsprop", RMSprop)
    patch.setattr(options, "Options", WithPeriod)
    patch.setattr(train, "Tally", Top3Tally)
    patch.setattr(train, "Figures", Top3)
    fit = train.fit
    patch.setattr(train, "fit", lambda a, b, c, objective, *rest: fit(a, b, c, Focal(*objective), *rest))


def test_a_run_with_all_additions_and_lookahead_that_is_killed_repeatedly_equals_the_uninterrupted_run(
    npz, tmp_path, start
):
    flags = ["--data", npz, "--model", "stochastic", "--schedule", "restarts", "--optimizer", "rmsprop", "--lookahead"]
    flags += ["--augment", "--epochs", "6", "--quiet", "--out"]
    undisturbed = start([*flags, tmp_path / "whole"], tmp_path / "whole.log", before=add_everything)
    run, log = tmp_path / "run", tmp_path / "run.log"
    for epoch in (1, 3, 4):
        process = start([*flags, run, "--resume"], log, before=add_everything)
        while process.is_alive() and f"Epoch {epoch}/6 - " not in (log.read_text() if log.exists() else ""):
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
    last = start([*flags, run, "--resume"], log, before=add_everything)
    for process in (undisturbed, last):
        process.join()
        assert process.exitcode == 0, log.read_text()
    for name in (HISTORY, WEIGHTS, "best_weights.npz"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "val_top_3_accuracy" in (run / HISTORY).read_text()


ELSEWHERE = [path for path in ROOT.glob("*.py") if path.stem not in ("model", "callbacks", "optim")]
ELSEWHERE += [
    path for room in ("cli", "running", "sources", "comparing", "sweeping") for path in (ROOT / room).glob("*.py")
]


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_tests_for_a_network_schedule_or_optimizer_by_name(path):
    names = "|".join([*model.MODELS, *callbacks.SCHEDULES, *optim.OPTIMIZERS])
    assert re.findall(rf"[!=]= *[\"'](?:{names})[\"']|[\"'](?:{names})[\"'] *[!=]=", path.read_text()) == []
