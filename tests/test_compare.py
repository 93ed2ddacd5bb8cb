import json
import math
import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

import compare
from harness import intervals
from harness.histories import Training

HEADER = "epoch,accuracy,learning_rate,loss,val_accuracy,val_loss"
EPOCHS = [
    "0,0.4,0.001,1.8,0.5,1.5",
    "1,0.5,0.001,1.5,0.6,1.2",
    "2,0.6,0.001,1.3,0.58,1.3",
    "3,0.6,0.0005,1.2,0.59,1.25",
]


@pytest.fixture
def make_run(tmp_path):
    """Write a run's directory with some test accuracy; further metrics by name."""

    def make(name, test_accuracy, **metrics):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "history.csv").write_text("\r\n".join([HEADER, *EPOCHS, ""]))
        content = {
            "test_accuracy": test_accuracy,
            "learning_rate_after_epoch": [0.001, 0.001, 0.0005, 0.00025],
            "seconds_per_epoch": [9.0, 2.0, 3.0, 4.0],
            "images_per_second": 12345.0,
        }
        (folder / "metrics.json").write_text(json.dumps(content | metrics))
        return folder

    return make


@pytest.fixture
def result(tmp_path, capsys):
    """Run compare.py; returns exit code, terminal text and comparison.json."""

    def run(*arguments):
        out = tmp_path / "comparison"
        code = compare.main([*map(str, arguments), "--out", str(out)])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, printed.out, json.loads((out / "comparison.json").read_text())

    return run


def row(text, name):
    return next(line[len(name) :].split() for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 2.7, 3, 5, 9, 17.5, 60, 1000, 1e6])
def test_the_t_quantile_is_scipy_s(freedom):
    assert intervals.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)


def test_one_run_of_each_is_described_figure_by_figure(make_run, result):
    code, text, content = result(make_run("k", 0.7), make_run("t", 0.71))
    assert code == 0
    (described,) = next(iter(content["groups"].values()))["runs"]
    assert described.pop("path").endswith("k")
    assert described == {
        "epochs": 4,
        "best epoch": 2,
        "best val_loss": 1.2,
        "val_accuracy there": 0.6,
        "test accuracy": 0.7,
        "learning-rate cuts": 2,
        "cut after epochs": [3, 4],
        "seconds per epoch": 3.5,
        "images per second": 12345.0,
    }
    assert row(text, "test accuracy") == ["0.7000", "0.7100"]
    assert row(text, "best epoch") == ["2", "2"]
    assert row(text, "  after epochs") == ["3,", "4", "3,", "4"]
    assert "+0.0100 (1" not in text  # no seeds, no weights: no pair
    assert "No interval: it takes two runs or pairs; a difference of 1 point cannot be excluded." in text


def test_the_picture_shows_the_histories_of_all_groups(make_run, result, tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or savefig(figure, *a, **k))
    result(f"k={make_run('k', 0.7)}", f"t={make_run('t', 0.7)}")
    assert Image.open(tmp_path / "comparison" / "comparison.png").size == (1400, 450)
    (figure,) = figures
    accuracy, loss, rate = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["k", "t"]
    columns = {accuracy: [[0.4, 0.5, 0.6, 0.6], [0.5, 0.6, 0.58, 0.59]], rate: [[0.001, 0.001, 0.001, 0.0005]]}
    columns[loss] = [[1.8, 1.5, 1.3, 1.2], [1.5, 1.2, 1.3, 1.25]]
    for axes, values in columns.items():
        assert [[*line.get_ydata()] for line in axes.get_lines()] == values * 2


def test_a_group_has_mean_standard_deviation_and_interval_as_scipy_computes_them(make_run, result, tmp_path):
    accuracies = [0.70, 0.72, 0.69, 0.705]
    for number, accuracy in enumerate(accuracies):
        make_run(f"t{number}", accuracy)
    _, text, content = result(f"torch={tmp_path}/t*")
    found = content["groups"]["torch"]["estimates"]["test accuracy"]
    mean, standard_error = np.mean(accuracies), stats.sem(accuracies)
    low, high = stats.t.interval(0.95, 3, mean, standard_error)
    assert found["n"] == 4
    assert found["mean"] == pytest.approx(mean)
    assert found["sd"] == pytest.approx(statistics.stdev(accuracies))
    assert found["interval"] == pytest.approx([low, high], rel=1e-9)
    assert row(text, "test accuracy") == [f"{mean:.4f}", "±", f"{statistics.stdev(accuracies):.4f}"]
    assert row(text, "  its 95 % interval") == [f"{low:.4f}", "to", f"{high:.4f}"]
    assert content["test_accuracy_difference"] is None


FIRST, SECOND = [0.70, 0.72, 0.69, 0.705], [0.701, 0.724, 0.688, 0.709]


