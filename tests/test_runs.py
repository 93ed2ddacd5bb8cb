import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
import torch

import report
import train
from callbacks import History
from cli.errors import BadInput, CannotWrite
from options import Options
from running import checkpoint, files, history, machine
from running.directory import Run
from running.outcome import ALL_EPOCHS, EARLY_STOPPING, FILES, FINISHED, HISTORY, outcome


def at(out):
    return Run(Options(out=out)).claimed()


def logs(epoch, learning_rate=1e-3):
    values = {
        "accuracy": 0.3 + epoch / 7,
        "loss": 2 / (epoch + 1),
        "val_accuracy": 0.5,
        "val_loss": 1e-5 / 3,
        "learning_rate": learning_rate,
    }
    return {name: float(np.float32(value)) for name, value in values.items()}


def test_history_csv_equals_byte_for_byte_what_the_csv_logger_of_keras_writes_in_a_real_fit(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    logger = keras.callbacks.CSVLogger(tmp_path / "keras.csv")
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 3)), random.integers(0, 2, 40)
    fitted = model.fit(x, y, validation_split=0.2, epochs=4, verbose=0, callbacks=[plateau, logger])
    columns = fitted.history
    history.write(
        tmp_path / "ours.csv", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "keras.csv").read_bytes()


def test_history_csv_has_the_header_line_ends_and_float32_values_of_keras(tmp_path):
    history.write(tmp_path / "history.csv", [logs(0)])
    header, row, rest = (tmp_path / "history.csv").read_bytes().split(b"\r\n")
    assert header == b"epoch,accuracy,learning_rate,loss,val_accuracy,val_loss"
    assert row.startswith(b"0,0.30000001192092896,0.0010000000474974513,2.0,0.5,")
    assert rest == b""


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"first": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space"):
        files.write_json(path, {"second": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"first": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]  # its space is free again


def test_two_processes_that_write_the_same_file_at_once_leave_one_complete_version(tmp_path, monkeypatch):
    path, whole = tmp_path / "comparison.json", {"one": "1" * 9999}
    fsync, other = os.fsync, multiprocessing.get_context("fork")

    def meanwhile(descriptor):  # as two sweeps that end at once
        fsync(descriptor)
        monkeypatch.undo()
        process = other.Process(target=files.write_json, args=(path, {"other": 2}))
        process.start()
        process.join()
        assert process.exitcode == 0

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_json(path, whole)
    assert json.loads(path.read_text()) == whole
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.json"]


def test_an_unreadable_file_is_named_with_the_reason_and_no_advice_to_delete_it(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_text("{}")
    monkeypatch.setattr("io.open", denied)
    monkeypatch.setattr("builtins.open", denied)
    for read, named in (
        (files.read_json, ""),
        (lambda path: files.read_npz("--data", path), "--data "),
        (lambda path: checkpoint.read(path, {}), ""),
    ):
        with pytest.raises(BadInput) as refused:
            read(tmp_path / "file")
        assert str(refused.value) == f"{named}{tmp_path}/file: cannot be read (Permission denied)"


def test_nan_is_never_written_to_a_json_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_same_weights_make_the_same_file_whatever_their_memory_layout(tmp_path):
    kernel = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    files.write_weights(tmp_path / "a.pt", {"kernel": kernel})
    files.write_weights(tmp_path / "b.pt", {"kernel": kernel.to(memory_format=torch.channels_last)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["kernel"], kernel)


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "history.csv",
        "metrics.json",
        "best.pt",
        "curves.png",
        "confusion.png",
        "initial_weights.npz",
        "best_weights.npz",
        "checkpoint.pt",
    ],
)
def test_a_directory_with_any_file_of_a_run_is_refused_and_left_as_it_is(tmp_path, file):
    (tmp_path / file).touch()
    with pytest.raises(BadInput, match="already holds a run") as error, at(tmp_path):
        pass
    for way in (str(tmp_path), file, "--resume", "another --out", "--seed", "delete"):
        assert way in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_directory_without_a_run_is_accepted_and_a_missing_one_is_created(tmp_path):
    (tmp_path / "notes.txt").touch()
    for out in (tmp_path, tmp_path / "a" / "b"):
        with at(out):
            assert not [name for name in FILES if (out / name).exists()]
    assert (tmp_path / "notes.txt").exists()


def test_the_partial_file_of_a_killed_process_is_removed_and_nothing_else(tmp_path):
    (tmp_path / f".history.csv.{os.getpid()}.partial").touch()
    (tmp_path / ".mine.partial").touch()
    with at(tmp_path):
        assert not [*tmp_path.glob(".history.csv.*")]
        assert (tmp_path / ".mine.partial").exists()


def test_a_file_in_the_way_of_the_directory_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for out, reason in ((file, "File exists"), (file / "run", "Not a directory")):
        with (
            pytest.raises(BadInput, match=rf"{out}: cannot make that folder \({reason}\); pass another --out"),
            at(out),
        ):
            pass


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    def denied(*_, **__):  # the tests may run as root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for call, out, fault in (
        ("pathlib.Path.mkdir", tmp_path / "a" / "b", "cannot make that folder"),
        ("filelock.FileLock.acquire", tmp_path, "cannot write there"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(call, denied)
            with pytest.raises(BadInput, match=rf"{fault} \(Permission denied\); pass another --out"), at(out):
                pass
    assert not [*tmp_path.iterdir()]


def test_learning_rate_cuts_are_the_epochs_after_which_the_rate_changes():
    history = [logs(0), logs(1), logs(2, 5e-4), logs(3, 5e-4)]
    after = [logs(0)["learning_rate"], *[logs(2, 5e-4)["learning_rate"]] * 2, logs(3, 2.5e-4)["learning_rate"]]
    schedule = types.SimpleNamespace()
    log = History(history[0], schedule)
    for epoch, (figures, schedule.rate) in enumerate(zip(history, after, strict=True)):
        log.after_epoch(epoch, figures)
    assert log.cuts == [
        {"epoch": 2, "learning_rate": after[1]},
        {"epoch": 4, "learning_rate": after[3]},
    ]


def test_the_reading_says_what_the_curves_show():
    history = [
        {"accuracy": 0.4, "val_accuracy": 0.5, "loss": 1.8, "val_loss": 1.4},
        {"accuracy": 0.75, "val_accuracy": 0.7, "loss": 0.8, "val_loss": 0.9},
        {"accuracy": 0.8, "val_accuracy": 0.69, "loss": 0.7, "val_loss": 0.95},
    ]
    metrics = {
        "best_epoch": 2,
        "learning_rate_cuts": [{"epoch": 3, "learning_rate": 5e-4}],
        "stopped": EARLY_STOPPING,
        "final": True,
    }
    assert report.reading(history, metrics, 50, cutting=True).splitlines() == [
        "Accuracy          training  validation",
        "  first epoch 1     0.4000      0.5000",
        "  best epoch 2      0.7500      0.7000",
        "  last epoch 3      0.8000      0.6900",
        "At the best epoch training accuracy is 5.0 points above validation.",
        "Learning rate cut to 0.0005 after epoch 3.",
        "Validation loss has not improved since epoch 2 (0.9000).",
        "Training ended after epoch 3 of 50: early stopping.",
    ]


def test_the_reading_covers_a_best_last_epoch_and_claims_no_trend_from_a_single_epoch():
    history = [{"accuracy": 0.4, "val_accuracy": 0.5, "loss": 1.8, "val_loss": 1.4}] * 2
    metrics = {"learning_rate_cuts": [], "stopped": ALL_EPOCHS, "final": True}
    assert report.reading(history, metrics | {"best_epoch": 2}, 2, cutting=True).splitlines()[4:] == [
        "At the best epoch training accuracy is 10.0 points below validation.",
        "The learning rate was never cut.",
        "Validation loss was lowest in the last epoch (1.4000).",
        "Training ended after epoch 2 of 2: all epochs used.",
    ]
    of_one = report.reading(history[:1], metrics | {"best_epoch": 1}, 1, cutting=True).splitlines()
    assert of_one[6] == "One epoch does not show a trend in validation loss."


def test_the_reading_of_an_incomplete_run_says_that_resume_continues_it():
    history = [{"accuracy": 0.4, "val_accuracy": 0.5, "loss": 1.8, "val_loss": 1.4}]
    metrics = {"best_epoch": 1, "learning_rate_cuts": [], "stopped": "out of time", "final": False}
    assert report.reading(history, metrics, 9, cutting=True).splitlines()[-2:] == [
        "Training ended after epoch 1 of 9: out of time.",
        "The run is not complete: --resume continues it.",
    ]


def test_confused_pairs_are_counted_in_both_directions_and_classes_without_images_have_no_accuracy():
    names = ("cat", "dog", "ship", "frog")
    confusion = [[5, 3, 1, 0], [2, 6, 0, 0], [0, 0, 9, 0], [0, 0, 0, 0]]
    assert report.most_confused(confusion, names) == "Most confused: cat and dog (5), cat and ship (1)."
    assert report.most_confused([[3, 0], [0, 4]], names[:2]) == "No image was predicted as another class."
    assert report.per_class(confusion, names) == {
        "cat": {"images": 9, "accuracy": 5 / 9},
        "dog": {"images": 8, "accuracy": 6 / 8},
        "ship": {"images": 9, "accuracy": 1.0},
        "frog": {"images": 0, "accuracy": None},
    }


def repository(folder, *commands):
    for command in (["init", "-q"], *commands):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=folder, check=True)


def test_the_commit_is_from_the_codes_own_repository_and_is_marked_dirty_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    repository(tmp_path, ["add", "."], ["commit", "-qm", "around it"])
    assert machine._git_commit() is None  # the commit of a repository around the code says nothing about it
    repository(tmp_path / "code", ["add", "."], ["commit", "-qm", "its own"])
    commit = machine._git_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "code" / "a.py").write_text("2")
    assert machine._git_commit() == f"{commit}-dirty"


@pytest.mark.parametrize("setting", ["diff.external=true", "diff.external=echo x", "color.ui=always", "diff.context=0"])
def test_the_commit_does_not_depend_on_the_users_git_settings(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("1")
    repository(tmp_path, ["add", "."], ["commit", "-qm", "a"])
    clean = machine._git_commit()
    repository(tmp_path, ["config", *setting.split("=")])
    assert machine._git_commit() == clean
    (tmp_path / "a.py").write_text("2")
    assert machine._git_commit() == f"{clean}-dirty"


@pytest.mark.parametrize("content", ['loss\n0,"1"x', "loss\nhigh\n", "loss\n1,2\n", "", "\0"])
def test_a_finished_run_with_a_damaged_history_is_still_finished(content, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / HISTORY).write_text(content)
    assert outcome(tmp_path / "run").kind == FINISHED
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert "It had already finished, after epoch 2" in capsys.readouterr().out
