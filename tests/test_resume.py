"""What a run survives: it is stopped, killed, started twice, or the disk is full. It ends as if nothing happened."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import data
import metrics
import train
from cli.errors import Diverged
from comparing import histories
from running import files
from running.lock import DirectoryLock, InUse
from running.outcome import CHECKPOINT, CONFIG, EARLY_STOPPING, ERROR, HISTORY

SAME = ("history.csv", "best.pt", "best_weights.npz", "initial_weights.npz", "curves.png")
ARGUMENTS = ["--epochs", "24", "--patience", "24", "--lr-patience", "2", "--seed", "5", "--device", "cpu", "--quiet"]
ARGUMENTS += ["--lr", "0.012"]  # high enough to cause learning-rate cuts


def finish(process):
    process.join()
    return process.exitcode


def figures(out):
    metrics = json.loads((out / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in ("seconds_per_epoch", "images_per_second")}


def assert_same(out, undisturbed):
    for name in SAME:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert figures(out) == figures(undisturbed)


@pytest.fixture(scope="module")
def undisturbed(start, little, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(["--data", little, *ARGUMENTS, "--out", folder / "run"], folder / "log")) == 0
    assert figures(folder / "run")["learning_rate_cuts"]
    return folder / "run"


def wait_for(condition, process):
    while not condition():
        assert process.is_alive(), "the run ended before what the test waits for"
        time.sleep(0.0005)


def inode(path):
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino


def test_a_run_killed_at_random_moments_and_resumed_equals_the_uninterrupted_run(start, undisturbed, little, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    checkpoint = out / CHECKPOINT
    dice = random.Random(0)
    for kill in range(6):
        before = inode(checkpoint)
        process = start(["--data", little, *ARGUMENTS, "--out", out, "--resume"], log)
        if kill % 2:  # while a file is being written
            name = dice.choice((CHECKPOINT, HISTORY, CONFIG))
            partial = out / f".{name}.{process.pid}.partial"
            wait_for(lambda partial=partial, b=before: partial.exists() or inode(checkpoint) not in (b, None), process)
        else:  # at any moment up to the end of the epoch after the next
            wait_for(lambda b=before: inode(checkpoint) not in (b, None), process)
            time.sleep(dice.uniform(0, 0.03))
        process.kill()
        assert finish(process) == -signal.SIGKILL
    assert finish(start(["--data", little, *ARGUMENTS, "--out", out, "--resume"], log)) == 0, log.read_text()
    assert_same(out, undisturbed)
    assert not list(out.glob(".*.partial"))


@pytest.mark.parametrize("at", ["open", "write", "flush", "fsync", "replace"])
def test_a_file_is_always_the_old_or_the_new_one_whenever_the_writing_process_is_killed(at, tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    path.write_bytes(b"old")
    seen = []

    def look(moment):
        if moment == at:
            seen.append((path.read_bytes(), [file.name for file in tmp_path.iterdir() if file != path]))

    class Watched(io.FileIO):
        def write(self, content):
            super().write(content[:1])
            look("write")
            return super().write(content[1:])

        def flush(self):
            look("flush")

    def opening(self, mode="r", *rest, **options):
        if self.suffix != ".partial":
            return usual(self, mode, *rest, **options)
        look("open")
        return Watched(self, "w")

    fsync, replace, usual = os.fsync, Path.replace, Path.open
    monkeypatch.setattr(Path, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda number: (look("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (look("replace"), replace(self, target)))
    files.write_bytes(path, b"new")
    monkeypatch.undo()
    partial = [] if at == "open" else [f".history.csv.{os.getpid()}.partial"]
    assert {*map(repr, seen)} == {repr((b"old", partial))}
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)], ids=lambda x: str(int(x))
)
def test_a_signal_ends_the_run_and_the_resumed_run_equals_the_uninterrupted_one(
    signum, code, start, undisturbed, little, tmp_path
):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(["--data", little, *ARGUMENTS, "--out", out], log)
    wait_for((out / CHECKPOINT).exists, process)
    os.kill(process.pid, signum)
    assert finish(process) == code
    *_, message = log.read_text().splitlines()
    assert f"interrupted by {signum.name}" in message
    assert message.endswith("--resume")
    assert signum.name in (out / ERROR).read_text()
    assert not list(out.glob(".*.partial"))
    assert finish(start(["--data", little, *ARGUMENTS, "--out", out, "--resume"], log)) == 0, log.read_text()
    assert_same(out, undisturbed)
    assert not (out / ERROR).exists()


def test_the_command_that_an_interrupted_run_prints_resumes_it(little, tmp_path):
    out = tmp_path / "a run"
    command = [sys.executable, ROOT / "train.py", "--data", little, "--epochs", "30", "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("Epoch 1/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    (line,) = err.splitlines()
    _, printed = line.split("to continue: ")
    again = subprocess.run(printed, shell=True, capture_output=True, text=True, check=True)
    assert "Resuming after epoch" in again.stdout


def test_a_second_process_is_refused_with_the_pid_and_host_of_the_first_and_a_dead_one_does_not_block(
    start, little, tmp_path, capsys
):
    out, log = tmp_path / "run", tmp_path / "log"
    long = ["--data", little, *ARGUMENTS, "--patience", 500, "--out", out, "--epochs"]
    process = start([*long, 500], log)
    wait_for((out / CHECKPOINT).exists, process)
    for arguments in ([], ["--resume"]):
        assert train.main(["--data", str(little), "--out", str(out), *arguments]) == 2
        assert f"in use by process {process.pid} on {socket.gethostname()}" in capsys.readouterr().err
    with pytest.raises(InUse, match=f"process {process.pid} on {socket.gethostname()}"):
        DirectoryLock(out).claim()
    process.kill()
    assert finish(process) == -signal.SIGKILL
    trained = len((out / HISTORY).read_text().splitlines())  # or one less
    assert finish(start([*long, trained + 1, "--resume"], log)) == 0, log.read_text()


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(npz, out, *arguments):
    return train.main(["--data", str(npz), "--epochs", "3", "--out", str(out), "--resume", *arguments])


def test_resuming_with_more_epochs_gives_the_result_of_a_run_that_had_them_from_the_start(copy, npz, tmp_path):
    assert resume(npz, copy) == 0
    assert train.main(["--data", str(npz), "--epochs", "3", "--out", str(tmp_path / "whole")]) == 0
    assert_same(copy, tmp_path / "whole")


def test_a_run_resumed_after_each_epoch_cuts_the_rate_and_stops_where_an_uninterrupted_one_does(npz, tmp_path):
    # At so small a rate no weight moves, so only the callbacks' counters determine what happens when.
    flags = {"--lr": "1e-30", "--min-lr": "3e-31", "--lr-factor": "0.4", "--lr-patience": "2", "--patience": "6"}
    arguments = ["--data", str(npz), "--dropout", "0", *[word for pair in flags.items() for word in pair]]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main([*arguments, "--epochs", "20", "--out", str(whole)]) == 0
    for epochs in range(1, 10):
        assert train.main([*arguments, "--epochs", str(epochs), "--out", str(out), "--resume"]) == 0
    assert_same(out, whole)
    assert (figures(out)["epochs"], figures(out)["stopped"]) == (7, EARLY_STOPPING)
    assert [cut["epoch"] for cut in figures(out)["learning_rate_cuts"]] == [3, 5]


def test_resuming_a_finished_run_says_so_and_changes_nothing(copy, npz, capsys):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(copy), "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0] == f"finished: {figures(copy)['test_accuracy']:.4f}, {copy}"
    assert "already finished, after epoch 2" in lines[1]
    assert json.loads(printed.out) == json.loads((copy / "metrics.json").read_text())
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_directory_whose_run_ended_before_its_first_epoch_counts_as_empty(resume, npz, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run"), *resume]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert train.main(arguments) == 143
    assert [path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")] == [ERROR]
    assert train.main(arguments) == 0
    assert not (tmp_path / "run" / ERROR).exists()


def test_a_picture_that_cannot_be_drawn_loses_no_other_results_and_is_drawn_on_resuming(
    npz, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    arguments = ["--data", str(npz), "--epochs", "1", "--out", str(out), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(train.report.plots, "curves", lambda *_: {}["latex"])
        assert train.main(arguments) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"{out}/curves.png: cannot be drawn (KeyError: 'latex'); all numbers are written"
    assert figures(out)["epochs"] == 1
    assert (out / "confusion.png").exists()
    assert not (out / "curves.png").exists()
    shown = (out / "confusion.png").read_bytes()
    (out / "confusion.png").unlink()
    (out / ERROR).write_text("killed while it drew")
    assert train.main(arguments) == 0
    assert "It had already finished" in capsys.readouterr().out
    assert (out / "curves.png").exists()
    assert (out / "confusion.png").read_bytes() == shown
    assert not (out / ERROR).exists()


def test_without_its_data_a_finished_run_is_still_reported_but_cannot_be_continued(arrays, tmp_path, capsys):
    few = tmp_path / "few.npz"
    np.savez(few, **{name: array[:10] for name, array in arrays.items()})
    arguments = ["--data", str(few), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    few.unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert train.main([*arguments, "1"]) == 0
    printed = capsys.readouterr().out
    assert "already finished, after epoch 1" in printed
    assert f"Its data cannot be read any more from {few}." in printed
    assert train.main([*arguments, "2"]) == 2
    assert f"--data {few}: no such file" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_run_that_stopped_early_stays_stopped_when_resumed_with_more_epochs(arrays, tmp_path, capsys):
    np.savez(tmp_path / "few.npz", **{name: array[:10] for name, array in arrays.items()})
    out = tmp_path / "run"
    arguments = ["--data", str(tmp_path / "few.npz"), "--lr", "1e-30", "--min-lr", "0", "--dropout", "0"]
    arguments += ["--patience", "1", "--out", str(out), "--resume", "--epochs"]
    assert train.main([*arguments, "5"]) == 0
    expected = figures(out)
    assert (expected["epochs"], expected["stopped"]) == (2, EARLY_STOPPING)
    capsys.readouterr()
    assert train.main([*arguments, "6"]) == 0
    assert "already finished, after epoch 2: early stopping." in capsys.readouterr().out
    (out / "metrics.json").unlink()  # as if killed between the last epoch and this file
    assert train.main([*arguments, "6"]) == 0
    assert figures(out) == expected


def test_the_same_data_at_another_path_are_accepted_and_different_data_refused(copy, npz, arrays, tmp_path, capsys):
    shutil.copy(npz, tmp_path / "moved.npz")
    np.savez(tmp_path / "other.npz", **arrays | {"y_train": arrays["y_train"][::-1]})
    assert resume(tmp_path / "other.npz", copy) == 2
    assert "other images or labels" in capsys.readouterr().err
    assert resume(tmp_path / "moved.npz", copy) == 0


def test_a_finished_run_is_reported_for_its_own_data_at_any_path_and_for_no_other_data(
    copy, npz, arrays, tmp_path, capsys
):
    shutil.copy(npz, tmp_path / "moved.npz")
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    arguments = ["--epochs", "2", "--out", str(copy), "--resume", "--data"]
    assert train.main([*arguments, str(tmp_path / "moved.npz")]) == 0
    assert "already finished, after epoch 2" in capsys.readouterr().out
    for name, array in arrays.items():  # one value in one of the four arrays differs
        array = array.copy()
        array[-1] = array[-1] ^ 1
        np.savez(tmp_path / f"{name}.npz", **arrays | {name: array})
        assert train.main([*arguments, str(tmp_path / f"{name}.npz")]) == 2
        assert "other images or labels" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_a_checkpoint_is_written_before_the_files_that_can_be_made_from_it(npz, tmp_path, monkeypatch):
    renamed, replace = [], os.replace

    def noting(source, target, **options):
        replace(source, target, **options)
        renamed.append(Path(target).name)

    monkeypatch.setattr(os, "replace", noting)
    out = tmp_path / "run"
    assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(out)]) == 0
    assert histories.read(out).metrics["best_epoch"] == 2  # so that each epoch writes all four files
    assert renamed[-3:] == ["metrics.json", "curves.png", "confusion.png"]  # the first says that all figures are there
    written = [name for name in renamed if name in ("checkpoint.pt", "history.csv", "best.pt", "best_weights.npz")]
    assert written[::4] == ["checkpoint.pt"] * 2
    assert sorted(written[:4]) == sorted(written[4:]) == sorted({*written})


@pytest.mark.parametrize("epochs", ["2", "3"])
def test_files_older_than_the_checkpoint_are_rewritten_on_resuming(epochs, finished, npz, tmp_path):
    # No weight moves, so the first epoch is the best one, and the epochs after resuming write no best weights.
    arguments = ["--data", str(npz), "--lr", "1e-30", "--min-lr", "0", "--dropout", "0", "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--epochs", "2"]) == 0
    names = ("history.csv", "best.pt", "best_weights.npz")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    (tmp_path / "run" / "metrics.json").unlink()  # as if killed right after the checkpoint
    for name in names:
        assert (finished / name).read_bytes() != before[name]
        shutil.copy(finished / name, tmp_path / "run" / name)
    assert train.main([*arguments, "--epochs", epochs, "--resume"]) == 0
    after = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    assert after["history.csv"].startswith(before["history.csv"])
    assert after["best.pt"] == before["best.pt"]
    assert after["best_weights.npz"] == before["best_weights.npz"]


def test_the_results_of_an_earlier_end_are_kept_until_new_ones_are_written(copy, npz, monkeypatch, capsys):
    names = ("metrics.json", "curves.png", "confusion.png")
    before = {name: (copy / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", interrupting)
        assert resume(npz, copy) == 130
    assert {name: (copy / name).read_bytes() for name in names} == before
    # No epoch was added, so the run is still a finished one of two epochs, with these figures.
    for said in ("Training ended after epoch 2 of 2", "already finished, after epoch 2"):
        assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(copy), "--resume"]) == 0
        assert said in capsys.readouterr().out
        assert {name: (copy / name).read_bytes() for name in names} == before
    # With one more epoch on disk it is unfinished, and the earlier figures are not mistaken for its own.
    with monkeypatch.context() as patch:
        patch.setattr(train.report, "end", interrupting)
        assert resume(npz, copy) == 130
    assert {name: (copy / name).read_bytes() for name in names} == before
    capsys.readouterr()
    assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(copy), "--resume"]) == 2
    assert "--epochs 2: 3 are already trained; pass 3 or more" in capsys.readouterr().err
    assert resume(npz, copy) == 0
    assert histories.read(copy).metrics["epochs"] == 3
    assert all((copy / name).read_bytes() != content for name, content in before.items())
    # A run of three epochs is no answer to a request for two.
    assert train.main(["--data", str(npz), "--epochs", "2", "--out", str(copy), "--resume"]) == 2
    assert "--epochs 2: 3 are already trained; pass 3 or more" in capsys.readouterr().err


def interrupting(*_):
    signal.raise_signal(signal.SIGINT)


def test_a_checkpoint_of_another_run_is_not_resumed(copy, npz, tmp_path, capsys):
    other = tmp_path / "other"
    assert train.main(["--data", str(npz), "--epochs", "1", "--seed", "1", "--out", str(other)]) == 0
    shutil.copy(other / CHECKPOINT, copy / CHECKPOINT)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert resume(npz, copy) == 2
    assert f"{copy / CHECKPOINT}: belongs to another run (--seed 0 (was 1)" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def changed_in_the_checkpoint(out, change):
    """Edit the checkpoint in `out` as if the run had begun with the values in `change`; returns the true ones."""
    state = torch.load(out / CHECKPOINT, weights_only=True)
    (part,) = state["run"]["parts"]
    now = {name: part[name] for name in change}
    part |= change
    torch.save(state, out / CHECKPOINT)
    return now


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("code_sha256", "0" * 40),
        ("variables", "MKL_CBWR=AVX2"),
        ("processes", 2),
        ("device", "cuda"),
        ("device_name", "abacus"),
    ],
)
def test_what_has_changed_since_the_start_is_reported_on_resuming_and_recorded_in_order(name, value, copy, npz, capsys):
    now = changed_in_the_checkpoint(copy, {name: value})[name]
    assert resume(npz, copy) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "instead of" in line]
    change = f"{name} {now!s:.40} instead of {value}"
    assert line == f"Changed since then: {change}. Results may differ from those of an uninterrupted run."
    assert histories.read(copy).metrics["bits_changed"] == [f"after epoch 2: {change}"]
    parts = json.loads((copy / CONFIG).read_text())["parts"]
    assert [(part["after_epoch"], part[name]) for part in parts] == [(0, value), (2, now)]


def test_another_machine_or_version_is_accepted_with_one_line_that_names_each_difference(copy, npz, capsys):
    config = json.loads((copy / CONFIG).read_text())
    now = {name: config[name] for name in ("device_name", "cpu_capability", "threads")} | config["versions"]
    now |= {"device": config["flags"]["device"], "dtype": "float32"}
    before = {name: value + 1 if isinstance(value, int) else f"not {value}" for name, value in now.items()}
    assert changed_in_the_checkpoint(copy, before) == now
    assert resume(npz, copy) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "instead of" in line]
    (kept,) = histories.read(copy).metrics["bits_changed"]
    for name, value in now.items():
        words = f"{name} {value} instead of {before[name]}"
        assert words in line
        assert words in kept


@pytest.mark.parametrize(
    ("name", "at"),
    [
        (CONFIG, 10),
        (CHECKPOINT, 0),
        (CHECKPOINT, 1),
        (CHECKPOINT, 1000),
        (CHECKPOINT, 4 << 20),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_the_file_that_could_not_be_written(
    name, at, copy, npz, capsys, monkeypatch
):
    good = (copy / CHECKPOINT).read_bytes()
    real = Path.open

    def full(self, mode="r", *rest, **options):
        file = real(self, mode, *rest, **options)
        if self.name != f".{name}.{os.getpid()}.partial":
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, content):
                file.write(bytes(content[:at]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(Path, "open", full)
    assert resume(npz, copy) == 1
    err = capsys.readouterr().err
    assert f"cannot write {copy / name} (No space left on device); free some" in err
    assert err.count("--resume") == 1  # the command to continue has the flag once, although this one had it already
    assert len(err.splitlines()) == 1
    assert (copy / CHECKPOINT).read_bytes() == good
    assert "No space left" in (copy / ERROR).read_text()
    monkeypatch.undo()
    assert resume(npz, copy) == 0


def test_a_log_on_a_full_disk_ends_the_run_which_can_then_be_resumed(copy, npz, capsys, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as log:  # closing it fails as well
        monkeypatch.setattr(sys, "stdout", log)
        code = resume(npz, copy)
        monkeypatch.undo()
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to standard output (No space left on device)" in line
    assert resume(npz, copy) == 0


def test_a_diverging_run_names_epoch_batch_and_rate_and_keeps_the_last_good_epoch(copy, npz, capsys, monkeypatch):
    good = (copy / CHECKPOINT).read_bytes()
    batches, taken = data.batches, []

    def spoilt(split, *rest, **options):
        for number, batch in enumerate(batches(split, *rest, **options)):
            taken.append(number)
            spoilt = float("nan") if len(split) == 256 and number == 2 else 1
            yield batch._replace(images=batch.images * spoilt)

    monkeypatch.setattr(data, "batches", spoilt)
    assert resume(npz, copy) == 1
    assert taken == [0, 1, 2]  # it ends at once
    err = capsys.readouterr().err
    for words in ("epoch 3, learning rate 0.001: the loss is not finite in batch 3", "--lr"):
        assert words in err
    assert (copy / CHECKPOINT).read_bytes() == good
    assert "not finite" in (copy / ERROR).read_text()


def test_a_non_finite_loss_is_traced_to_its_batch_even_if_not_every_batch_is_checked(
    npz, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(metrics.CHECK_EVERY, "cpu", 100)  # as on a GPU
    flags = ["--lr", "1e9", "--dropout", "0", "--batch-size", "32", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(npz), *flags]) == 1
    assert "epoch 1, learning rate 1e+09: the loss is not finite in batch 2; " in capsys.readouterr().err


def test_a_non_finite_validation_loss_is_attributed_to_an_evaluation_batch(npz, tmp_path, capsys):
    # One step, after which the weights are too large.
    flags = ["--lr", "1e9", "--dropout", "0", "--batch-size", "256", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(npz), *flags]) == 1
    err = capsys.readouterr().err
    assert "epoch 1, learning rate 1e+09: the loss is not finite in evaluation batch 1; " in err
    assert "try a smaller --lr in another --out" in err


TOGETHER = [
    "--model improved --schedule onecycle --optimizer adamw --label-smoothing 0.1",
    "--model baseline --schedule cosine --optimizer sgd --lr 0.1 --augment --weight-decay 0.1",
    "--model whitened --schedule plateau --optimizer sgd --no-augment",
    "--model baseline --schedule onecycle --optimizer adamw --dtype float64",
    pytest.param("--model improved --schedule cosine --no-shuffle --mixed-precision", marks=pytest.mark.precision),
    pytest.param("--recipe fast --seed 2", marks=pytest.mark.precision),
]


@pytest.mark.parametrize("flags", TOGETHER)
def test_options_work_together_and_an_interrupted_run_resumes_to_the_same_bits(flags, little, tmp_path, monkeypatch):
    arguments = ["--data", str(little), "--epochs", "3", "--batch-size", "24", *flags.split(), "--quiet", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main([*arguments, str(whole)]) == 0
    history = histories.read(whole).history
    assert len(history["loss"]) == 3
    assert history["loss"][-1] < history["loss"][0]

    train_epoch, epochs = train.train_epoch, iter(range(2))

    def breaking(*rest):
        if next(epochs) == 1:
            raise Diverged("not really")
        return train_epoch(*rest)

    monkeypatch.setattr(train, "train_epoch", breaking)
    assert train.main([*arguments, str(out)]) == 1
    monkeypatch.undo()
    assert train.main([*arguments, str(out), "--resume"]) == 0
    assert_same(out, whole)
    assert (out / "confusion.png").read_bytes() == (whole / "confusion.png").read_bytes()


def test_a_schedule_over_all_epochs_cannot_be_resumed_with_another_number_of_epochs(npz, tmp_path, capsys):
    arguments = ["--data", str(npz), "--schedule", "cosine", "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--epochs", "2"]) == 0
    for epochs in ("1", "3"):
        assert train.main([*arguments, "--epochs", epochs, "--resume"]) == 2
        assert f"--epochs {epochs} (was 2, which its schedule fixes)" in capsys.readouterr().err
