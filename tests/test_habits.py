"""What people type, paste and expect, and what they are told."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import compare
import plots
import predict
import report
import sweep
import train
from cli.errors import BadInput, Interrupted
from options import Options


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--batch_size", "64"], "--batch-size"),
        (["--learning-rat", "1"], None),
        (["--epoch", "3"], "--epochs"),
        (["--weight_decay=0.1"], "--weight-decay"),
    ],
)
def test_a_misspelt_option_is_refused_and_a_similar_one_suggested(words, meant, capsys):
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: unrecognized arguments: ")
    assert (f"; did you mean {meant}? (see --help)" in line) is (meant is not None)


def test_every_help_has_two_examples_and_shows_no_default_as_none_or_false(capsys):
    for command in (train, compare, predict, sweep):
        assert command.main(["--help"]) == 0
        text = capsys.readouterr().out
        examples = text[text.index("examples:") :]
        assert examples.count(f"    python {command.__name__}.py ") >= 2
        assert "default: None" not in text
        assert "default: False" not in text
    assert "the same command, given again, continues" in text.replace("\n", " ")


def test_with_json_standard_output_is_a_single_object_equal_to_metrics_json(little, tmp_path, capsys):
    arguments = ["--data", str(little), "--epochs", "1", "--out", str(tmp_path / "run"), "--json", "--quiet"]
    for more in ([], ["--resume"]):
        assert train.main([*arguments, *more]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert "Test accuracy: " in printed.err


def test_any_option_can_be_a_placeholder_in_the_name_of_the_directory():
    given = Options(out="runs/<model>-lr<lr>-<batch-size>-seed<seed>", lr=0.01).checked()
    assert str(given.out) == "runs/baseline-lr0.01-64-seed0"
    with pytest.raises(BadInput, match="<rate> is not an option"):
        Options(out="runs/<rate>").checked()


def test_classes_missing_from_the_validation_part_of_sorted_arrays_are_reported(arrays, tmp_path, capsys):
    order = np.argsort(arrays["y_train"], kind="stable")
    sorted_arrays = {name: arrays[name][order] for name in ("x_train", "y_train")}
    np.savez(tmp_path / "sorted.npz", **arrays | sorted_arrays)
    assert train.main(["--data", str(tmp_path / "sorted.npz"), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    line = "No validation image is labelled class 0, class 1, class 2, class 3, class 4 and 3 more, "
    why = "the last training images are for validation, so shuffle sorted arrays first"
    assert f"{line}but some training images are: {why}.\n" in capsys.readouterr().out


def test_equal_accuracies_and_a_single_thread_are_worded_correctly(little, tmp_path, capsys):
    logs = [{"accuracy": 0.5, "val_accuracy": 0.5, "loss": 1.0, "val_loss": 1.0}]
    metrics = {"best_epoch": 1, "learning_rate_cuts": [], "stopped": "all epochs used", "final": True}
    text = report.reading(logs, metrics, 1, cutting=True)
    assert "At the best epoch training accuracy is equal to validation." in text
    flags = ["--data", str(little), "--epochs", "1", "--out", str(tmp_path / "run"), "--threads", "1"]
    assert train.main(flags) == 0
    assert ", 1 thread, float32\n" in capsys.readouterr().out


def test_signal_handlers_are_restored_after_an_interrupted_command(little, tmp_path, monkeypatch):
    def stop(*_):
        signal.raise_signal(signal.SIGINT)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.setattr(train, "train_epoch", stop)
    assert train.main(["--data", str(little), "--epochs", "1", "--out", str(tmp_path / "run")]) == 130
    assert {signum: signal.getsignal(signum) for signum in before} == before


def test_a_pattern_that_the_shell_left_unexpanded_is_expanded(finished, arrays, tmp_path, capsys):
    for number in range(2):
        Image.fromarray(arrays["x_test"][number]).save(tmp_path / f"{number}.png")
    assert predict.main([str(finished), str(tmp_path / "*.png"), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert all(line.count("%") == 2 for line in lines)
    assert predict.main([str(finished), str(tmp_path / "*.jpg")]) == 2


def test_predictions_can_be_output_as_json_and_csv(finished, arrays, tmp_path, capsys):
    path = tmp_path / "a, b.png"
    Image.fromarray(arrays["x_test"][0]).save(path)
    table = tmp_path / "answers.csv"
    broken = tmp_path / "broken.png"
    broken.touch()
    assert predict.main([str(finished), str(path), str(broken), "--json", "--csv", str(table), "--top", "3"]) == 2
    answers = json.loads(capsys.readouterr().out)
    assert [*answers] == [str(path)]
    assert [*answers[str(path)][0]] == ["class", "probability"]
    rows = table.read_text().splitlines()
    assert rows[0] == "path,class,probability"
    assert rows[1] == f'"{path}",{answers[str(path)][0]["class"]},{answers[str(path)][0]["probability"]}'
    assert len(rows) == 4


def test_answers_overwrite_only_earlier_answers(finished, arrays, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(arrays["x_test"][0]).save(picture)
    before = picture.read_bytes()
    for table, message in (
        (picture, "exists, and was not written by predict.py"),
        (tmp_path / "no" / "x.csv", "does not exist; create it"),
    ):
        assert predict.main([str(finished), str(picture), "--csv", str(table)]) == 2
        assert message in capsys.readouterr().err
    assert picture.read_bytes() == before
    for _ in range(2):
        assert predict.main([str(finished), str(picture), "--csv", str(tmp_path / "x.csv")]) == 0


def test_a_folder_that_a_pattern_matches_stands_for_its_images(finished, arrays, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    Image.fromarray(arrays["x_test"][0]).save(tmp_path / "deep" / "a.png")
    assert predict.main([str(finished), str(tmp_path / "*")]) == 0
    assert "deep/a.png: " in capsys.readouterr().out


def test_a_comparison_is_written_to_a_folder_of_its_own_and_its_files_are_named(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert compare.main([str(finished)]) == 0
    assert [*os.listdir()] == ["comparison"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Picture: comparison/comparison.png",
        "Figures: comparison/comparison.json",
    ]


def test_a_refusal_to_pool_runs_comes_first_with_a_line_for_each_reason(finished, tmp_path, capsys):
    for number, rate in enumerate((0.001, 0.01, 0.02)):
        run = shutil.copytree(finished, tmp_path / f"a{number}")
        config = json.loads((run / "config.json").read_text())
        config["flags"]["lr"] = rate
        (run / "config.json").write_text(json.dumps(config))
        history = (run / "history.csv").read_text()
        (run / "history.csv").write_text(history.replace("e-", f"{number}e-") if number else history)
    assert compare.main([f"a={tmp_path}/a*", "--out", str(tmp_path / "compared")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0]
        == "compare.py: error: these runs do not belong together; leave some out, or pass --mixed to pool them:"
    )
    assert f"  lr: 0.01 in {tmp_path}/a1, 0.001 in {tmp_path}/a0" in lines
    assert f"  lr: 0.02 in {tmp_path}/a2, 0.001 in {tmp_path}/a0" in lines


def test_a_second_sweep_with_a_changed_option_is_told_how_to_name_its_directories(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "s0")
    flags = json.loads((finished / "config.json").read_text())["flags"]
    behind = ["--data", flags["data"], "--epochs", "2", "--lr", "0.01", "--out", str(tmp_path / "s<seed>")]
    assert sweep.main(["--seeds", "0", "--", *behind]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--lr 0.01 (was 0.001); pass another --out after --, such as 'runs/<name><data>-lr_<lr>-seed<seed>'" in line


def test_a_tilde_in_a_path_is_expanded_in_python_too_and_the_run_can_be_repeated(little, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(little.parent))
    run = tmp_path / "run"
    train.train(Options(data=f"~/{little.name}", epochs=1, out=run))
    config = json.loads((run / "config.json").read_text())
    assert config["given"]["data"] == config["flags"]["data"] == str(little)
    assert train.main(["--config", str(run), "--out", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize("name", ["history.csv", "best_weights.npz", "best.pt"])
def test_a_missing_file_of_a_finished_run_is_recreated_from_its_checkpoint(name, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / name).read_bytes()
    (run / name).unlink()
    assert train.main(["--resume", str(run)]) == 0
    assert (run / name).read_bytes() == before


def test_a_finished_run_without_its_initial_weights_and_checkpoint_still_counts_as_finished(
    finished, little, tmp_path, capsys
):
    start, run = shutil.copy(finished / "initial_weights.npz", tmp_path / "start.npz"), tmp_path / "run"
    arguments = ["--data", json.loads((finished / "config.json").read_text())["flags"]["data"], "--epochs", "1"]
    assert train.main([*arguments, "--init-weights", str(start), "--out", str(run)]) == 0
    os.unlink(start)
    (run / "checkpoint.pt").unlink()
    assert train.main(["--resume", str(run)]) == 0
    assert "finished: " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("optimizer", np.array(["adam", "sgd"])), ("recipe", ["fast"])])
def test_a_value_that_is_not_text_is_refused_where_a_name_is_expected(name, value):
    with pytest.raises(BadInput, match=f"^{name}: "):
        Options(**{name: value})


# --- in Python --------------------------------------------------------------------------------------------------------


def test_setting_an_attribute_that_is_not_an_option_is_refused():
    with pytest.raises(AttributeError, match="no option learningrate"):
        Options().learningrate = 0.1


def test_an_invalid_value_is_refused_as_soon_as_the_options_are_made():
    with pytest.raises(BadInput, match=r"^lr: 'fast' is not a number"):
        Options(lr="fast")


def test_errors_in_python_spell_options_as_python_does(finished):
    flags = json.loads((finished / "config.json").read_text())["flags"]
    with pytest.raises(BadInput, match=r"already holds a run .*; resume it with resume=True, pass another out"):
        train.train(Options(data=flags["data"], epochs=2, out=finished))


def test_errors_in_python_leave_paths_with_dashes_as_they_are():
    with pytest.raises(BadInput, match=r"^data photos--small/a--resume\.npz: no such file"):
        train.train(Options(data="photos--small/a--resume.npz", out="runs/x"))


def test_the_history_is_shown_as_a_table_and_has_columns_as_in_keras(little, tmp_path):
    _, history = train.train(Options(data=str(little), epochs=2, out=tmp_path / "run"))
    header, *rows = repr(history).splitlines()
    assert header.split() == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert history.history["val_loss"] == [row["val_loss"] for row in history.logs]


def test_the_docstring_of_options_says_what_each_of_them_is_for():
    assert "batch_size: images per step (default: 64)" in Options.__doc__
    assert all(f"{field.name}: " in Options.__doc__ for field in dataclasses.fields(Options))


@pytest.mark.pictures
def test_both_pictures_may_go_without_a_title():
    logs = {"accuracy": 0.4, "val_accuracy": 0.5, "loss": 1.8, "val_loss": 1.4, "learning_rate": 1e-3}
    for picture in (plots.curves([logs], 1), plots.confusion([[1, 0], [0, 1]], ("a", "b"))):
        assert picture.startswith(b"\x89PNG")


def test_an_interruption_names_its_signal():
    assert str(Interrupted(signal.SIGINT)) == "interrupted by SIGINT"
