"""compare.py --list: a table with a row for each run."""

import csv
import io
import json
import shutil

import pytest

import compare


@pytest.fixture
def many(finished, tmp_path):
    """Four runs with different validation accuracies, at two learning rates; the last one was interrupted."""
    for number, (rate, accuracy) in enumerate(((0.001, 0.5), (0.002, 0.7), (0.001, 0.6), (0.002, 0.4))):
        run = shutil.copytree(finished, tmp_path / "deep" / "runs" / f"r{number}")
        config = json.loads((run / "config.json").read_text())
        config["flags"] |= {"lr": rate, "seed": number}
        (run / "config.json").write_text(json.dumps(config))
        rows = list(csv.DictReader((run / "history.csv").open()))
        best = min(rows, key=lambda row: float(row["val_loss"]))
        best["val_accuracy"] = str(accuracy)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
        (run / "history.csv").write_text(text.getvalue())
        metrics = json.loads((run / "metrics.json").read_text())
        metrics |= {"seed": number, "test_accuracy": 0.9 - accuracy}  # the worse, the better on the test images
        metrics["best_epoch_logs"]["val_accuracy"] = accuracy
        (run / "metrics.json").write_text(json.dumps(metrics))
        if number == 3:
            (run / "metrics.json").unlink()
            (run / "error.txt").write_text("OSError: disk full\n")
    return tmp_path / "deep"


def listed(capsys, *arguments):
    code = compare.main(["--list", *map(str, arguments)])
    return code, capsys.readouterr()


def test_a_history_of_another_program_adds_no_columns_for_settings_that_it_lacks(many, capsys):
    shutil.copy(many / "runs" / "r0" / "history.csv", many / "mine.csv")
    code, printed = listed(capsys, many / "runs" / "r0", many / "runs" / "r1", many / "mine.csv")
    assert code == 0
    header = printed.out[printed.out.index("  run ") :].splitlines()[0].split()
    assert header == ["run", "lr", "seed", "val_accuracy", "test", "epochs", "best", "minutes", "state"]


def test_runs_are_sorted_by_validation_and_shown_with_their_differences_and_how_they_ended(many, capsys):
    code, printed = listed(capsys, many / "runs" / "*", "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    of_each = ["val_accuracy", "test", "epochs", "best", "minutes", "state"]
    assert [*rows[0]] == ["run", "lr", "data", "seed", *of_each]
    assert {row["run"].rpartition("/")[0] for row in rows} == {str(many / "runs")}
    assert [(row["run"][-2:], row["lr"], row["val_accuracy"]) for row in rows] == [
        ("r1", "0.002", "0.7000"),
        ("r2", "0.001", "0.6000"),
        ("r0", "0.001", "0.5000"),
        ("r3", "0.002", "0.4000"),
    ]
    assert [row["state"] for row in rows[:3]] == ["all epochs used"] * 3
    assert rows[3]["state"] == "unfinished: no metrics.json; it ended with: OSError: disk full"
    assert rows[3]["minutes"] == "-"


def test_the_list_is_a_table_in_text_and_markdown(many, capsys):
    _, printed = listed(capsys, many / "runs" / "*")
    shared, _, row = printed.out.splitlines()[:3]
    assert shared == f"All are in {many}/runs."
    assert row.split()[:4] == ["1", "r1", "0.002", "1"]
    _, printed = listed(capsys, many / "runs" / "*", "--markdown")
    assert printed.out.splitlines()[2].startswith("| ---")


def test_the_list_marks_the_stand_in_once_if_all_runs_use_it_and_otherwise_row_by_row(many, capsys):
    for number in range(4):
        config = json.loads((many / "runs" / f"r{number}" / "config.json").read_text())
        config |= {"data": "NOT CIFAR-10", "data_sha256": "0123456789"}
        (many / "runs" / f"r{number}" / "config.json").write_text(json.dumps(config))
        (many / "runs" / f"r{number}" / "metrics.json").unlink(missing_ok=True)
        _, printed = listed(capsys, many / "runs" / "*")
        assert ("All runs use the stand-in data, NOT CIFAR-10." in printed.out) is (number == 3)
        assert printed.out.count("01234567 (NOT CIFAR-10)") == (number + 1 if number < 3 else 0)


def test_a_folder_that_is_not_a_run_is_named_and_the_runs_are_listed(many, capsys):
    (many / "runs" / "notes").mkdir()
    code, printed = listed(capsys, many / "runs" / "*")
    assert code == 2
    assert printed.err == f"left out: {many}/runs/notes: no training history in that folder; pass the file\n"
    assert len(printed.out.splitlines()) == 6


@pytest.mark.parametrize("also", ["sweep.log", "initial_weights.npz"])
def test_a_run_in_its_first_epoch_is_named_as_such(also, many, capsys):
    run = many / "runs" / "begun"
    run.mkdir()
    shutil.copy(many / "runs" / "r0" / "config.json", run)
    (run / also).touch()
    code, printed = listed(capsys, many / "runs" / "*")
    assert code == 2
    assert printed.err == f"left out: {run}: no epoch of this run has finished yet\n"


@pytest.mark.parametrize("name", ["grid.json", "grid.png", "comparison.json", "comparison.png"])
def test_a_pattern_skips_the_files_that_sweep_and_compare_write_beside_runs(name, many, capsys):
    (many / "runs" / name).touch()
    code, printed = listed(capsys, many / "runs" / "*")
    assert (code, printed.err, len(printed.out.splitlines())) == (0, "", 6)
    assert compare.main(["--list", *map(str, (many / "runs").iterdir())]) == 0  # as a shell gives them
    assert compare.main(["--list", str(many / "runs" / name)]) == 2  # refused where it is named


def test_incomplete_data_in_the_default_folder_do_not_disturb_the_list(many, monkeypatch, capsys):
    monkeypatch.chdir(many)
    (many / "data").mkdir()
    (many / "data" / "x_train.npy").touch()
    assert listed(capsys, "runs/*")[0] == 0


def test_histories_of_other_programs_are_listed_with_the_figures_that_they_have(tmp_path, capsys):
    (tmp_path / "keras.csv").write_text("epoch,loss,val_accuracy,val_loss\n0,1.0,0.5,1.2\n")
    code, printed = listed(capsys, tmp_path / "keras.csv")
    assert code == 0
    assert printed.out.splitlines()[1].split() == ["1", str(tmp_path / "keras.csv"), "0.5000", "-", "1", "1", "-", "-"]


def test_csv_without_a_list_is_refused(capsys):
    assert compare.main(["runs/x", "--csv"]) == 2
    assert "--csv: needs --list" in capsys.readouterr().err
