"""Signals while a run trains: between two steps, between two files, ignored ones, and what is left when it is over.

In this process, whose own handlers stand for those of whoever calls `train.main`.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn.modules.module import register_module_forward_hook

import train
from harness import signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def reached():
    """Handlers of the caller's own for all of SIGNALS; the list of the signals that got to them."""
    signals = []
    before = {signum: signal.signal(signum, lambda signum, frame: signals.append(signum)) for signum in SIGNALS}
    yield signals
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def begin(npz, tmp_path):
    """Run `train.main` with some flags on the small data set, 8 steps an epoch, in tmp_path / "run"."""
    return lambda *flags: train.main(
        ["--data", str(npz), "--epochs", "3", "--batch-size", "32", "--out", str(tmp_path / "run"), *flags]
    )


@contextlib.contextmanager
def at_step(number, act):
    """Within the block `act()` is called in the middle of training step `number`; yields a list of the steps' layers.

    The list grows by "begun" and "through" with each step's first and last layer.
    """
    seen = []

    def look(layer, *_):
        if not layer.training:
            return
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels == 3:
            seen.append("begun")
            if seen.count("begun") == number:
                act()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 10:
            seen.append("through")

    handle = register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def send(*signums):
    def act():
        for signum in signums:
            os.kill(os.getpid(), signum)

    return act


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_in_a_step_waits_for_its_end_and_no_other_step_is_begun(
    signum, code, begin, reached, tmp_path, capsys
):
    with at_step(11, send(signum)) as seen:  # the third step of the second epoch
        assert begin() == code
    assert seen == ["begun", "through"] * 11
    assert f"interrupted by {signum.name}" in capsys.readouterr().err
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2  # the header, the first epoch
    assert reached == []


def test_a_second_signal_does_not_wait(begin, reached, capsys):
    with at_step(3, send(signal.SIGTERM, signal.SIGINT)) as seen:
        assert begin() == 130
    assert seen == ["begun", "through"] * 2 + ["begun"]
    assert "interrupted by SIGINT" in capsys.readouterr().err


@pytest.fixture
def interrupted_by(monkeypatch):
    """Send SIGTERM as soon as the file of some name is in its place."""

    def arrange(name):
        replace = os.replace

        def interrupting(source, target, **options):
            replace(source, target, **options)
            if Path(target).name == name:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(os, "replace", interrupting)

    return arrange


def test_a_signal_between_two_files_of_an_epoch_waits_for_all_of_them(begin, reached, interrupted_by, tmp_path):
    assert begin("--epochs", "1", "--out", str(tmp_path / "undisturbed")) == 0
    interrupted_by("checkpoint.pt")
    assert begin() == 143
    for name in ("history.csv", "best.pt", "best_weights.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert "SIGTERM" in (tmp_path / "run" / "error.txt").read_text()


def test_a_signal_after_the_last_epoch_does_not_wait(begin, reached, interrupted_by, tmp_path):
    interrupted_by("metrics.json")
    assert begin("--epochs", "1") == 143
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("command", "signum", "code"),
    [
        ("train.py", signal.SIGINT, 130),
        ("train.py", signal.SIGUSR1, 143),
        ("train.py", signal.SIGTERM, 143),
        ("predict.py", signal.SIGINT, 130),
        ("compare.py", signal.SIGINT, 130),
        ("sweep.py", signal.SIGINT, 130),
    ],
)
def test_a_signal_while_torch_is_imported_ends_the_command_with_one_line(command, signum, code, tmp_path):
    (tmp_path / "torch.py").write_text(f"import os, time; os.kill(os.getpid(), {int(signum)}); time.sleep(60)")
    process = subprocess.run(
        [sys.executable, ROOT / command, "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == code
    assert process.stderr == f"{command}: error: interrupted by {signum.name}\n"


def test_a_command_that_is_imported_leaves_the_handlers_alone(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    code = "import contextlib, signal\n"
    for name in ("train", "predict", "compare", "sweep"):
        code += f"with contextlib.suppress(ImportError): import {name}\n"
    code += "assert {*map(signal.getsignal, (signal.SIGTERM, signal.SIGUSR1))} == {signal.SIG_DFL}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode == 0


def test_a_process_whose_torchrun_has_gone_ends_after_the_step_as_after_sigterm(begin, tmp_path, monkeypatch, capsys):
    with at_step(11, lambda: monkeypatch.setattr(signals, "_parent", -1)) as seen:
        assert begin() == 143
    assert seen == ["begun", "through"] * 11
    assert "error: torchrun has ended; the epochs that were finished are kept" in capsys.readouterr().err
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2


def test_a_process_that_waits_for_others_does_not_outlive_torchrun(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(signals, "PAUSE", 0)
    monkeypatch.setattr(signals, "GRACE", 0)
    monkeypatch.setattr(signals, "_parent", -1)
    monkeypatch.setattr(os, "_exit", ended.append)
    signals._watch()
    assert ended == [143]
    assert capfd.readouterr().err == "error: torchrun has ended\n"


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_that_the_caller_ignores_stays_ignored(signum, begin, reached):
    signal.signal(signum, signal.SIG_IGN)  # as nohup or a shell's & does
    with at_step(3, send(signum)) as seen:
        assert begin("--epochs", "1") == 0
    assert len(seen) == 16
    assert signal.getsignal(signum) is signal.SIG_IGN


def test_the_caller_s_handlers_are_put_back_however_the_run_ends(begin, reached, tmp_path):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    ends = {0: ["--epochs", "1"], 2: [], 143: ["--out", str(tmp_path / "interrupted")]}
    for code, flags in ends.items():  # done, refused for what stands there, interrupted
        with at_step(1, send(signal.SIGTERM) if code == 143 else send()):
            assert begin(*flags) == code
        assert [signal.getsignal(signum) for signum in SIGNALS] == before
    send(*SIGNALS)()
    assert reached == list(SIGNALS)
