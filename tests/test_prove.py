"""reference/prove.py: equal runs are reported as equal, and a deliberate difference is found and named."""

import json

import pytest
from test_keras import data_file, float64

import optim
from reference import keras_notebook, prove

__all__ = ["float64"]  # a fixture


@pytest.fixture
def proved(float64, tmp_path, monkeypatch):
    """Run the command with Keras in this process, with the rounding of TensorFlow; returns exit code and proof."""
    data_file(tmp_path / "data.npz", 100)

    def keras_here(job):
        return keras_notebook.main(job.command[job.command.index("--draws") :])

    monkeypatch.setattr(prove, "run_keras", keras_here)
    monkeypatch.setattr(prove.KerasSide, "refuse_without", lambda *_, **__: None)
    monkeypatch.setitem(prove.ROUNDING, "torch", prove.ROUNDING["tensorflow"])

    def run(*flags):
        out = tmp_path / "proof"
        code = prove.main(["--data", str(tmp_path / "data.npz"), "--epochs", "2", "--out", str(out), *flags])
        return code, json.loads((out / "proof.json").read_text())

    return run


@pytest.mark.parametrize("flags", [(), ("--model", "improved", "--shift", "2")])
def test_runs_that_are_equal_up_to_rounding_are_reported_as_equal(flags, proved, tmp_path, capsys):
    code, proof = proved(*flags)
    assert code == 0, proof["verdict"]
    printed = capsys.readouterr().out
    assert "Equal to rounding in all 2 epochs: no relative difference is above 1e-09." in printed
    assert proof["figures"]["val_accuracy"] == {"difference": 0.0, "epoch": 1}
    assert max(figure["difference"] for figure in proof["figures"].values()) < 1e-9
    assert (tmp_path / "proof" / "proof.png").exists()
    assert "keras 3." in printed


def test_a_data_folder_that_neither_side_uses_may_hold_anything(proved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x_train.npy").touch()
    assert proved()[0] == 0


def test_a_deliberate_difference_is_found_and_named(proved, monkeypatch, capsys):
    monkeypatch.setattr(optim, "EPSILON", 1e-8)  # torch's
    code, proof = proved()
    assert code == 1
    assert proof["equal"] is False
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Not equal: "))
    assert line.startswith("Not equal: the two sides first differ in epoch 1, ")
    assert line.endswith(").")
    assert proof["by_epoch"]["val_loss"][0] > 1e-9


def test_runs_with_different_numbers_of_epochs_are_not_equal():
    epochs = [{"loss": 1.0}] * 3
    text = prove.where_they_part({"loss": [0.0] * 2}, [epochs[:2], epochs], [2, 3], [], 1e-9)
    assert text == "Not equal: Keras trained 2 epochs, PyTorch 3; the epochs that both have are equal."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model", "whitened"],
            "--model whitened: reference/notebook.py has no such network in Keras; add a function",
        ),
        (["--optimizer", "sgd"], "--optimizer sgd: reference/keras_notebook.py does not have this; leave it out"),
        (["--images", "3"], "argument --images: '3' is not a whole number"),
    ],
)
def test_what_the_keras_side_cannot_do_is_refused(flags, message, little, tmp_path, capsys):
    assert prove.main(["--data", str(little), "--out", str(tmp_path / "proof"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def starts_of_keras(monkeypatch):
    """One entry for each time that Keras would be started to see if it works, which takes seconds and is skipped."""
    starts = []
    monkeypatch.setattr(prove.KerasSide, "refuse_without", lambda self, download: starts.append(self))
    return starts


def test_a_folder_that_holds_something_else_is_not_emptied(little, tmp_path, starts_of_keras, capsys):
    (tmp_path / "thesis.txt").touch()
    assert prove.main(["--data", str(little), "--out", str(tmp_path)]) == 2
    assert "holds something other than an earlier proof" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert starts_of_keras == []


def test_an_earlier_proof_is_kept_if_the_next_one_cannot_start(little, tmp_path, starts_of_keras, capsys):
    out = tmp_path / "proof"
    out.mkdir()
    for name in (prove.MARK, "proof.json", "data.npz"):
        (out / name).touch()
    (out / "data.npz").write_bytes(little.read_bytes())
    for flags, message, starts in (
        (["--data", str(little), "--optimizer", "sgd"], "--optimizer sgd: ", 0),
        (["--data", str(out / "data.npz")], "lies in --out", 0),
        (["--data", str(tmp_path / "none.npz")], "no such file", 1),
    ):
        assert prove.main([*flags, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert len(starts_of_keras) == starts
    assert sorted(path.name for path in out.iterdir()) == [".proof", "data.npz", "proof.json"]
