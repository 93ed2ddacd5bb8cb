import contextlib
import itertools
import json
import math
import os
import shutil
import statistics
import sys

import numpy as np
import pytest
from conftest import stand_in
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

import callbacks
import compare
import plots
import sources
from comparing import comparability, figures, headings, histories, intervals
from running import history
from sources.source import fingerprint

HEADER = "epoch,accuracy,learning_rate,loss,val_accuracy,val_loss"
EPOCHS = [
    "0,0.4,0.001,1.8,0.5,1.5",
    "1,0.5,0.001,1.5,0.6,1.2",
    "2,0.6,0.001,1.3,0.58,1.3",
    "3,0.6,0.0005,1.2,0.59,1.25",
]


@pytest.fixture
def make_run(tmp_path):
    """Write a run's directory with some test accuracy; further metrics by name; config.json from `config`.

    The last loss tells the runs apart: 1.2, 1.201 and so on.
    """
    count = itertools.count()

    def make(name, test_accuracy, config=None, **metrics):
        folder = tmp_path / name
        folder.mkdir()
        last = EPOCHS[-1].replace(",1.2,", f",{1.2 + next(count) / 1000:g},")
        (folder / "history.csv").write_text("\r\n".join([HEADER, *EPOCHS[:-1], last, ""]))
        if config is not None:
            told = {"flags": config.get("flags", {}) | {"seed": metrics["seed"]}} if "seed" in metrics else {}
            config = config | told
            (folder / "config.json").write_text(json.dumps(config))
        content = {
            "test_accuracy": test_accuracy,
            "learning_rate_after_epoch": [0.001, 0.001, 0.0005, 0.00025],
            "seconds_per_epoch": [9.0, 2.0, 3.0, 4.0],
            "images_per_second": 12345.0,
            "epochs": 4,
            "stopped": "all epochs used"
            if (config or {}).get("flags", FLAGS)["epochs"] in (3, 4)
            else "early stopping",
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
        assert "error" not in printed.err
        return code, printed.out, json.loads((out / "comparison.json").read_text())

    return run


def row(text, name):
    return next(line[len(name) :].split() for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 2.7, 3, 5, 9, 17.5, 60, 1000, 1e6])
def test_the_t_quantile_equals_scipys(freedom):
    assert intervals.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)


def test_groups_of_one_run_are_described_figure_by_figure(make_run, result):
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
        "data": None,
        "learning-rate cuts": 2,
        "cut after epochs": [3, 4],
        "schedule": False,
        "mean seconds per epoch": 4.5,
        "images per second": 12345.0,
    }
    assert row(text, "test accuracy") == ["0.7000", "0.7100"]
    assert row(text, "best epoch") == ["2", "2"]
    assert row(text, "  after epochs") == ["3,", "4", "3,", "4"]
    assert "+0.0100 (1" not in text  # no seeds, no weights: no pair
    assert "No interval: at least two runs or pairs with different results are needed.\n" in text


@pytest.mark.pictures
def test_the_picture_shows_the_histories_of_all_groups(make_run, result, tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or savefig(figure, *a, **k))
    result(f"k={make_run('k', 0.7)}", f"t={make_run('t', 0.7)}")
    assert Image.open(tmp_path / "comparison" / "comparison.png").size == (1400, 450)
    (figure,) = figures
    accuracy, loss, rate = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["k", "t"]
    assert [[*line.get_data().values] for line in rate.patches] == [[0.001, 0.001, 0.001, 0.0005]] * 2
    columns = {accuracy: [[0.4, 0.5, 0.6, 0.6], [0.5, 0.6, 0.58, 0.59]]}
    columns[loss] = [[1.8, 1.5, 1.3, 1.2], [1.5, 1.2, 1.3, 1.25]]
    for axes, (first, *others) in columns.items():
        second = [*first[:3], 1.201] if axes is loss else first
        assert [[*line.get_ydata()] for line in axes.get_lines()] == [first, *others, second, *others]


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
    assert content["difference"] is None


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
def test_runs_with_the_same_seed_or_initial_weights_are_compared_in_pairs(shared, said, make_run, result, tmp_path):
    _, text, content = result(*groups_of(make_run, tmp_path, shared))
    found = content["difference"]
    differences = np.subtract(SECOND, FIRST)
    assert found["mean"] == pytest.approx(differences.mean())
    assert found["interval"] == pytest.approx(stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95), rel=1e-9)
    assert said in text
    assert "it contains zero" in text
    assert "Equivalent within 1 point? Yes: the whole interval lies within ±1 point." in text


def test_runs_that_share_no_seed_or_weights_are_compared_by_welchs_method(make_run, result, tmp_path):
    _, text, content = result(*groups_of(make_run, tmp_path, {}))
    expected = stats.ttest_ind(SECOND, FIRST, equal_var=False).confidence_interval(0.95)
    assert content["difference"]["interval"] == pytest.approx(expected, rel=1e-9)
    assert "Welch's method, 4 and 4 independent runs" in text
    assert "Equivalent within 1 point? Not shown: the interval reaches beyond ±1 point." in text


def test_a_seed_given_twice_in_a_group_makes_no_pairs(make_run, result):
    runs = [f"k={make_run('k1', 0.7, seed=1)}", f"k={make_run('k2', 0.6, seed=1)}", f"t={make_run('t1', 0.7, seed=1)}"]
    assert "Welch's method, 2 and 1 independent runs" in result(*runs)[1]


@pytest.mark.parametrize("greater", ["k", "t"])
def test_runs_without_a_partner_are_left_out_and_counted(greater, make_run, result, tmp_path):
    groups = groups_of(make_run, tmp_path, {"seed": ""})
    make_run(f"{greater}9", 0.1, seed="9")
    _, text, content = result(*groups)
    assert "4 pairs with the same seed, 1 without a partner left out" in text
    assert content["difference"]["mean"] == pytest.approx(np.subtract(SECOND, FIRST).mean())


def test_runs_are_paired_if_most_have_a_partner_and_otherwise_the_shared_seeds_are_counted(make_run, result, tmp_path):
    """First each side lacks one seed of the other; then they share only two seeds."""
    for number, (first, second) in enumerate(zip(FIRST, SECOND, strict=True)):
        make_run(f"k{number}", first, seed=number)
        make_run(f"t{number}", second, seed=number + 1 if number == 3 else number)
        make_run(f"u{number}", second, seed=number + 4 if number > 1 else number)
    keras = f"keras={tmp_path}/k*"
    _, text, content = result(keras, f"torch={tmp_path}/t*")
    assert "3 pairs with the same seed, 2 without a partner left out" in text
    assert content["difference"]["mean"] == pytest.approx(np.subtract(SECOND, FIRST)[:3].mean())
    _, text, _ = result(keras, f"torch={tmp_path}/u*")
    assert "Welch's method, 4 and 4 independent runs, although 2 have the same seed as one in the other group" in text


