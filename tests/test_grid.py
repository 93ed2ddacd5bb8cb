"""sweep.py --grid: runs of each setting with each seed, and a table with a row for each setting at the end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

import plots
import sweep
from cli.errors import BadInput
from comparing import grid, intervals
from comparing.histories import Training
from running.lock import InUse, refuse_in_use
from running.outcome import CONFIG, HISTORY, METRICS


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("comparisons", [1, 2, 5, 23, 200])
def test_the_quantile_for_several_comparisons_is_corrected_by_bonferroni(freedom, comparisons):
    expected = stats.t.ppf(1 - 0.025 / comparisons, freedom)
    assert intervals.t_quantile(freedom, comparisons) == pytest.approx(expected, rel=1e-6)


def run(setting, seed, accuracy):
    history = {"loss": [1.0, 0.9], "val_loss": [1.1, 1.0], "val_accuracy": [0.1, accuracy]}
    metrics = {"test_accuracy": accuracy - 0.1, "seconds_per_epoch": [30.0, 90.0]}
    return Training(f"{setting}-{seed}", history, metrics, {"flags": {"seed": seed}}, "CSV", [])


def test_settings_are_sorted_by_validation_and_compared_with_the_default_seed_by_seed():
    of_default, of_others = [0.50, 0.54, 0.52], {"a": [0.51, 0.56, 0.53], "b": [0.40, 0.44, 0.41]}
    groups = {"default": [run("default", seed, value) for seed, value in enumerate(of_default)]}
    groups |= {
        name: [run(name, seed, value) for seed, value in enumerate(values)] for name, values in of_others.items()
    }
    rows = grid.settings(groups, "default")
    assert [row.label for row in rows] == ["a", "default", "b"]
    differences = np.subtract(of_others["a"], of_default)
    assert rows[0].difference.mean == pytest.approx(differences.mean())
    half = stats.t.ppf(1 - 0.025 / 2, 2) * differences.std(ddof=1) / 3**0.5  # two settings besides the default
    assert rows[0].difference.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert (rows[1].difference, rows[0].minutes, rows[0].epochs.mean) == (None, 2.0, 2.0)
    assert grid.in_words(rows, "default") == [
        "Best by validation of 3 settings: a (0.5333 ± 0.0252).",
        "Differences from the default, default, are over pairs of runs with the same seed,",
        "with 95 % intervals that are corrected for 2 comparisons (Bonferroni).",
    ]
    of_two = grid.settings({name: groups[name] for name in ("default", "a")}, "default")
    assert grid.in_words(of_two, "default")[2] == "with 95 % intervals."


def test_reasons_why_the_order_of_a_grid_is_unsure_are_reported():
    groups = {"a": [run("a", 0, 0.6), run("a", 1, 0.7)], "b": [run("b", 0, 0.5)]}
    assert grid.in_words(grid.settings(groups, None), None, ["c"], runs=3) == [
        "Best by validation of 2 settings: a (0.6500 ± 0.0707).",
        "No run has finished for c.",
        "Not all of the 3 runs have finished for a (2), b (1): such means are over",
        "other seeds, and a seed can be worth more than a setting.",
        "No difference is stated, since no setting of the grid is the default.",
    ]
    rows = grid.settings({name: group[:1] for name, group in groups.items()}, "a")
    assert grid.in_words(rows, "a")[1:] == ["One seed each: the order may be due to chance. Pass several --seeds."]


def test_a_number_is_the_same_setting_however_it_is_written(little):
    words = ["--seeds", "0", "--grid", "l2=.001,1e-2", "batch_size=016", "schedule=plateau,cosine", "--"]
    planned = sweep.plan(*sweep.parse_arguments([*words, "--data", str(little)]))
    assert [run.setting for run in planned][:2] == [
        "l2=0.001 batch_size=16 schedule=plateau",
        "l2=0.001 batch_size=16 schedule=cosine",
    ]


def test_a_dry_run_prints_a_command_for_each_setting_and_seed_with_directories_named_after_them(little, capsys):
    arguments = [
        "--seeds",
        "0-1",
        "--dry-run",
        "--grid",
        "l2=0.001,0.01",
        "lookahead=off,on",
        "--",
        "--data",
        str(little),
    ]
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert " --l2=0.01 --lookahead " not in lines[0]
    assert re.search(r" --l2=0\.01 --lookahead .*--seed 1 ", lines[7])
    out = sweep.plan(*sweep.parse_arguments(arguments))[7].options.out
    assert str(out) == "runs/baseline-little-l2_0.01-lookahead_True-seed1"


@pytest.mark.parametrize(
    ("setting", "behind", "default"),
    [
        ("augment=on,off", ["--model", "improved"], "augment=on"),
        ("augment=on,off", [], "augment=off"),
        ("weight_decay=0,0.004", ["--optimizer", "adamw"], "weight_decay=0.004"),
        ("l2=0,0.001", ["--recipe", "fast", "--no-mixed-precision"], "l2=0"),
    ],
)
def test_the_default_setting_follows_from_the_other_options_and_each_value_is_its_own_run(
    setting, behind, default, little
):
    words = ["--seeds", "0", "--grid", setting, "--", "--data", str(little), *behind]
    planned = sweep.plan(*sweep.parse_arguments(words))
    assert [run.setting for run in planned if run.is_default] == [default]
    name = setting.partition("=")[0]
    assert len({run.options.flags()[name] for run in planned}) == 2
    assert len({run.options.out for run in planned}) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rate=1,2"], "'rate=1,2': not an option of train.py that affects results"),
        (["seed=1,2"], "'seed=1,2': --seed is not a setting that a grid can vary; run a sweep for each value"),
        (["l2=1,"], "'l2=1,': separate the values by commas, and give each only once"),
        (["l2=1,2", "l2=3"], "--grid: has an option twice"),
        (["l2=high"], "argument --l2: 'high' is not a number"),
        (["lr=0.001,1e-3"], "--grid: two values of an option are the same; give each once"),
        (["augment=on,1"], "--grid: augment=1: is a switch; its values are on and off"),
        (["l2=1,2", "--", "--l2", "3"], "--l2 after --: --grid varies it; leave it out there"),
        (["l2=1,2", "--keras"], "--grid: not with --keras"),
        (["l2=1,2", "--", "--out", "runs/<seed>"], "is the same for two runs; put <seed> and <l2> into it"),
    ],
)
def test_an_impossible_grid_is_refused_in_one_line(words, message, capsys):
    assert sweep.main(["--seeds", "0", "--grid", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


WHOLE = {"settings": {"l2=0.001": {}, "l2=0.01": {}}, "seeds": [0, 1], "options": {"lr": 0.002}}


@pytest.mark.parametrize(
    ("earlier", "refused"),
    [
        (WHOLE, None),
        (WHOLE | {"settings": {"l2=0.001": {}}, "seeds": [1]}, None),  # a part of it, which is extended
        (WHOLE | {"settings": {"dropout=0.3": {}}}, "has dropout=0.3, which this grid lacks"),
        (WHOLE | {"seeds": [0, 1, 2]}, "has seed 2, which this grid lacks; ask for these too, or pass another --out"),
        (WHOLE | {"options": {"lr": 0.003}}, "has --lr 0.003, which"),
        (WHOLE | {"options": {"lr": 0.002, "epochs": 3}}, None),  # the same runs, which are resumed
        ({"settings": 3}, "was not written by sweep.py"),
        ({}, "was not written by sweep.py"),
        (None, "was not written by sweep.py"),  # another program's grid.png
    ],
)
def test_a_grid_does_not_overwrite_the_figures_of_another(earlier, refused, little, tmp_path):
    if earlier is None:
        (tmp_path / "grid.png").touch()
    else:
        if "options" in earlier:
            earlier = earlier | {"options": {"data": str(little), "epochs": 50} | earlier["options"]}
        (tmp_path / "grid.json").write_text(json.dumps(earlier))
    words = ["--seeds", "0-1", "--grid", "l2=0.001,0.01", "--", "--data", str(little), "--lr", "0.002"]
    planned = sweep.plan(*sweep.parse_arguments(words))
    if not refused:
        assert sweep.claim(tmp_path, planned) is None
        return
    with pytest.raises(BadInput, match=refused):
        sweep.claim(tmp_path, planned)


@pytest.mark.parametrize("of_stand_in", [False, True])
def test_a_grid_on_the_stand_in_says_so_in_its_table_and_its_picture(
    of_stand_in, finished, tmp_path, monkeypatch, capsys
):
    words = ["--seeds", "0", "--out", str(tmp_path), "--grid", "dropout=0.3,0.5", "--", "--data", "synthetic"]
    args, flags = sweep.parse_arguments(words)
    planned, pairs, titles = sweep.plan(args, flags), [], []
    for place in planned:
        out = shutil.copytree(finished, tmp_path / place.setting)
        if of_stand_in:
            config = json.loads((out / CONFIG).read_text()) | {"data": "NOT CIFAR-10"}
            (out / CONFIG).write_text(json.dumps(config))
            (out / METRICS).write_text(json.dumps(json.loads((out / METRICS).read_text()) | {"data": "NOT CIFAR-10"}))
        pairs.append([types.SimpleNamespace(out=out, accuracy=0.5)])
    monkeypatch.setattr(plots, "settings", lambda _, title: titles.append(title) or b"")
    assert sweep.compare_settings(args, planned, pairs) == 0
    assert ("All runs use the stand-in data, NOT CIFAR-10." in capsys.readouterr().out) is of_stand_in
    assert titles == ["NOT CIFAR-10" if of_stand_in else ""]


def test_failed_runs_are_reported_even_if_the_others_cannot_be_compared(little, tmp_path, monkeypatch, capsys):
    def work(queue, *_):
        queue[0].fault = "exit code 1"

    def refuse(*_):
        raise BadInput("not together")

    monkeypatch.setattr(sweep.jobs, "work", work)
    monkeypatch.setattr(sweep, "compare_settings", refuse)
    out = str(tmp_path / "<l2>-<seed>")
    assert sweep.main(["--seeds", "0", "--grid", "l2=0,1", "--", "--data", str(little), "--out", out]) == 2
    printed = capsys.readouterr()
    assert "1 of 2 runs failed" in printed.out
    assert printed.err == "sweep.py: error: not together\n"


EPOCHS = 10


def run_in_the_middle(sweeper, folder):
    """Wait until a run of this sweep has finished some of its epochs, and return the number of its process."""
    while sweeper.poll() is None:
        for history in folder.glob(f"*/{HISTORY}"):
            if 1 < history.read_text().count("\n") < EPOCHS:  # with its heading
                try:
                    refuse_in_use(history.parent)
                except InUse as holder:
                    return int(str(holder).removeprefix("process ").split()[0])
        time.sleep(0.01)
    pytest.fail("the sweep ended before it was disturbed")


@pytest.mark.slow
def test_a_grid_resumed_after_its_sweep_and_a_run_were_killed_equals_an_uninterrupted_one(npz, tmp_path):
    def command(folder):
        behind = ["--data", npz, "--epochs", EPOCHS, "--out", tmp_path / folder / "<l2>-<dropout>-<seed>"]
        own = [sys.executable, ROOT / "sweep.py", "--seeds", "0-1", "--grid", "l2=0.001,0.01", "dropout=0.3,0.5", "--"]
        return [*map(str, [*own, *behind])]

    assert subprocess.run(command("whole"), capture_output=True, check=False).returncode == 0
    sweeper = subprocess.Popen(command("disturbed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.kill(run_in_the_middle(sweeper, tmp_path / "disturbed"), signal.SIGKILL)
    run_in_the_middle(sweeper, tmp_path / "disturbed")
    sweeper.kill()
    sweeper.wait()
    again = subprocess.run(command("disturbed"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Best by validation of 4 settings: " in again.stdout
    runs = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_dir())
    assert len(runs) == 8
    for name in runs:
        whole, disturbed = (tmp_path / folder / name for folder in ("whole", "disturbed"))
        assert (whole / HISTORY).read_bytes() == (disturbed / HISTORY).read_bytes()
        accuracies = [json.loads((path / METRICS).read_text())["test_accuracy"] for path in (whole, disturbed)]
        assert accuracies[0] == accuracies[1]