def groups_of(make_run, tmp_path, shared):
    for number, (first, second) in enumerate(zip(FIRST, SECOND, strict=True)):
        make_run(f"k{number}", first, **{key: f"{value}{number}" for key, value in shared.items()})
        make_run(f"t{number}", second, **{key: f"{value}{number}" for key, value in shared.items()})
    return f"keras={tmp_path}/k*", f"torch={tmp_path}/t*"


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ({"seed": "", "initial_weights": "w"}, "4 pairs with the same initial weights"),
        ({"seed": ""}, "4 pairs with the same seed"),
    ],
)
def test_runs_that_share_a_start_are_compared_in_pairs(shared, said, make_run, result, tmp_path):
    _, text, content = result(*groups_of(make_run, tmp_path, shared))
    found = content["test_accuracy_difference"]
    differences = np.subtract(SECOND, FIRST)
    assert found["mean"] == pytest.approx(differences.mean())
    assert found["interval"] == pytest.approx(stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95), rel=1e-9)
    assert said in text
    assert "zero lies in it" in text
    assert "A difference of 1 point can be excluded." in text


def test_runs_that_share_nothing_are_compared_by_welch_s_method(make_run, result, tmp_path):
    _, text, content = result(*groups_of(make_run, tmp_path, {}))
    expected = stats.ttest_ind(SECOND, FIRST, equal_var=False).confidence_interval(0.95)
    assert content["test_accuracy_difference"]["interval"] == pytest.approx(expected, rel=1e-9)
    assert "Welch's method, 4 and 4 independent runs" in text
    assert "A difference of 1 point cannot be excluded." in text


def test_a_seed_given_twice_in_a_group_makes_no_pairs(make_run, result):
    runs = [f"k={make_run('k1', 0.7, seed=1)}", f"k={make_run('k2', 0.6, seed=1)}", f"t={make_run('t1', 0.7, seed=1)}"]
    assert "Welch's method, 2 and 1 independent runs" in result(*runs)[1]


@pytest.mark.parametrize("greater", ["k", "t"])
def test_runs_without_a_partner_are_left_out_and_counted(greater, make_run, result, tmp_path):
    groups = groups_of(make_run, tmp_path, {"seed": ""})
    make_run(f"{greater}9", 0.1, seed="9")
    _, text, content = result(*groups)
    assert "4 pairs with the same seed, 1 without a partner left out" in text
    assert content["test_accuracy_difference"]["mean"] == pytest.approx(np.subtract(SECOND, FIRST).mean())


@pytest.mark.parametrize(
    ("margin", "shared", "code"), [(0.01, {"seed": ""}, 0), (0.001, {"seed": ""}, 1), (0.01, {}, 1), (0.05, {}, 0)]
)
def test_within_says_by_its_exit_code_whether_the_groups_are_equivalent(
    margin, shared, code, make_run, result, tmp_path
):
    found, text, content = result(*groups_of(make_run, tmp_path, shared), "--within", margin)
    assert found == code
    assert content["equivalent"] is (code == 0)
    assert f"{100 * margin:g} point" in text
    assert ("can be excluded" in text) is (code == 0)


def test_one_pair_is_never_shown_to_be_equivalent(make_run, result):
    code, text, _ = result(make_run("k", 0.7, seed=1), make_run("t", 0.7, seed=1), "--within", 1)
    assert code == 1
    assert "1 pair with the same seed" in text


def test_a_difference_that_is_there_is_named(make_run, result, tmp_path):
    for number in range(4):
        make_run(f"k{number}", 0.70 + 0.001 * number)
        make_run(f"t{number}", 0.75 + 0.001 * number)
    for one, other in ("kt", "tk"):
        code, text, _ = result(f"{one}={tmp_path}/{one}*", f"{other}={tmp_path}/{other}*", "--within", "0.01")
        assert code == 1
        assert "zero lies outside, the groups differ" in text