def test_a_label_may_have_an_equals_sign_in_it(make_run, result, tmp_path):
    make_run("a0", 0.7, seed=0)
    make_run("b0", 0.6, seed=0)
    _, _, content = result(f"lr=0.01={tmp_path}/a*", f"lr=0.1 l2=0={tmp_path}/b*")
    assert [*content["groups"]] == ["lr=0.01", "lr=0.1 l2=0"]


@pytest.mark.parametrize(
    ("margin", "shared", "code"), [(0.01, {"seed": ""}, 0), (0.001, {"seed": ""}, 1), (0.01, {}, 1), (0.05, {}, 0)]
)
def test_the_exit_code_of_within_tells_whether_the_groups_are_equivalent(
    margin, shared, code, make_run, result, tmp_path
):
    found, text, content = result(*groups_of(make_run, tmp_path, shared), "--within", margin)
    assert found == code
    assert content["equivalent"] is (code == 0)
    assert f"{100 * margin:g} point" in text
    assert ("? Yes: " in text) is (code == 0)


def test_a_single_pair_never_shows_equivalence(make_run, result):
    code, text, _ = result(make_run("k", 0.7, seed=1), make_run("t", 0.7, seed=1), "--within", 1)
    assert code == 1
    assert "1 pair with the same seed" in text


def test_a_difference_whose_interval_excludes_zero_is_reported_as_such(make_run, result, tmp_path):
    for number in range(4):
        make_run(f"k{number}", 0.70 + 0.001 * number)
        make_run(f"t{number}", 0.75 + 0.001 * number)
    for one, other in ("kt", "tk"):
        code, text, _ = result(f"{one}={tmp_path}/{one}*", f"{other}={tmp_path}/{other}*", "--within", "0.01")
        assert code == 1
        assert "it excludes zero" in text


def test_the_lr_column_of_keras_2_and_json_histories_are_read_and_missing_figures_are_dashes(
    make_run, result, tmp_path
):
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
    assert "No difference is stated: " in text


