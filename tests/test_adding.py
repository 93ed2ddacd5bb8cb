"""CONTRIBUTING.md's recipes, followed: what is added in one place is trained with, and resumed to the bit."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.optim import lr_scheduler

import callbacks
import metrics
import model
import optim
import options
import predict
import train
from callbacks import Schedule
from harness.run import CHECKPOINT, CONFIG, HISTORY, WEIGHTS
from model import Network
from optim import Stepping


@pytest.fixture
def trained(npz, tmp_path):
    """Train two epochs at once, and one after the other; returns the first one's directory and the second's files."""

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


def test_a_network_is_one_class_and_one_name(trained, monkeypatch, arrays, tmp_path, capsys):
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
    """The rate for the first half of the steps in a straight line up, then down along half a cosine."""

    def __init__(self, optimizer, *, total_steps, min_lr, **_):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=total_steps // 2)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps - total_steps // 2, eta_min=min_lr)
        super().__init__(optimizer, [rise, fall], milestones=[total_steps // 2])


def broken_off(monkeypatch, after):
    """Let the loop end, as if interrupted, when it has kept so many epochs."""
    keep, kept = train.Run.keep, []

    def breaking(self, state, improved):
        keep(self, state, improved)
        kept.append(1)
        if len(kept) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Run, "keep", breaking)


def test_a_schedule_is_one_class_and_one_name_and_torch_s_own_will_do(npz, tmp_path, monkeypatch, capsys):
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
def test_an_optimizer_is_one_class_and_one_name(flags, trained, monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, "rmsprop", RMSprop)
    out = trained("--optimizer", "rmsprop", *flags.split())
    assert json.loads((out / CONFIG).read_text())["flags"]["optimizer"] == "rmsprop"


@dataclasses.dataclass
class More(options.Options):
    """One option more, whose default is what all did before."""

    made_up: float = options.option(0.999, options.number(float, "[0, 1)"), "nothing")


def test_a_flag_is_one_line_and_is_refused_in_a_run_that_had_another(trained, npz, tmp_path, monkeypatch, capsys):
    trained()  # without the flag
    monkeypatch.setattr(options, "Options", More)
    resume = ["--data", str(npz), "--out", str(tmp_path / "run"), "--resume", "--epochs", "3"]
    assert train.main([*resume, "--made-up", "0.5"]) == 2
    assert "--made-up 0.5 (was 0.999)" in capsys.readouterr().err
    assert train.main(resume) == 0  # what the earlier version made counts as made with the default
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
def test_an_option_that_an_earlier_version_did_not_have_counts_as_its_default_there(name, default, npz, tmp_path):
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
def test_a_weight_that_is_frozen_stays_as_it_is_and_the_run_is_resumed(flags, trained, monkeypatch):
    monkeypatch.setitem(model.MODELS, "frozen", Frozen)
    out = trained("--model", "frozen", *flags.split())
    with np.load(out / "initial_weights.npz") as first, np.load(out / "best_weights.npz") as best:
        assert np.array_equal(first["arr_0"], best["arr_0"])
        assert not np.array_equal(first["arr_2"], best["arr_2"])


class Limit:
    """A callback with a state of any kind: stops after so many epochs."""

    def __init__(self, epochs):
        self.epochs, self.seen = epochs, {}

    def update(self, logs):
        self.seen[f"epoch {len(self.seen)}"] = [logs["loss"], None, "text"]

    def state_dict(self):
        return self.seen

    def load_state_dict(self, state_dict):
        self.seen = dict(state_dict)


@pytest.fixture
def limited(monkeypatch):
    """Put a Limit into fit, as CONTRIBUTING.md says: into `state`, called in the loop, asked before an epoch."""

    def put(epochs):
        made = []
        resume, keep = train.Run.resume, train.Run.keep

        def resuming(self, state):
            made.append(Limit(epochs))
            resume(self, state | {"limit": made[-1]})

        def keeping(self, state, improved):
            made[-1].update(state["history"].logs[-1])
            keep(self, state | {"limit": made[-1]}, improved)

        monkeypatch.setattr(train.Run, "resume", resuming)
        monkeypatch.setattr(train.Run, "keep", keeping)
        should_stop = property(lambda self: self.stopped_epoch is not None)
        stops = property(lambda self: should_stop.fget(self) or (made and len(made[-1].seen) >= epochs))
        monkeypatch.setattr(train.EarlyStopping, "should_stop", stops)
        return made

    return put


def test_a_callback_is_an_object_in_fit_s_state_of_whatever_form(npz, tmp_path, limited, monkeypatch):
    arguments = ["--data", str(npz), "--out"]
    assert train.main([*arguments, str(tmp_path / "old"), "--epochs", "1"]) == 0  # before there was the callback
    made = limited(99)
    assert train.main([*arguments, str(tmp_path / "whole"), "--epochs", "3"]) == 0
    for epochs in "13":
        assert train.main([*arguments, str(tmp_path / "run"), "--epochs", epochs, "--resume"]) == 0
    whole, _, run = made
    assert whole.seen == run.seen
    assert len(whole.seen) == 3
    # In a run from before it begins anew; a version without it refuses what it does not know.
    assert train.main([*arguments, str(tmp_path / "old"), "--epochs", "3", "--resume"]) == 0
    assert len(made[-1].seen) == 2


def test_a_version_without_a_callback_refuses_its_checkpoint_by_name(npz, tmp_path, limited, monkeypatch, capsys):
    arguments = ["--data", str(npz), "--out", str(tmp_path / "run"), "--epochs"]
    with monkeypatch.context():
        limited(99)
        assert train.main([*arguments, "1"]) == 0
    monkeypatch.undo()
    assert train.main([*arguments, "2", "--resume"]) == 2
    assert "it has not the same parts: limit" in capsys.readouterr().err


def test_a_run_that_a_callback_stopped_says_so_and_is_finished(npz, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(npz), "--epochs", "3", "--out", str(tmp_path / "run"), "--resume"]
    with monkeypatch.context() as patch:
        # Asked before the first epoch, after it, before the second; early stopping itself, asked last, has not stopped.
        answers = iter([False, True, True, False])
        patch.setattr(train.EarlyStopping, "should_stop", property(lambda self: next(answers)))
        assert train.main(arguments) == 0
    assert "Training ended after epoch 1 of 3: stopped." in capsys.readouterr().out
    assert train.main(arguments) == 0
    assert "finished already, after epoch 1: stopped." in capsys.readouterr().out


def test_a_figure_more_in_the_history_is_refused_in_a_run_that_has_it_not_and_nothing_is_lost(
    npz, tmp_path, monkeypatch, capsys
):
    arguments = ["--data", str(npz), "--out", str(tmp_path / "run"), "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != CONFIG}
    logs = metrics.Figures.logs

    def more(self, dtype, prefix=""):
        return logs(self, dtype, prefix) | {f"{prefix}top_3_accuracy": 1.0}

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Figures, "logs", more)
        assert train.main([*arguments, "2", "--resume"]) == 2
        assert "log other figures (top_3_accuracy, val_top_3_accuracy)" in capsys.readouterr().err
        assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
        assert train.main([*arguments[:-2], str(tmp_path / "new"), "--epochs", "1"]) == 0
        assert "val_top_3_accuracy" in (tmp_path / "new" / HISTORY).read_text()
    assert train.main([*arguments, "2", "--resume"]) == 0


ELSEWHERE = [path for path in ROOT.glob("*.py") if path.stem not in ("model", "callbacks", "optim")]


@pytest.mark.parametrize("path", [*ELSEWHERE, *(ROOT / "harness").glob("*.py")], ids=lambda path: path.name)
def test_no_network_schedule_or_optimizer_is_asked_for_by_its_name_outside_its_module(path):
    names = "|".join([*model.MODELS, *callbacks.SCHEDULES, *optim.OPTIMIZERS])
    assert re.findall(rf"[!=]= *[\"'](?:{names})[\"']|[\"'](?:{names})[\"'] *[!=]=", path.read_text()) == []