def test_keras_2_s_lr_bare_files_and_json_histories_are_read_and_what_lacks_is_a_dash(make_run, result, tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("epoch,loss,lr,val_loss\n0,2.0,0.001,1.9\n1,1.0,0.0005,1.5\n")
    saved = tmp_path / "history.json"
    saved.write_text(json.dumps({"loss": [2.0, 1.0], "accuracy": [0.1, 0.2]}))
    code, text, content = result(old, saved)
    assert code == 0
    first, second = (group["runs"][0] for group in content["groups"].values())
    assert (first["cut after epochs"], first["best epoch"], first["val_accuracy there"]) == ([1], 2, None)
    assert (second["learning-rate cuts"], second["best val_loss"], second["test accuracy"]) == (None, None, None)
    assert row(text, "test accuracy") == row(text, "images per second") == ["-", "-"]
    assert row(text, "best val_loss") == ["1.5000", "-"]
    assert "No difference of test accuracies" in text


def test_a_loss_that_was_not_a_number_in_some_epoch_does_not_hide_the_best_one(result, tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,val_loss\n0,2.0,1.9\n1,1.0,1.5\n2,nan,nan\n")
    assert next(iter(result(path)[2]["groups"].values()))["runs"][0]["best epoch"] == 2


def test_markdown_is_a_markdown_table(make_run, result):
    _, text, _ = result(f"k={make_run('k', 0.7)}", f"t={make_run('t', 0.71)}", "--markdown")
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["", "k", "t"]
    assert set(rule) == {"|", "-", " "}
    assert all(line.count("|") == 4 for line in (head, rule, *rows))
    assert any("test accuracy" in line and "0.7000" in line and "0.7100" in line for line in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "no column 'loss'"),
        ("foreign.csv", "a,b\n1,2\n", "no column 'loss'"),
        ("header.csv", "epoch,loss\n", "one row or more"),
        ("words.csv", "epoch,loss\n0,low\n", "column 'loss' is not all numbers"),
        ("ragged.csv", "epoch,loss\n0,1.0\n1\n", "rows differ in length"),
        ("long.csv", "epoch,loss\n0," + 200_000 * "1" + "\n", "not a CSV file (field larger than field limit"),
        ("bytes.csv", b"\xff\xfe\x00", "not a text file"),
        ("broken.json", "{", "not JSON"),
        ("list.json", "[1]", "must be an object"),
        ("metrics.json", '{"loss": 1.0}', "column 'loss' is not all numbers"),
        ("huge.json", '{"loss": [1' + 400 * "0" + "]}", "column 'loss' is not all numbers"),
        ("uneven.json", '{"loss": [1.0], "val_loss": []}', "as many values"),
    ],
)
def test_a_file_that_is_no_history_is_one_clear_line(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert compare.main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run"),
        (["k=nowhere*"], "k=nowhere*: no such run"),
        (["=run"], "=run: no such run"),
        (["."], "history.csv: cannot be read (No such file or directory)"),
        (["k=run", "k=run/"], "k: names a run twice"),
        (["run", "--within", "0.01"], "needs two groups, not 1"),
        (["run", "--within", "0"], "argument --within: '0' is not a number in (0, 1]"),
        (["run", "--out", "run/history.csv"], "--out run/history.csv: cannot make that folder"),
        ([], "the following arguments are required"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message, make_run, tmp_path, monkeypatch, capsys):
    make_run("run", 0.7)
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("compare.py: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["high", None, True, math.nan, ["a"]])
def test_a_metric_that_is_no_number_is_one_clear_line(value, make_run, tmp_path, capsys):
    code = compare.main([str(make_run("run", value)), "--out", str(tmp_path)])
    assert code == 2
    error = capsys.readouterr().err
    assert "metrics.json has" in error
    assert error.count("\n") == 1


def test_a_rate_that_a_schedule_lowers_with_each_step_is_no_cut():
    history = {"loss": [2.0, 1.0, 0.5], "learning_rate": [1e-3, 5e-4, 2e-4]}
    assert compare.learning_rate_cuts(Training("r", history, {"schedule": "plateau"})) == [1, 2]
    assert compare.learning_rate_cuts(Training("r", history, {"schedule": "cosine"})) is None


def test_a_figure_that_some_runs_lack_says_of_how_many_it_is(make_run, result, tmp_path):
    make_run("t0", 0.7)
    make_run("t1", 0.72)
    (make_run("t2", 0.74) / "metrics.json").unlink()
    _, text, _ = result(f"torch={tmp_path}/t*")
    assert row(text, "test accuracy")[-3:] == ["(n", "=", "2)"]
    assert "(n = " not in "".join(row(text, "best epoch"))
    assert "Over several runs: mean ± standard deviation; the interval is the mean's." in text


def test_the_first_cuts_of_several_runs_are_given_from_the_earliest_to_the_latest(make_run, result, tmp_path):
    make_run("t0", 0.7)
    early = make_run("t1", 0.7) / "history.csv"
    early.write_text(early.read_text().replace("2,0.6,0.001", "2,0.6,0.0005"))
    assert row(result(f"torch={tmp_path}/t*")[1], "  after epochs") == ["first", "2", "to", "3"]


def test_without_test_accuracies_equivalence_is_not_shown(make_run, result):
    runs = [make_run(name, 0.7) for name in "kt"]
    (runs[1] / "metrics.json").unlink()
    code, text, content = result(*runs, "--within", "1")
    assert (code, content["equivalent"]) == (1, False)
    assert "No difference of test accuracies" in text


def test_a_run_whose_path_looks_like_a_group_or_a_pattern_is_that_run(make_run, result):
    for name in ("a=b", "[ab]"):
        run = make_run(name, 0.7)
        assert [*result(run)[2]["groups"]] == [str(run)]


def test_groups_without_any_spread_have_an_interval_of_one_point(make_run, result, tmp_path):
    for name in ("k0", "k1", "t0", "t1"):
        make_run(name, 0.75 if name[0] == "t" else 0.5)
    difference = result(f"k={tmp_path}/k*", f"t={tmp_path}/t*")[2]["test_accuracy_difference"]
    assert difference["interval"] == [0.25, 0.25]