def test_a_nan_loss_in_some_epoch_does_not_hide_the_best_epoch(result, tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,val_loss\n0,2.0,1.9\n1,1.0,1.5\n2,nan,nan\n")
    assert next(iter(result(path)[2]["groups"].values()))["runs"][0]["best epoch"] == 2


def test_markdown_prints_a_markdown_table(make_run, result):
    _, text, _ = result(f"k={make_run('k', 0.7)}", f"t={make_run('t', 0.71)}", "--markdown")
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["", "k", "t"]
    assert set(rule) == {"|", "-", " "}
    assert all(line.count("|") == 4 for line in (head, rule, *rows))
    assert any("test accuracy" in line and "0.7000" in line and "0.7100" in line for line in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "found nothing, no loss and no val_loss"),
        ("foreign.csv", "a,b\n1,2\n", "found 'a', 'b', no loss and no val_loss"),
        ("header.csv", "epoch,loss\n", "at least one row"),
        ("words.csv", "epoch,loss\n0,low\n", "column 'loss' is not all numbers"),
        ("ragged.csv", "epoch,loss\n0,1.0\n1\n", "rows differ in length"),
        ("long.csv", "epoch,loss\n0," + 200_000 * "1" + "\n", "not a CSV file (field larger than field limit"),
        ("bytes.csv", b"\xff\xfe\x00", "not a text file"),
        ("broken.json", "{", "not JSON"),
        ("list.json", "[1]", "found a list"),
        ("metrics.json", '{"loss": 1.0}', "found an object: 'loss'"),
        ("uneven.json", '{"loss": [1.0], "val_loss": []}', "the same number of values"),
    ],
)
def test_a_file_that_is_not_a_history_is_refused_in_one_clear_line(name, content, message, tmp_path, capsys):
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
        (["."], ".: a folder of runs, such as run; pass '*'"),
        (["run", "--list", "--within", "0.01"], "--list: compares nothing, so not with --mixed or --within"),
        (["run", "--list", "--csv", "--markdown"], "--csv: not with --markdown"),
        (["run", "--within", "0.01"], "needs two groups, not 1"),
        (["run", "--within", "0"], "argument --within: '0' is not a number in (0, 1]"),
        (["run@72"], "run@72: no such run, and the test accuracy '72' is not a number in [0, 1]; write 72.36 %"),
        (["run@0.7"], "run@0.7: @ gives one bare history its test accuracy"),
        ([], "the following arguments are required"),
    ],
)
def test_bad_arguments_are_refused_in_one_clear_line(arguments, message, make_run, tmp_path, monkeypatch, capsys):
    make_run("run", 0.7)
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("compare.py: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["high", None, True, math.nan, ["a"]])
def test_a_metric_that_is_not_a_number_is_refused_in_one_clear_line(value, make_run, tmp_path, capsys):
    code = compare.main([str(make_run("run", value)), "--out", str(tmp_path)])
    assert code == 2
    error = capsys.readouterr().err
    assert "metrics.json has" in error
    assert error.count("\n") == 1


# --- what the history says --------------------------------------------------------------------------------------------


def training(metrics=None, **history):
    return histories.Training("r", history, metrics or {}, {}, "", [])


@pytest.mark.parametrize(
    ("rates", "metrics", "cuts"),
    [
        ([1e-3, 5e-4, 2e-4], {"schedule": "plateau"}, [1, 2]),
        ([1e-3, 5e-4, 2e-4, 1e-4], {"schedule": "plateau"}, [1, 2, 3]),
        ([1e-3, 5e-4, 2e-4, 1e-4], {"learning_rate_cuts": [{}]}, [1, 2, 3]),  # the Keras reference's
        ([1e-3, 5e-4, 2e-4], {"schedule": "cosine"}, None),
        ([1e-3, 1e-3, 5e-4, 5e-4, 2e-4], {}, [2, 4]),
        ([1e-3, 5e-4, 2e-4, 1e-4], {}, None),
        ([1e-3, 5e-4, 2.5e-4, 2.5e-4], {}, [1, 2]),  # two in a row are cuts
        ([1e-4, 1e-3, 1e-3], {}, None),
        ([1e-3, 1e-3, 1e-3, 9e-4, 8e-4, 7e-4], {}, None),
    ],
)
def test_a_rate_that_changes_epoch_by_epoch_counts_as_a_schedule_and_not_as_cuts(rates, metrics, cuts):
    run = training(metrics, loss=[1.0] * len(rates), learning_rate=rates)
    assert figures.learning_rate_cuts(run, compare.CUTTING) == cuts
    assert figures.scheduled(run, compare.CUTTING) is (cuts is None)


def test_the_table_says_schedule_where_there_are_no_cuts(result, tmp_path):
    path = tmp_path / "cosine.csv"
    rates = [0.001 * (1 + math.cos(math.pi * epoch / 12)) / 2 for epoch in range(12)]
    rows = [f"{epoch},{rate},{2 - epoch / 10}" for epoch, rate in enumerate(rates)]
    path.write_text("\n".join(["epoch,learning_rate,loss", *rows, ""]))
    text = result(path)[1]
    assert row(text, "learning-rate cuts") == ["schedule"]
    assert row(text, "  after epochs") == ["-"]


def test_a_nan_accuracy_at_the_best_epoch_is_shown_as_a_dash(result, tmp_path):
    path = tmp_path / "nan.csv"
    path.write_text("epoch,loss,val_accuracy,val_loss\n0,1.6,nan,1.1\n1,1.4,0.55,1.3\n")
    text = result(path)[1]
    assert (row(text, "best epoch"), row(text, "best val_loss")) == (["1"], ["1.1000"])
    assert row(text, "val_accuracy there") == ["-"]


def test_seconds_per_epoch_are_the_mean_and_images_per_second_those_that_the_run_recorded(make_run, result):
    _, text, _ = result(make_run("run", 0.7, seconds_per_epoch=[30.0, 10.0, 10.0, 10.0], images_per_second=4_000))
    assert row(text, "mean seconds per epoch") == ["15.0"]
    assert row(text, "images per second") == ["4,000"]


def test_the_interval_of_an_accuracy_lies_between_0_and_1(make_run, result, tmp_path):
    for number, accuracy in enumerate([0.99, 0.75, 0.45]):
        make_run(f"high{number}", accuracy, initial_weights=f"h{number}")
        make_run(f"low{number}", 1 - accuracy, initial_weights=f"l{number}")
    _, text, content = result(f"high={tmp_path}/high*", f"low={tmp_path}/low*")
    assert content["groups"]["high"]["estimates"]["test accuracy"]["interval"][1] == 1
    assert content["groups"]["low"]["estimates"]["test accuracy"]["interval"][0] == 0
    assert "to 1.0000  0.0000 to" in text
    assert content["groups"]["high"]["estimates"]["epochs"]["interval"] is None  # all have 4


# --- what may be pooled or compared -----------------------------------------------------------------------------------

RULES = compare.rules_of_options()
FLAGS = {**RULES.defaults, "seed": 0, "init_weights": None, "device": "cpu", "threads": 1, "out": "runs/x"}


def config(sha256="a", **flags):
    common = {"model": "baseline", "data": "data from x.npz", "code_sha256": "c0de"}
    return common | {"data_sha256": sha256, "flags": FLAGS | flags}


def group_of_two(make_run, tmp_path, first=None, second=None, **metrics):
    make_run("a0", 0.70, config() if first is None else first)
    make_run("a1", 0.71, config() if second is None else second, **metrics)
    return f"a={tmp_path}/a*"


def both_ways(arguments, tmp_path, capsys):
    """Assert a refusal without --mixed; return its line on what differs, and what is printed with --mixed."""
    out = ["--out", str(tmp_path / "comparison")]
    assert compare.main([*arguments, *out]) == 2
    first, line, *_ = capsys.readouterr().err.splitlines()
    assert (
        first == "compare.py: error: these runs do not belong together; leave some out, or pass --mixed to pool them:"
    )
    assert compare.main([*arguments, *out, "--mixed"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Pooled although they differ (--mixed): a")
    assert printed.index("Pooled") < printed.index("test accuracy")
    return line, printed


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (config("b"), "other data in {0}/a1 than in {0}/a0"),
        (config(lr=0.01), "lr: 0.01 in {0}/a1, 0.001 in {0}/a0"),
        (config(epochs=3), "epochs: 50 in {0}/a0, 3 in {0}/a1"),
        (config() | {"model": "keras notebook"}, "model: keras notebook in {0}/a1, baseline in {0}/a0"),
        (config() | {"backend": "torch"}, "backend: torch in {0}/a1, tensorflow in {0}/a0"),
    ],
    ids=["different data", "another learning rate", "another epoch limit", "another model", "another Keras backend"],
)
def test_runs_with_different_data_or_settings_are_pooled_only_with_mixed(second, said, make_run, tmp_path, capsys):
    first = config() | {"backend": "tensorflow"} if "backend" in second else None
    line, printed = both_ways([group_of_two(make_run, tmp_path, first, second)], tmp_path, capsys)
    assert said.format(tmp_path) in line
    assert said.format(tmp_path) in printed


# The runs of make_run have 4 epochs.
@pytest.mark.parametrize(
    ("first", "second", "schedule", "pooled"),
    [
        ((50, "early stopping"), (20, "early stopping"), "plateau", True),
        ((4, "all epochs used"), (50, "early stopping"), "plateau", True),  # it would have stopped where that ended
        ((50, "early stopping"), (4, "all epochs used"), "plateau", True),
        ((3, "all epochs used"), (50, "early stopping"), "plateau", False),  # it continued where that ended
        ((4, "all epochs used"), (3, "all epochs used"), "plateau", False),
        (("50", "early stopping"), (20, "early stopping"), "plateau", False),
        ((50, "early stopping"), (20, "early stopping"), "cosine", False),  # each limit has rates of its own
    ],
)
def test_runs_with_different_epoch_limits_are_pooled_if_a_single_limit_would_have_ended_both_as_they_did(
    first, second, schedule, pooled, make_run, tmp_path
):
    runs = []
    for number, (epochs, stopped) in enumerate((first, second)):
        path = make_run(f"a{number}", 0.7 + number / 100, config(epochs=epochs, schedule=schedule), stopped=stopped)
        runs.append(histories.read(path))
    found = comparability.faults(runs, RULES)
    assert len(found) == (not pooled)
    for run, (epochs, _) in zip(runs, (first, second), strict=True):
        assert pooled or f"{epochs} in {run.path}" in found[0]


def test_a_resumed_run_without_a_new_epoch_yet_counts_as_unfinished(make_run, tmp_path, capsys):
    make_run("a0", 0.7, config(epochs=20), epochs=4, stopped="all epochs used")
    line, _ = both_ways([f"a={tmp_path}/a0"], tmp_path, capsys)
    assert "a0 has not finished (4 epochs in metrics.json, and 20 are wanted)" in line


def test_a_seed_trained_twice_does_not_count_as_a_second_run_except_in_keras(make_run, result, tmp_path, capsys):
    once = {"seed": 3, "initial_weights": "w"}
    for number in range(2):  # their last bits differ
        make_run(f"a{number}", 0.7, config(device=f"cuda:{number}"), **once)
        make_run(f"k{number}", 0.7, config() | {"model": "keras notebook", "backend": "tensorflow"}, **once)
    line, _ = both_ways([f"a={tmp_path}/a*"], tmp_path, capsys)
    assert f"{tmp_path}/a1 has the seed and the initial weights of {tmp_path}/a0" in line
    assert result(f"k={tmp_path}/k*")[0] == 0  # TensorFlow's order has no seed


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"seed": 7}, "has seed 7, config.json 0"),
        ({"best_epoch": 2, "best_epoch_logs": {"loss": 9.0}}, "has loss 9.0 in epoch 2, the history another"),
        ({"best_epoch": 9, "best_epoch_logs": {"val_loss": 9.0}}, "has val_loss 9.0 in epoch 9, the history another"),
    ],
)
def test_files_of_different_runs_in_one_directory_are_refused(metrics, said, make_run, tmp_path, capsys):
    run = make_run("a0", 0.7, config(), **metrics)
    (run / "config.json").write_text(json.dumps(config()))
    line, _ = both_ways([f"a={run}"], tmp_path, capsys)
    assert f"{run}/metrics.json: {said}" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", [1]), ("initial_weights", {"a": 1}), ("model", 3), ("test_accuracy", [0.1, 0.9]), ("test_accuracy", [])],
)
def test_a_value_of_the_wrong_type_in_metrics_json_is_refused(name, value, make_run, tmp_path, capsys):
    run = make_run("a", 0.7)
    metrics = json.loads((run / "metrics.json").read_text()) | {name: value}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert compare.main([str(run), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert repr(value) in line


def test_random_draws_given_to_keras_are_listed_among_the_settings_that_differ(make_run, result, tmp_path):
    groups = two_groups(make_run, tmp_path, config(draws="draws.npz"), config())
    assert "Settings that differ: keras: draws another run's; torch: draws its own." in result(*groups)[1]


def test_a_group_cannot_be_tested_for_equivalence_with_a_copy_of_itself(make_run, result, tmp_path, capsys):
    for number, accuracy in enumerate(FIRST):
        shutil.copytree(make_run(f"a{number}", accuracy, seed=number), tmp_path / f"b{number}")
    groups = [f"a={tmp_path}/a*", f"b={tmp_path}/b*"]
    assert result(*groups)[0] == 0
    assert compare.main([*groups, "--within", "0.01", "--out", str(tmp_path)]) == 2
    assert f"--within: {tmp_path}/b0 is a copy of {tmp_path}/a0;" in capsys.readouterr().err


def test_a_group_with_some_test_accuracies_missing_is_judged_by_validation_accuracy(make_run, result, tmp_path):
    for number in range(3):
        make_run(f"k{number}", 0.6)
        run = make_run(f"t{number}", 0.7)
        if number:
            (run / "metrics.json").unlink()
    code, text, content = result(f"k={tmp_path}/k*", f"t={tmp_path}/t*")
    assert (code, content["judged_by"]) == (0, "val_accuracy there")
    assert "since not every run has a test accuracy" in text
    assert "is one run" not in text


def test_runs_without_any_accuracy_are_left_out_of_the_comparison_and_counted(make_run, result, tmp_path):
    for number in range(2):
        make_run(f"k{number}", 0.6)
    make_run("t0", 0.7)
    (tmp_path / "t1.csv").write_text("epoch,loss\n0,2.0\n1,1.0\n")
    code, text, _ = result(f"k={tmp_path}/k*", f"t={tmp_path}/t*")
    assert code == 0
    assert "t: only 1 of 2 runs have this accuracy; the others are left out." in text


def test_different_backends_of_keras_are_listed_among_the_settings_that_differ(make_run, result, tmp_path):
    groups = two_groups(make_run, tmp_path, *(config() | {"backend": name} for name in ("torch", "tensorflow")))
    code, text, _ = result(*groups)
    assert code == 0
    assert "Settings that differ: keras: backend torch; torch: backend tensorflow." in text


def test_a_setting_that_an_older_config_lacks_counts_as_its_default(make_run, result, tmp_path):
    older = config()
    del older["flags"]["label_smoothing"], older["flags"]["no_mirror"]
    code, text, _ = result(group_of_two(make_run, tmp_path, second=older))
    assert code == 0
    assert "Not known" not in text


def test_runs_of_a_group_may_differ_in_seed_initial_weights_device_threads_and_directory(make_run, result, tmp_path):
    second = config(seed=1, init_weights="w.npz", device="cuda", threads=8, out="runs/y")
    assert result(group_of_two(make_run, tmp_path, second=second))[0] == 0


def test_an_unfinished_run_is_pooled_only_with_mixed(make_run, tmp_path, capsys):
    group = group_of_two(make_run, tmp_path)
    (tmp_path / "a1" / "metrics.json").unlink()
    line, _ = both_ways([group], tmp_path, capsys)
    assert "a1 has not finished (no metrics.json)" in line


def test_the_config_of_another_program_does_not_tell_whether_its_run_has_finished(make_run, result, tmp_path):
    for number in range(2):
        run = make_run(f"a{number}", 0.7, {"architectures": ["ResNet"], "hidden_size": 64})
        (run / "metrics.json").unlink()
    code, text, _ = result(f"a={tmp_path}/a*")
    assert code == 0
    assert text.startswith("Not known from the files: data (a), settings (a), whether it finished (a).")


def test_a_run_with_more_epochs_in_its_history_than_in_metrics_json_counts_as_unfinished(make_run, tmp_path, capsys):
    line, _ = both_ways([group_of_two(make_run, tmp_path, epochs=3)], tmp_path, capsys)
    assert "a1 has not finished (4 epochs in its history, 3 in metrics.json)" in line


@pytest.mark.parametrize("kind", ["copy", "link", "form", "continued"])
def test_the_same_run_given_twice_is_recognized_by_its_figures_whatever_its_path(kind, make_run, tmp_path, capsys):
    run = make_run("a0", 0.7)
    if kind == "form":
        history = histories.read(run).history
        (tmp_path / "a1.json").write_text(json.dumps(history))
    elif kind == "link":
        (tmp_path / "a1").symlink_to(run)
    else:
        (tmp_path / "a1").mkdir()
        more = "4,0.7,0.0005,1.1,0.6,1.15\r\n" if kind == "continued" else ""
        (tmp_path / "a1" / "history.csv").write_text((run / "history.csv").read_text() + more)
    line, _ = both_ways([f"a={tmp_path}/a*"], tmp_path, capsys)
    assert f"is a copy of {run}" in line


def test_only_runs_with_the_same_first_epoch_are_compared_figure_by_figure(make_run, monkeypatch):
    runs = [histories.read(make_run(f"a{number}", 0.7)) for number in range(40)]
    for number, run in enumerate(runs):
        run.history["loss"][0] += number // 2  # every two of them share their first epoch
    compared, same_run = [], comparability.same_run
    monkeypatch.setattr(comparability, "same_run", lambda *pair: compared.append(pair) or same_run(*pair))
    assert comparability.faults(runs, RULES) == []
    assert len(compared) == 40 * 2  # each with itself and with the one that starts alike
    copy = runs[7]._replace(path="copy", history=runs[7].history | {"lr": [1.0]})  # one more column
    assert comparability.faults([*runs, copy], RULES) == [f"copy is a copy of {runs[7].path}"]


def test_a_run_that_is_in_two_groups_is_reported(make_run, result, tmp_path):
    run = make_run("a", 0.7, config())
    shutil.copytree(run, tmp_path / "b")
    code, text, _ = result(f"a={run}", f"b={tmp_path / 'b'}", f"c={make_run('c', 0.7, config())}")
    assert code == 0
    assert text.startswith(f"Identical in every epoch: {run} and {tmp_path / 'b'}.\n\n")


def test_groups_that_share_even_some_of_their_runs_get_no_verdict(make_run, result, tmp_path):
    for seed in range(4):
        make_run(f"t{seed}", 0.7 + seed / 1000, config(), seed=seed)
    code, text, content = result(f"a={tmp_path}/t[0-2]", f"b={tmp_path}/t[1-3]")
    assert code == 0
    assert "Groups that share a run are not independent, so no difference is stated." in text
    assert "Equivalent" not in text
    assert content["difference"] is None


def test_histories_with_no_metric_in_common_do_not_count_as_the_same_run():
    assert not comparability.same_run(training(loss=[1.0]), training(val_loss=[1.0]))
    rates = {"learning_rate": [0.1, 0.1]}  # two trainings at the same constant rate
    assert not comparability.same_run(training(loss=[1.0, 0.9], **rates), training(val_loss=[1.0, 0.9], **rates))
    assert comparability.same_run(training(loss=[math.nan]), training(loss=[math.nan], val_loss=[1.0]))


def test_stand_in_data_is_labelled_and_is_pooled_with_real_data_only_with_mixed(make_run, result, tmp_path, capsys):
    stand_in = sources.choose("synthetic").describe()
    assert comparability.STAND_IN in stand_in
    make_run("a0", 0.62, data="data from data/cifar10.npz")
    for number in (1, 2):
        make_run(f"a{number}", 0.99 - number / 100, data=stand_in)
    line, printed = both_ways([f"a={tmp_path}/a*"], tmp_path, capsys)
    assert line == f"  other data in {tmp_path}/a1 than in {tmp_path}/a0"
    assert "a (NOT CIFAR-10)" in printed
    _, text, content = result(f"b={tmp_path}/a1")
    assert row(text, " ") == ["b", "(NOT", "CIFAR-10)"]
    assert "NOT CIFAR-10" in content["groups"]["b (NOT CIFAR-10)"]["runs"][0]["data"]


def test_stand_in_data_read_from_a_file_is_recognized_by_its_hash(make_run, result):
    sha256 = fingerprint(stand_in())
    reference = config(sha256) | {"model": "keras notebook", "data": "stand_in.npz"}
    ours = config(sha256) | {"data": sources.choose("synthetic").describe()}
    code, text, _ = result(f"k={make_run('k', 0.7, reference)}", f"t={make_run('t', 0.7, ours)}")
    assert code == 0
    assert text.startswith("All runs use the stand-in data, NOT CIFAR-10.\n")  # once, and not for each group
    assert row(text, " ") == ["k", "t"]


def test_pictures_of_runs_on_stand_in_data_are_labelled_as_such(make_run, result, monkeypatch):
    drawn, draw = [], plots.overlay
    monkeypatch.setattr(plots, "overlay", lambda *args: drawn.append(args) or draw(*args))
    stand_in = sources.choose("synthetic").describe()
    runs = [make_run(name, 0.7 + number / 10, data=stand_in) for number, name in enumerate("ab")]
    result(f"a={runs[0]}")
    result(*(f"{run.name}={run}" for run in runs))
    assert [[*groups] for groups, *_ in drawn] == [["a (NOT CIFAR-10)"], ["a", "b"]]
    assert drawn[1][-1] == "NOT CIFAR-10. Test accuracy: a 0.7000; b 0.8000"


def test_the_title_of_the_picture_gives_the_test_accuracies(make_run, bare, result, tmp_path, monkeypatch):
    titles, draw = [], plots.overlay
    monkeypatch.setattr(plots, "overlay", lambda *args: titles.append(args[-1]) or draw(*args))
    first, second = groups_of(make_run, tmp_path, {})
    result(first, second, f"bare={bare}")
    shown = [intervals.estimate(values) for values in (FIRST, SECOND)]
    spread = [f"{one.mean:.4f} ± {one.sd:.4f}" for one in shown]
    assert titles == [f"Test accuracy: keras {spread[0]}; torch {spread[1]}"]


def test_groups_without_a_label_are_headed_by_the_part_of_their_paths_that_differs(make_run, result, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        make_run(f"{name}/torch", 0.7, config())
    _, text, content = result(tmp_path / "a" / "torch", tmp_path / "b" / "torch")
    assert text.startswith(f"All are in {tmp_path}.\n")
    assert row(text, " ") == ["a", "b"] == [*content["groups"]]
    # A LABEL that equals the differing part stays the only group of that name.
    _, text, content = result(f"a={tmp_path}/b/torch", tmp_path / "a" / "torch", tmp_path / "b" / "torch")
    assert [*content["groups"]] == ["a", str(tmp_path / "a" / "torch"), str(tmp_path / "b" / "torch")]


@pytest.mark.parametrize(
    ("paths", "parts", "folder"),
    [
        (["runs/a", "runs/b"], ["a", "b"], "runs"),
        (["a/history.csv", "b/history.csv"], ["a", "b"], ""),
        (["/x/a/torch", "/x/b/torch"], ["a", "b"], "/x"),
        (["r/a", "r/a/b"], ["a", "a/b"], "r"),
        (["r/a/a", "r/a"], ["a/a", "a"], "r"),
        (["./a", "a/../b"], ["a", "b"], ""),
        (["runs/a", "/tmp/b"], ["runs/a", "/tmp/b"], ""),
        (["runs/a", "./runs/a"], ["runs/a", "./runs/a"], ""),
        (["runs/a"], ["runs/a"], ""),
        (["a", "."], ["a", "."], ""),
        ([".", "../b"], [".", "../b"], ""),
        (["~/o/a", os.path.expanduser("~/o/b")], ["a", "b"], os.path.expanduser("~/o")),
    ],
)
def test_the_differing_part_of_paths_lies_between_their_common_beginning_and_end(paths, parts, folder, monkeypatch):
    monkeypatch.chdir("/")  # relative paths have nothing in common with absolute ones there
    assert headings.differing_parts(paths) == (parts, folder)


def test_a_table_wider_than_120_characters_is_transposed(make_run, result, tmp_path):
    runs = [f"{'long' * 3}{number}={make_run(str(number), 0.7 + number / 100, seed=number)}" for number in range(9)]
    narrow, wide = (result(*some)[1] for some in (runs[:5], runs))
    assert row(narrow, "test accuracy") == ["0.7000", "0.7100", "0.7200", "0.7300", "0.7400"]
    (line,) = [line for line in wide.splitlines() if line.startswith("longlonglong3  ")]
    assert "0.7300" in line.split()
    (heading,) = [line for line in wide.splitlines() if "test accuracy" in line and "minus" not in line][:1]
    assert heading.split()[:3] == ["runs", "epochs", "best"]


def two_groups(make_run, tmp_path, first, second, **metrics):
    for number, accuracy in enumerate(FIRST):
        make_run(f"k{number}", accuracy, first, seed=number)
        make_run(f"t{number}", accuracy, second, seed=number, **metrics)
    return f"keras={tmp_path}/k*", f"torch={tmp_path}/t*"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (config("a"), config("b"), "The data differ between keras and torch."),
        (config(l2=0.001), config(l2=0.0), "The loss is not the same: keras: l2 0.001; torch: l2 0.0."),
        (config(), config(label_smoothing=0.1), "keras: label_smoothing 0.0; torch: label_smoothing 0.1."),
    ],
    ids=["data", "L2", "label smoothing"],
)
@pytest.mark.parametrize("within", [[], ["--within", "0.9"]], ids=["shown", "within"])
def test_groups_with_different_data_or_losses_are_not_comparable(
    first, second, said, within, make_run, result, tmp_path
):
    code, text, content = result(*two_groups(make_run, tmp_path, first, second), *within)
    assert code == 3
    assert said in text
    assert text.index(said) < text.index("test accuracy")
    assert "Not comparable" in text
    assert "minus" not in text
    assert (content["comparable"], content["difference"], content["equivalent"]) == (False, None, None)


def test_a_run_on_stand_in_data_without_a_config_is_not_comparable_with_one_on_real_data(make_run, result):
    real, stand_in = (
        make_run("a", 0.7, data="data/cifar10.npz"),
        make_run("b", 0.9, data=sources.choose("synthetic").describe()),
    )
    code, text, _ = result(f"a={real}", f"b={stand_in}")
    assert code == 3
    assert "The data differ between a and b (NOT CIFAR-10)." in text


def test_settings_that_differ_between_groups_are_listed_in_one_line_and_not_refused(make_run, result, tmp_path):
    groups = two_groups(make_run, tmp_path, config(lr=0.01, batch_size=32), config())
    code, text, content = result(*groups)
    assert code == 0
    assert "Settings that differ: keras: batch_size 32, lr 0.01; torch: batch_size 64, lr 0.001." in text
    assert content["comparable"] is True


def test_flags_that_the_keras_reference_lacks_count_as_the_defaults_of_the_notebook(make_run, result, tmp_path):
    flags = {"epochs": 50, "batch_size": 64, "lr": 1e-3, "dropout": 0.5, "patience": 5, "lr_patience": 3}
    flags |= {"min_lr": 1e-6, "no_shuffle": False, "seed": 0, "dtype": "float32", "data": "x.npz", "init_weights": None}
    reference = {"model": "keras notebook", "data_sha256": "a", "flags": flags, "code_sha256": "c0de"}
    code, text, _ = result(*two_groups(make_run, tmp_path, reference, config()))
    assert code == 0
    assert "Settings that differ: keras: model keras notebook; torch: model baseline." in text
    assert "Not known" not in text


def test_what_the_files_do_not_tell_is_reported_as_not_known(make_run, result, tmp_path):
    bare = tmp_path / "bare.csv"
    bare.write_text("epoch,loss\n0,2.0\n1,1.0\n")
    make_run("t0", 0.7)
    make_run("t1", 0.7, config())
    code, text, content = result(f"mine={bare}", f"torch={tmp_path}/t*")
    assert code == 0
    said = (
        "data (mine, 1 of the 2 runs of torch), settings (mine, 1 of the 2 runs of torch), whether it finished (mine)"
    )
    assert f"Not known from the files: {said}." in text
    assert content["notes"] == [f"Not known from the files: {said}.", "Data of torch: data from x.npz."]


def test_if_the_data_of_some_groups_is_unknown_that_of_the_others_is_described(make_run, bare, result, tmp_path):
    described = config() | {"data": "CIFAR-10, recompressed"}
    for number in range(2):
        make_run(f"t{number}", 0.7 + number / 100, described, seed=number)
    _, text, content = result(f"mine={bare}", f"port={tmp_path}/t*")
    assert "Data of port: CIFAR-10, recompressed." in text
    assert "Data of mine" not in text
    assert "Data of port: CIFAR-10, recompressed." in content["notes"]
    assert "Data of" not in result(f"port={tmp_path}/t*")[1]


def test_data_known_only_by_its_hash_is_not_described(make_run, bare, result):
    run = make_run("k", 0.7, config())
    metrics = json.loads((run / "metrics.json").read_text())
    content = json.loads((run / "config.json").read_text())
    for file, values in (("metrics.json", metrics), ("config.json", content)):
        (run / file).write_text(json.dumps({name: value for name, value in values.items() if name != "data"}))
    assert "Data of" not in result(f"mine={bare}", f"k={run}")[1]


def test_a_group_only_partly_on_stand_in_data_does_not_make_all_runs_count_as_stand_in(make_run, result, tmp_path):
    stand_in = sources.choose("synthetic").describe()
    make_run("a0", 0.7, data="data from data/cifar10.npz")
    make_run("a1", 0.9, data=stand_in)
    _, text, _ = result(f"a={tmp_path}/a*", f"b={make_run('b', 0.9, data=stand_in)}", "--mixed")
    assert "All runs use the stand-in" not in text
    assert row(text, " ") == ["a", "(NOT", "CIFAR-10)", "b", "(NOT", "CIFAR-10)"]


def test_what_is_unknown_for_all_groups_is_reported_once(make_run, result):
    runs = [make_run(name, 0.7) for name in "abc"]
    assert "Not known from the files: data (all), settings (all)." in result(*runs)[1]


# --- a single run among several ---------------------------------------------------------------------------------------


def test_the_percentile_of_a_further_value_equals_scipys():
    values = [0.70, 0.72, 0.69, 0.705]
    found = intervals.estimate(values)
    for value in (0.5, 0.69, found.mean, 0.7236, 0.9):
        spread = found.sd * math.sqrt(1 + 1 / 4)
        assert found.percentile(value) == pytest.approx(stats.t.cdf((value - found.mean) / spread, 3), abs=1e-12)
    flat = intervals.estimate([0.5, 0.5])
    assert [flat.percentile(value) for value in (0.4, 0.5, 0.6)] == pytest.approx([0, 0.5, 1])


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("epoch,accuracy,loss,val_accuracy,val_loss\n0,0.4,1.9,0.5,1.6\n1,0.5,1.6,0.702,1.3\n")
    return path


def test_a_bare_history_can_be_given_a_test_accuracy_and_is_ranked_among_several_runs(bare, make_run, result, tmp_path):
    for number, accuracy in enumerate(FIRST):
        make_run(f"t{number}", accuracy)
    code, text, content = result(f"mine={bare}@0.7236", f"torch={tmp_path}/t*")
    assert code == 0
    assert content["groups"]["mine"]["runs"][0]["test accuracy"] == 0.7236
    found = intervals.estimate(FIRST)
    assert (
        f"mine is one run, at 0.7236: 4 of the 4 runs of torch score lower "
        f"(mean {found.mean:.4f}, standard deviation {found.sd:.4f}).\n" in text
    )
    lower = stats.t.cdf((0.7236 - found.mean) / (found.sd * math.sqrt(1.25)), 3)
    assert f"About {100 * lower:.1f} % of further runs of torch would score lower (Student's t)" in text
    # The single run may come second as well, and without a label.
    text = result(f"torch={tmp_path}/t*", f"{bare}@0.7")[1]
    assert f"{bare} is one run, at 0.7000: 1 of the 4 runs of torch score lower" in text
    # Among several groups it is placed in each.
    make_run("k0", 0.6)
    make_run("k1", 0.8)
    text = result(f"mine={bare}@0.7236", f"torch={tmp_path}/t*", f"keras={tmp_path}/k*")[1]
    assert "mine is one run, at 0.7236: 4 of the 4 runs of torch score lower" in text
    assert "mine is one run, at 0.7236: 1 of the 2 runs of keras score lower" in text


def test_a_tilde_is_expanded_wherever_a_path_begins(make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a1", "a2", "lr=0.1"):
        make_run(name, 0.7)
    shutil.copy(tmp_path / "a1" / "history.csv", tmp_path / "mine.csv")
    (tmp_path / "mine.csv").write_text((tmp_path / "mine.csv").read_text().replace("0.59", "0.58"))
    assert compare.main(["ours=~/a*", "~/lr=0.1", "theirs=~/mine.csv@0.72", "--out=~/comparison"]) == 0
    groups = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["groups"]
    paths = {label: [run["path"] for run in group["runs"]] for label, group in groups.items()}
    names = {"ours": ("a1", "a2"), "~/lr=0.1": ("lr=0.1",), "theirs": ("mine.csv",)}
    assert paths == {label: [str(tmp_path / name) for name in found] for label, found in names.items()}
    assert "no such run" in (compare.main(["n" * 300]), capsys.readouterr().err)[1]  # not "File name too long"


def test_an_at_sign_within_a_path_does_not_introduce_a_test_accuracy(bare, result, tmp_path):
    place = tmp_path / "x@0.5"
    place.mkdir()
    bare.rename(place / "mine.csv")
    for argument in (place, place / "mine.csv", f"{tmp_path}/x@*/mine.csv"):
        content = result(f"a={argument}")[2]
        assert content["groups"]["a"]["runs"][0]["test accuracy"] is None


def test_without_a_test_accuracy_groups_are_judged_by_validation_accuracy_and_that_is_reported(
    bare, make_run, result, tmp_path
):
    for number in range(4):
        make_run(f"t{number}", 0.70 + number / 1000)
    code, text, content = result(f"mine={bare}", f"torch={tmp_path}/t*", "--within", "0.01")
    assert code == 1
    assert content["judged_by"] == "val_accuracy there"
    assert "Judged by validation accuracy at the best epoch, since not every run has a test accuracy." in text
    assert "Validation accuracy at the best epoch, torch minus mine: -0.1020" in text  # 0.6 - 0.702
    assert "mine is one run, at 0.7020: 4 of the 4 runs of torch score lower" in text


# --- exit codes and files ---------------------------------------------------------------------------------------------


def test_an_internal_failure_has_its_own_exit_code_and_not_that_of_a_verdict(make_run, tmp_path, monkeypatch, capsys):
    arguments = [str(make_run("run", 0.7)), "--out", str(tmp_path)]

    def crash(*_):
        raise RuntimeError("a fault of this program's")

    with monkeypatch.context() as patch:
        patch.setattr(compare, "table", crash)
        assert compare.main(arguments) == 4
    assert "RuntimeError: a fault of this program's" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(plots, "overlay", lambda *_: b"")
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert compare.main(arguments) == 4
    printed = capsys.readouterr()
    assert "cannot write" in printed.err
    assert row(printed.out, "test accuracy") == ["0.7000"]


def test_a_closed_output_pipe_has_the_exit_code_of_a_failure_and_not_that_of_a_verdict(
    make_run, tmp_path, monkeypatch, capsys
):
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(OSError), open(writer, "w") as pipe:  # closing it fails as well
        monkeypatch.setattr(sys, "stdout", pipe)
        code = compare.main([str(make_run("run", 0.7)), "--out", str(tmp_path)])
        monkeypatch.undo()
    assert code == 4
    (how_read,) = capsys.readouterr().err.splitlines()
    assert how_read.startswith(f"{tmp_path}/run: CSV: ")


def test_a_picture_that_cannot_be_drawn_is_reported_in_one_line_and_an_older_one_is_removed(
    make_run, result, tmp_path, monkeypatch, capsys
):
    run, out = make_run("run", 0.7), tmp_path / "out"
    assert compare.main([str(run), "--out", str(out)]) == 0
    assert (out / "comparison.png").exists()
    capsys.readouterr()
    monkeypatch.setattr(plots, "overlay", lambda *_: {}["latex"])
    assert compare.main([f"other={run}", "--out", str(out)]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"{out}/comparison.png: cannot be drawn (KeyError: 'latex'); all numbers are written"
    assert not (out / "comparison.png").exists()
    assert [*json.loads((out / "comparison.json").read_text())["groups"]] == ["other"]


def test_a_full_disk_behind_the_output_has_the_exit_code_of_a_failure_and_not_that_of_a_verdict(
    make_run, tmp_path, monkeypatch
):
    with contextlib.suppress(OSError), open("/dev/full", "w") as out, open("/dev/full", "w") as errors:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", errors)
        code = compare.main([str(make_run("run", 0.7)), "--out", str(tmp_path)])
        monkeypatch.undo()
    assert code == 4


def test_the_table_is_printed_even_if_the_output_folder_cannot_be_made(make_run, capsys):
    run = make_run("run", 0.7)
    assert compare.main([str(run), "--out", str(run / "history.csv")]) == 2
    printed = capsys.readouterr()
    assert "cannot make that folder" in printed.err.splitlines()[-1]
    assert row(printed.out, "test accuracy") == ["0.7000"]


@pytest.mark.parametrize("content", ['{"groups": 1}', "no JSON", "[]", None])
def test_files_that_compare_py_did_not_write_are_not_overwritten(content, make_run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    if content is not None:
        (out / "comparison.json").write_text(content)
    (out / "comparison.png").write_bytes(b"mine")
    assert compare.main([str(make_run("run", 0.7)), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "that compare.py did not write; pass another --out" in printed.err
    assert "0.7000" in printed.out
    assert (out / "comparison.png").read_bytes() == b"mine"
    assert content is None or (out / "comparison.json").read_text() == content


def test_an_earlier_comparison_by_compare_py_is_overwritten(make_run, result):
    assert result(make_run("a", 0.7))[0] == 0
    assert "b" in result(f"b={make_run('b', 0.7)}")[2]["groups"]


@pytest.mark.parametrize(
    ("configs", "loss", "rate"),
    [
        ([config(), config()], "loss with L2 penalty", "learning rate before the epoch"),
        ([config(), config(l2=0.0)], "loss", "learning rate before the epoch"),
        ([config(), None], "loss", "learning rate before the epoch"),
        ([config()], "loss", "learning rate as logged in each epoch"),
    ],
    ids=["with L2", "one with and one without L2", "one unknown", "a bare history"],
)
def test_pictures_are_labelled_with_what_is_known_about_loss_and_rate(
    configs, loss, rate, make_run, bare, result, monkeypatch
):
    names, draw = [], plots.overlay
    monkeypatch.setattr(plots, "overlay", lambda groups, *said: names.extend(said) or draw(groups, *said))
    runs = [f"{number}={make_run(f'r{number}', 0.7, found)}" for number, found in enumerate(configs)]
    result(*runs, *([] if len(configs) > 1 else [f"bare={bare}"]))
    assert names[:2] == [loss, rate]


def test_the_first_cuts_of_several_runs_are_given_as_a_range_of_epochs(make_run, result, tmp_path):
    make_run("t0", 0.7)
    early = make_run("t1", 0.7) / "history.csv"
    early.write_text(early.read_text().replace("2,0.6,0.001", "2,0.6,0.0005"))
    assert row(result(f"torch={tmp_path}/t*")[1], "  after epochs") == ["first", "2", "to", "3"]


def test_a_run_is_found_even_if_its_path_looks_like_a_group_or_a_pattern(make_run, result):
    for name in ("a=b", "[ab]"):
        run = make_run(name, 0.7)
        assert [*result(run)[2]["groups"]] == [str(run)]


@pytest.mark.parametrize("seeds", [(None, None), (0, 1)], ids=["Welch's method", "pairs"])
def test_without_any_spread_there_is_no_interval_and_no_equivalence(seeds, make_run, result, tmp_path):
    for number, seed in enumerate(seeds):
        for name, accuracy in (("k", 0.5), ("t", 0.505)):
            more = {} if seed is None else {"seed": seed, "initial_weights": f"w{seed}"}
            make_run(f"{name}{number}", accuracy + number * 1e-8, **more)  # which float32 rounds away
    code, text, content = result(f"k={tmp_path}/k*", f"t={tmp_path}/t*", "--within", "0.01")
    assert code == 1
    assert content["difference"]["interval"] is None
    assert content["equivalent"] is False
    assert "No interval: at least two runs or pairs with different results" in text
    assert "Equivalent within 1 point? Not shown: there is no interval." in text
    assert row(text, "  its 95 % interval") == ["-", "-"]


def test_runs_with_different_code_are_pooled_only_with_mixed(make_run, tmp_path, capsys):
    other = config() | {"parts": [{"code_sha256": "c0de"}, {"code_sha256": "beef"}]}
    line, printed = both_ways([group_of_two(make_run, tmp_path, second=other)], tmp_path, capsys)
    fault = f"other code: c0de, then beef in {tmp_path}/a1, c0de in {tmp_path}/a0"
    assert fault in line
    assert fault in printed


def test_code_that_differs_between_groups_is_named(make_run, result, tmp_path):
    groups = two_groups(make_run, tmp_path, config() | {"code_sha256": "beef"}, config())
    assert "code of train.py beef; torch: code of train.py c0de" in result(*groups)[1]


def test_versions_devices_and_threads_that_differ_are_reported_in_notes_with_the_table(make_run, result, tmp_path):
    parts = [
        {"code_sha256": "c0de", "torch": torch, "device": device, "threads": threads, "variables": "none"}
        for torch, device, threads in (("2.14.1", "cpu", 1), ("2.15.0", "cpu", 1), ("2.15.0", "cuda", 2))
    ]
    make_run("a0", 0.7, config() | {"parts": parts[:1]}, seed=0)
    make_run("a1", 0.71, config() | {"parts": parts[:2]}, seed=1)
    make_run("b0", 0.72, config() | {"parts": parts[2:]}, seed=2)
    code, text, content = result(f"a={tmp_path}/a*", f"b={tmp_path}/b*")
    assert code == 0
    assert content["notes"] == [
        "Not all have the same version of torch: a: 2.14.1 (1), 2.14.1, then 2.15.0 (1); b: 2.15.0.",
        "Not all have the same kind of device: a: cpu; b: cuda.",
        "Not all have the same number of threads: a: 1; b: 2.",
    ]
    assert content["notes"][0] in text


def test_a_run_that_was_ended_by_another_callback_is_reported(make_run, result, tmp_path):
    make_run("a0", 0.7, config())
    run = make_run("a1", 0.71, config(), stopped="good enough")
    _, text, _ = result(f"a={tmp_path}/a*")
    assert f"{run} was ended by a callback, after epoch 4: good enough." in text


def test_the_best_epoch_is_that_of_early_stopping_if_losses_are_equal_in_float32(tmp_path):
    losses = [1.5, 1.2000000001, 1.2, 1.3]
    assert losses.index(min(losses)) == 2
    stopping = callbacks.EarlyStopping(patience=9)
    for epoch, loss in enumerate(losses):
        stopping.after_epoch(epoch, {"val_loss": loss})
    assert history.best_epoch(losses) == stopping.best_epoch == 1


@pytest.mark.parametrize(
    ("rates", "schedule"),
    [
        ([1e-3] * 5 + [5e-4, 2.5e-4, 1.25e-4] + [1e-4] * 6, False),  # cuts in a row, the last one down to a floor
        ([1e-3 * 0.9**epoch for epoch in range(14)], True),  # exponential decay
        ([1e-3, 9e-4, 7e-4, 4e-4] + [1e-4] * 9, True),  # a curve
        ([1e-4, 1e-3, 1e-4], True),
        ([1e-3] * 9, False),
    ],
)
def test_cuts_in_a_row_count_as_a_schedule_only_if_their_factors_differ_or_they_fill_most_epochs(
    rates, schedule, tmp_path
):
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"loss": [1.0] * len(rates), "lr": rates}))
    assert figures.scheduled(histories.read(path), []) is schedule


def test_each_of_several_groups_is_compared_with_the_first_by_intervals_corrected_for_their_number(
    make_run, result, tmp_path
):
    accuracies = {"a": [0.70, 0.72, 0.71], "b": [0.71, 0.74, 0.72], "c": [0.60, 0.63, 0.61]}
    for label, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            make_run(f"{label}{seed}", accuracy, config(), seed=seed, initial_weights=f"w{seed}")
    code, text, content = result(*(f"{label}={tmp_path}/{label}*" for label in accuracies))
    assert code == 0
    assert (
        "Differences from a in test accuracy; 95 % intervals, corrected for 2 comparisons (Bonferroni):\nb minus a: "
        in text
    )
    assert "\n\n\n" not in text
    pairs = np.subtract(accuracies["b"], accuracies["a"])
    half = stats.t.ppf(1 - 0.025 / 2, 2) * pairs.std(ddof=1) / 3**0.5
    difference = content["differences from the first"]["b"]
    assert difference["interval"] == pytest.approx([pairs.mean() - half, pairs.mean() + half])
    assert difference["method"] == "3 pairs with the same initial weights"
