"""Signals while a run trains: in a step, between two files, ignored ones, and what is left afterwards.

They are sent to this process, whose own handlers stand for those of a caller of `train.main`.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import train
from running import signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def reached():
    """Install a caller's own handlers for all of SIGNALS; yields the list of the signals that reached them."""
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
    """Within the block, `act()` is called in the middle of training step `number`; yields a log of the steps.

    It is a list, to which each step adds "begun" in its first layer and "through" in its last.
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
def test_a_signal_during_a_step_ends_the_run_there_and_earlier_epochs_are_kept(
    signum, code, begin, reached, tmp_path, capsys
):
    with at_step(11, send(signum)) as seen:  # the third step of the second epoch
        assert begin() == code
    assert seen == ["begun", "through"] * 10 + ["begun"]
    assert f"interrupted by {signum.name}; to continue: " in capsys.readouterr().err
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2  # the header, the first epoch
    assert signum.name in (tmp_path / "run" / "error.txt").read_text()
    assert reached == []


def interrupted_at(moment, name, patch):
    """Send SIGTERM just before or just after the file with this name is renamed into place."""
    replace = os.replace

    def interrupting(source, target, **options):
        if moment == "after":
            replace(source, target, **options)
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGTERM)
        if moment == "before":
            replace(source, target, **options)

    patch.setattr(os, "replace", interrupting)


@pytest.mark.parametrize(
    ("moment", "name"),
    [("before", "checkpoint.pt"), ("after", "checkpoint.pt"), ("before", "best.pt"), ("after", "history.csv")],
)
def test_a_signal_while_files_are_written_leaves_each_whole_and_the_resumed_run_equals_an_uninterrupted_one(
    moment, name, begin, reached, tmp_path, monkeypatch
):
    run, whole = tmp_path / "run", tmp_path / "undisturbed"
    assert begin("--epochs", "2", "--out", str(whole)) == 0
    assert begin("--epochs", "1") == 0
    # Not before the first step, because resuming writes files too.
    with monkeypatch.context() as patch, at_step(1, lambda: interrupted_at(moment, name, patch)):
        assert begin("--epochs", "2", "--resume") == 143
    assert "SIGTERM" in (run / "error.txt").read_text()
    assert [*run.glob(".*.partial")] == []
    kept = torch.load(run / "checkpoint.pt", weights_only=True)["history"]["logs"]
    assert len(kept) == (1 if (moment, name) == ("before", "checkpoint.pt") else 2)
    assert len((run / "history.csv").read_text().splitlines()) == (3 if name != "checkpoint.pt" else 2)
    assert begin("--epochs", "2", "--resume") == 0
    for file in ("history.csv", "best.pt", "best_weights.npz"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert not (run / "error.txt").exists()


def test_a_signal_after_the_last_epoch_ends_the_run_without_waiting_for_the_pictures(
    begin, reached, tmp_path, monkeypatch
):
    interrupted_at("after", "metrics.json", monkeypatch)
    assert begin("--epochs", "1") == 143
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_process_whose_torchrun_parent_has_died_ends_as_if_by_sigterm(begin, tmp_path, monkeypatch, capsys):
    def orphan():
        monkeypatch.setattr(os, "getppid", lambda: -1)
        while True:  # until it is noticed
            time.sleep(0.01)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(signals, "PAUSE", 0.01)
    with at_step(11, orphan) as seen:
        assert begin() == 143
    assert seen == ["begun", "through"] * 10 + ["begun"]
    assert "interrupted by SIGTERM; to continue: " in capsys.readouterr().err
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_that_the_caller_ignores_stays_ignored(signum, begin, reached):
    signal.signal(signum, signal.SIG_IGN)  # as nohup or a shell's & does
    with at_step(3, send(signum)) as seen:
        assert begin("--epochs", "1") == 0
    assert len(seen) == 16
    assert signal.getsignal(signum) is signal.SIG_IGN


def test_the_callers_signal_handlers_are_restored_however_the_run_ends(begin, reached, tmp_path):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    ends = {0: ["--epochs", "1"], 2: [], 143: ["--out", str(tmp_path / "interrupted")]}
    for code, flags in ends.items():  # finished, refused because a run is there, interrupted
        with at_step(1, send(signal.SIGTERM) if code == 143 else send()):
            assert begin(*flags) == code
        assert [signal.getsignal(signum) for signum in SIGNALS] == before
    send(*SIGNALS)()
    assert reached == list(SIGNALS)
