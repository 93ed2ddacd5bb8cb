"""Many seeds by one command. A small script stands in for train.py and Keras's side if only the sweep is tested."""

import errno
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import plots
import sources
import sweep
from cli.errors import BadInput
from cli.flags import flag_of
from options import Options
from running.lock import DirectoryLock
from sources.source import fingerprint
from sweeping import jobs, keras_side
from sweeping.keras_side import KerasSide

# It performs the seed's action for this attempt: exit with a code, send itself a signal (negative), or wait. Like the
# real programs, it refuses a directory that is in use, and reports a finished run as finished.
STAND_IN = """
import json, os, pathlib, shutil, signal, sys, time
from filelock import FileLock, Timeout
words = sys.argv[1:]
seed, out = (words[len(words) - words[::-1].index(flag)] for flag in ("--seed", "--out"))
out, template = pathlib.Path(out.replace("<seed>", seed)), pathlib.Path(os.environ["TEMPLATE"])
attempts = (out / "sweep.log").read_text().count("$ ")
try:
    lock = FileLock(out / ".lock", timeout=0).acquire()
except Timeout:
    print("in use by another process")
    sys.exit(2)
actions = json.loads(os.environ["ACTIONS"]).get(out.name, [0])
action = actions[min(attempts, len(actions)) - 1]
if action == 0 and (out / "metrics.json").exists():
    print("finished already")
    sys.exit(0)
print("on", os.environ.get("CUDA_VISIBLE_DEVICES") or "no GPU", flush=True)
if action in ("wait", "deaf"):
    def ended(number, _):
        print("asked to end by", signal.Signals(number).name, flush=True)
        if action == "wait" or asked:
            os._exit(143)
        asked.append(1)
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ended)
    (out / "ready").touch()
    while not (template.parent / "go").exists():
        time.sleep(0.01)
    action = 0
if action < 0:
    (out / "config.json").touch() if "keras" in out.name else None
    os.kill(os.getpid(), -action)
if action:
    print("the reason of", action)
    sys.exit(action)
for file in template.iterdir():
    shutil.copy(file, out)
config, metrics = (json.loads((out / name).read_text()) for name in ("config.json", "metrics.json"))
if "keras" in out.name:
    config |= {"program": "reference/keras_notebook.py", "model": "keras notebook"}
    del config["code_sha256"], config["parts"]  # train.py's
    config["flags"] = {"epochs": 2, "seed": int(seed)}
    config["flags"]["dropout"] = float(words[words.index("--dropout") + 1]) if "--dropout" in words else 0.5
    config["backend"] = os.environ["KERAS_BACKEND"]
    metrics["model"] = "keras notebook"
else:
    start = words[words.index("--init-weights") + 1] if "--init-weights" in words else None
    config["flags"] |= {"seed": int(seed), "init_weights": start}
squared = int(seed) ** 2 if "keras" in out.name else int(seed)
metrics |= {"test_accuracy": 0.7 + squared / 1000, "initial_weights": seed, "seed": int(seed), "best_epoch_logs": None}
(out / "config.json").write_text(json.dumps(config))
(out / "metrics.json").write_text(json.dumps(metrics))
rows = [row.split(",") for row in (out / "history.csv").read_text().splitlines()]
for row in rows[1:]:
    row[3] = str(float(row[3]) + int(seed) + (100 if "keras" in out.name else 0))
(out / "history.csv").write_text("\\n".join(map(",".join, rows)) + "\\n")
"""


@pytest.fixture
def begin(finished, npz, tmp_path, monkeypatch):
    """Run `sweep.main` with stand-ins for runs of 2 epochs; `actions` are keyed by the name of the run's directory."""
    project = tmp_path / "project"
    (project / "reference").mkdir(parents=True)
    for program in ("train.py", "reference/keras_notebook.py"):
        (project / program).write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "ROOT", project)
    monkeypatch.setattr(jobs, "PAUSE", 0.01)
    monkeypatch.setattr(KerasSide, "refuse_without", lambda *_, **__: None)
    monkeypatch.setattr(plots, "overlay", lambda *_: b"")
    template = tmp_path / "template"
    template.mkdir()
    for name in ("config.json", "metrics.json", "history.csv", "curves.png"):
        (template / name).write_bytes((finished / name).read_bytes())
    monkeypatch.setenv("TEMPLATE", str(template))

    def run(*words, behind=(), **actions):
        monkeypatch.setenv("ACTIONS", json.dumps(actions))
        own = ["--data", str(npz), "--epochs", "2", "--out", "r/s<seed>", *behind]
        return sweep.main([*words, "--", *own])

    return run


def starts(tmp_path):
    """How often each run was started, by the name of its directory."""
    return {log.parent.name: log.read_text().count("$ ") for log in sorted(tmp_path.glob("r/*/sweep.log"))}


def test_each_seed_is_trained_once_and_all_results_are_reported_together(begin, tmp_path, capsys):
    assert begin("--seeds", "0") == 0
    assert capsys.readouterr().out.startswith("1 run: 0 finished; ")
    assert begin("--seeds", "0,2-3,2") == 0
    said = capsys.readouterr().out
    assert said.startswith("3 runs: 1 finished; ")
    assert {f"seed {seed}: test accuracy 0.70{seed}0, r/s{seed}" for seed in (2, 3)} <= {
        line.partition("] ")[2] for line in said.splitlines()
    }
    assert re.search(r"test accuracy +0.7017 ± 0.0015", said)
    assert (tmp_path / "r" / "comparison.json").exists()
    assert begin("--seeds", "0-3") == 0  # one more
    assert re.search(r"^runs +4$", capsys.readouterr().out, re.MULTILINE)
    assert starts(tmp_path) == {"s0": 1, "s1": 1, "s2": 1, "s3": 1}


def test_a_killed_run_is_restarted_up_to_three_times_and_a_failed_one_is_named_with_its_reason(begin, tmp_path, capsys):
    actions = {"s0": [-9, -15, 143, 0], "s1": [-9], "s2": [1], "s3": [2], "s4": [3], "s5": [-11]}
    assert begin("--seeds", "0-6", "--jobs", "7", **actions) == 1
    assert starts(tmp_path) == {"s0": 4, "s1": 4, "s2": 1, "s3": 1, "s4": 1, "s5": 1, "s6": 1}
    said = capsys.readouterr().out
    assert re.search(r"^runs +2$", said, re.MULTILINE)
    failed = said[said.index("5 of 7 runs failed") :].splitlines()[1:]
    assert [line.split(" (r/")[0] for line in failed] == [
        "seed 1: exit code 137: on no GPU",
        *(f"seed {seed}: exit code {code}: the reason of {code}" for seed, code in ((2, 1), (3, 2), (4, 3))),
        "seed 5: exit code 139: on no GPU",
    ]
    assert begin("--seeds", "0-6") == 0  # tries the failed ones again
    assert starts(tmp_path) == {"s0": 4, "s1": 5, "s2": 2, "s3": 2, "s4": 2, "s5": 2, "s6": 1}


def when(condition, act):
    """Call `act` in a thread of its own as soon as `condition` holds."""

    def watch():
        while not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def ready(tmp_path, count):
    return lambda: len([*tmp_path.glob("r/*/ready")]) >= count


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)], ids=lambda x: str(int(x))
)
def test_a_signal_is_passed_to_every_run_and_the_sweep_waits_for_them_to_end(signum, code, begin, tmp_path, capsys):
    when(ready(tmp_path, 2), lambda: os.kill(os.getpid(), signum))
    assert begin("--seeds", "0-3", "--jobs", "2", s0=["wait"], s1=["wait"]) == code
    logs = [log.read_text() for log in tmp_path.glob("r/*/sweep.log")]
    ends = [log.splitlines()[-1] for log in logs]
    assert ends == [f"asked to end by {signum.name}"] * 2  # seeds 2 and 3 were not started
    error = capsys.readouterr().err
    assert f"interrupted by {signum.name}; the same command continues" in error
    assert begin("--seeds", "0-3") == 0
    assert starts(tmp_path) == {"s0": 2, "s1": 2, "s2": 1, "s3": 1}


def test_a_second_signal_is_passed_on_too_and_ends_the_sweep_without_waiting(begin, tmp_path):
    def act():
        os.kill(os.getpid(), signal.SIGTERM)
        when(lambda: "asked" in (tmp_path / "r/s0/sweep.log").read_text(), lambda: os.kill(os.getpid(), signal.SIGINT))

    when(ready(tmp_path, 1), act)
    assert begin("--seeds", "0", s0=["deaf"]) == 130
    while (tmp_path / "r/s0/sweep.log").read_text().count("asked to end") < 2:
        time.sleep(0.01)


def other_sweep(words, log):
    sys.stdout = log.open("w")
    os._exit(sweep.main(words))


def trainings(tmp_path):
    """How often each run was trained, not counting starts that found it finished."""
    logs = {log.parent.name: log.read_text() for log in sorted(tmp_path.glob("r/*/sweep.log"))}
    return {name: len(re.findall("^on ", log, re.MULTILINE)) for name, log in logs.items()}


def test_runs_that_outlive_a_killed_sweep_are_waited_for_and_not_trained_again(
    begin, tmp_path, npz, monkeypatch, capsys
):
    monkeypatch.setenv("ACTIONS", json.dumps({"s0": ["wait"], "s1": ["wait"]}))
    words = ["--seeds", "0-1", "--jobs", "2", "--", "--data", str(npz), "--epochs", "2", "--out", "r/s<seed>"]
    killed = multiprocessing.get_context("fork").Process(target=other_sweep, args=(words, tmp_path / "log"))
    killed.start()
    when(ready(tmp_path, 2), killed.kill).join()
    killed.join()
    when(lambda: "in use" in capsys.readouterr().out, (tmp_path / "go").touch)
    assert begin("--seeds", "0-2") == 0
    assert trainings(tmp_path) == {"s0": 1, "s1": 1, "s2": 1}


def test_two_sweeps_over_the_same_seeds_share_the_work_and_both_report_the_results(
    begin, tmp_path, npz, monkeypatch, capsys
):
    monkeypatch.setenv("ACTIONS", json.dumps({"s0": ["wait"], "s1": ["wait"]}))
    words = ["--seeds", "0-1", "--jobs", "2", "--", "--data", str(npz), "--epochs", "2", "--out", "r/s<seed>"]
    other = multiprocessing.get_context("fork").Process(target=other_sweep, args=(words, tmp_path / "log"))
    other.start()
    when(ready(tmp_path, 2), lambda: None).join()
    said = []
    when(lambda: said.append(capsys.readouterr().out) or "".join(said).count("in use") == 2, (tmp_path / "go").touch)
    assert begin("--seeds", "0-2") == 0
    other.join()
    assert other.exitcode == 0
    said.append(capsys.readouterr().out)
    assert re.search(r"^runs +3$", "".join(said), re.MULTILINE)
    assert re.search(r"^runs +2$", (tmp_path / "log").read_text(), re.MULTILINE)
    assert trainings(tmp_path) == {"s0": 1, "s1": 1, "s2": 1}


def occupy(folder):
    lock = DirectoryLock(folder)
    lock.claim()
    (folder / "occupied").touch()
    signal.pause()


@pytest.fixture
def occupied():
    """Start a process that holds a directory's lock until it is killed; returns the process."""
    started = []

    def run(folder):
        started.append(multiprocessing.get_context("fork").Process(target=occupy, args=(folder,)))
        started[-1].start()
        while not (folder / "occupied").exists():
            time.sleep(0.01)
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.join()


def test_a_seed_in_use_by_another_process_has_its_turn_when_that_process_ends(begin, occupied, tmp_path, capsys):
    (tmp_path / "r" / "s0").mkdir(parents=True)
    other = occupied(tmp_path / "r" / "s0")
    when(lambda: (tmp_path / "r/s1/metrics.json").exists(), lambda: (time.sleep(0.1), other.kill()))
    assert begin("--seeds", "0-1", "--jobs", "1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"seed 0: r/s0 is in use by process {other.pid} on {os.uname().nodename}; waiting for its end"
    assert [line.partition(",")[0] for line in said[2:4]] == [
        "[1/2] seed 1: test accuracy 0.7010",
        "[2/2] seed 0: test accuracy 0.7000",
    ]


def test_a_run_refused_because_another_process_was_faster_has_not_failed_and_can_be_tried_again(occupied, tmp_path):
    (tmp_path / "run").mkdir()
    job = jobs.Job("seed 0", tmp_path / "run", [sys.executable, "-c", "raise SystemExit('the reason')"], {}, 1)
    job.start()
    other = occupied(tmp_path / "run")
    job.process.wait()
    job.poll()
    assert (job.done, job.process) == (False, None)  # it can be started again
    other.kill()
    other.join()
    job.start()
    job.process.wait()
    job.poll()
    assert job.fault == "exit code 1: the reason"


def test_a_run_refused_because_another_process_was_faster_has_finished_if_that_one_has(finished, tmp_path):
    job = jobs.Job("seed 0", tmp_path / "run", [sys.executable, "-c", "raise SystemExit(2)"], {}, 2)
    job.start()
    shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
    job.process.wait()
    job.poll()
    assert (job.fault, job.done) == (None, True)
    job.accuracy = None
    job.start()
    job.process.wait()
    job.poll()
    assert job.fault.startswith("exit code 2")  # it was refused for another reason: the run had finished before


@pytest.mark.parametrize("log", [True, False], ids=["with the log of a sweep", "without the log of a sweep"])
def test_a_keras_run_started_by_hand_is_waited_for_and_its_files_are_left_alone(log, begin, occupied, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    by_hand = tmp_path / "r" / "keras-small-seed0"
    metrics = (by_hand / "metrics.json").read_bytes()
    (by_hand / "metrics.json").unlink()
    if not log:
        (by_hand / "sweep.log").unlink()
    before = {path: path.read_bytes() for path in by_hand.iterdir() if path.suffix in (".json", ".csv", ".npz")}
    other = occupied(by_hand)

    def end():
        (by_hand / "metrics.json").write_bytes(metrics)
        other.kill()

    when(lambda: "keras-small-seed0 is in use by process" in capsys.readouterr().out, end)
    assert begin("--seeds", "0", "--keras") == 0
    assert trainings(tmp_path) == {"keras-small-seed0": int(log), "s0": 1}
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_cannot_be_started_fails_and_the_others_continue(begin, monkeypatch, capsys):
    popen = subprocess.Popen

    def full(command, **settings):
        if "s1" in str(settings["stdout"].name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return popen(command, **settings)

    monkeypatch.setattr(subprocess, "Popen", full)
    assert begin("--seeds", "0-2") == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "seed 1: cannot start ([Errno 28] No space left on device) (r/s1/sweep.log)"
    assert re.search(r"^runs +2$", said, re.MULTILINE)


@pytest.mark.parametrize(("within", "code"), [("0.02", 0), ("0.0001", 1)])
def test_keras_runs_first_in_each_pair_and_the_exit_code_says_whether_the_two_are_equivalent(
    within, code, begin, tmp_path, capsys
):
    killed = {"keras-small-seed1": [-9, 0]}  # it cannot be resumed, and is restarted
    flags = ("--dropout", "0.25", "--mixed-precision")
    assert begin("--seeds", "0-2", "--keras", "--within", within, behind=flags, **killed) == code
    said = capsys.readouterr().out
    ended = re.findall(r"^\[./6\] (seed .*?):", said, re.MULTILINE)
    assert sorted(ended, key=lambda name: name[:6]) == [f"seed {n}{side}" for n in range(3) for side in (", keras", "")]
    assert "(3 pairs with the same initial weights)" in said
    log = (tmp_path / "r/keras-small-seed1/sweep.log").read_text()
    assert log.count("--dropout 0.25 ") == log.count("KERAS_BACKEND=torch ") == 2
    assert "--epochs 2" in log
    assert "mixed" not in log
    assert (
        "--init-weights r/keras-small-seed1/initial_weights.npz --resume" in (tmp_path / "r/s1/sweep.log").read_text()
    )


def test_if_a_keras_run_fails_its_counterpart_is_not_started_and_the_other_pairs_are_compared(begin, tmp_path, capsys):
    assert begin("--seeds", "0-2", "--keras", behind=("--dropout", "0.25"), **{"keras-small-seed1": [2]}) == 1
    said = capsys.readouterr().out
    assert "(2 pairs" in said
    assert "seed 1: not started, since seed 1, keras failed" in said
    assert not (tmp_path / "r/s1").exists()
    assert begin("--seeds", "0-2", "--keras", behind=("--dropout", "0")) == 2  # not the Keras runs' recipe
    assert "r/keras-small-seed0: the run there had --dropout 0.25; delete it" in capsys.readouterr().err


def test_a_keras_run_on_another_backend_is_not_accepted_as_finished(begin, monkeypatch, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert begin("--seeds", "0", "--keras") == 2
    said = "r/keras-small-seed0: the run there had the backend torch (set KERAS_BACKEND=torch)"
    assert said in capsys.readouterr().err


def test_a_run_not_started_from_the_weights_of_keras_is_refused_before_keras_starts(begin, tmp_path, capsys):
    assert begin("--seeds", "0") == 0
    assert begin("--seeds", "0", "--keras") == 2
    assert "r/s0: its run cannot be resumed with --init-weights" in capsys.readouterr().err
    assert starts(tmp_path) == {"s0": 1}


def test_a_keras_run_that_stopped_early_still_counts_as_finished_when_more_epochs_are_requested(
    begin, tmp_path, capsys
):
    assert begin("--seeds", "0", "--keras") == 0  # 2 epochs
    assert begin("--seeds", "0", "--keras", behind=("--epochs", "3")) == 2
    assert "the run there had --epochs 2" in capsys.readouterr().err
    for metrics in tmp_path.glob("r/*/metrics.json"):
        metrics.write_text(metrics.read_text().replace("all epochs used", "early stopping"))
    assert begin("--seeds", "0", "--keras", behind=("--epochs", "3")) == 0
    assert starts(tmp_path) == {"keras-small-seed0": 1, "s0": 1}


def test_a_finished_run_is_started_again_to_be_checked_if_its_keras_run_was_repeated(begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    shutil.rmtree(tmp_path / "r/keras-small-seed0")
    assert begin("--seeds", "0", "--keras", s0=[0, 2]) == 1  # as train.py refuses other weights than the run's
    assert "seed 0: exit code 2: the reason of 2" in capsys.readouterr().out
    assert starts(tmp_path) == {"keras-small-seed0": 1, "s0": 2}


def test_a_keras_run_interrupted_in_the_middle_of_a_file_is_restarted_by_the_same_command(begin, tmp_path):
    assert begin("--seeds", "0", "--keras", **{"keras-small-seed0": [1]}) == 1
    (tmp_path / "r/keras-small-seed0/config.json").write_text('{"model": ')
    assert begin("--seeds", "0", "--keras") == 0
    assert starts(tmp_path) == {"keras-small-seed0": 2, "s0": 1}


def test_the_improved_network_can_be_paired_with_keras_without_augmentation(begin, tmp_path):
    assert begin("--seeds", "0", "--keras", behind=("--model", "improved", "--no-augment")) == 0
    log = (tmp_path / "r/keras-small-seed0/sweep.log").read_text()
    assert "--model improved" in log
    assert "augment" not in log


def test_a_data_folder_that_no_run_uses_may_hold_anything(begin, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x_train.npy").touch()
    assert begin("--seeds", "0", "--keras") == 0


def test_no_picture_is_named_where_none_was_written(begin, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/comparison.json").write_text("{}")
    assert begin("--seeds", "0", "--out", "mine") == 2
    printed = capsys.readouterr()
    assert "that compare.py did not write" in printed.err
    assert "Picture" not in printed.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"seed": 55}, "the run there had --seed 55; delete it"),
        ({"draws": "draws.npz"}, "the run there had --draws; delete it"),
        (None, "the run there was not written by reference/keras_notebook.py; pass another --out"),
        ("gone", "the run there was not written by reference/keras_notebook.py; pass another --out"),
    ],
)
def test_a_directory_whose_run_is_not_the_expected_keras_run_is_refused(flags, said, begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    config, metrics = (tmp_path / "r/keras-small-seed0" / name for name in ("config.json", "metrics.json"))
    before = json.loads(config.read_text())
    if flags == "gone":
        config.unlink()
    else:
        config.write_text(json.dumps(before | {"flags": flags and before["flags"] | flags}))
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"seed": (flags or {}).get("seed", 0)}))
    assert begin("--seeds", "0", "--keras") == 2
    assert f"r/keras-small-seed0: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "behind", "said"),
    [
        (["--out", "file"], [], "--out file: cannot make that folder"),
        (
            ["--out", "others"],
            [],
            "--out others: has a comparison.json or comparison.png that compare.py did not write",
        ),
        (
            ["--keras"],
            ["--out", "r/keras-small-seed<seed>"],
            "--out r/keras-small-seed0 after --: --keras writes its run there",
        ),
        ([], ["--init-weights", "gone.npz"], "--init-weights gone.npz: no such file"),
    ],
)
def test_a_sweep_that_could_not_succeed_is_refused_before_any_run_starts(own, behind, said, begin, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others/comparison.json").write_text("{}")
    assert begin("--seeds", "0", *own, behind=behind) == 2
    assert said in capsys.readouterr().err
    assert starts(tmp_path) == {}


def test_finished_runs_are_refused_if_their_data_have_changed_and_reported_if_their_data_are_gone(
    begin, npz, tmp_path, capsys
):
    own = tmp_path / "own.npz"
    own.write_bytes(npz.read_bytes())
    for run in ("s0", "s1"):
        assert begin("--seeds", run[1], behind=["--data", str(own)]) == 0
    capsys.readouterr()
    arrays = dict(np.load(own))
    np.savez(own, **arrays | {"x_test": arrays["x_test"][::-1]})
    assert begin("--seeds", "0-1", behind=["--data", str(own)]) == 2
    assert "r/s0: the run there had other images or labels; delete it" in capsys.readouterr().err
    own.unlink()
    assert begin("--seeds", "0-1", behind=["--data", str(own)]) == 0
    said = capsys.readouterr().out
    assert f"Its data can no longer be read from {own}, so it is not known whether they have changed.\n" in said
    assert re.search(r"^runs +2$", said, re.MULTILINE)


def test_a_keras_run_on_different_data_is_refused_before_any_run_starts(begin, npz, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    config = tmp_path / "r/keras-small-seed0/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data_sha256": "another"}))
    assert begin("--seeds", "0-1", "--keras") == 2
    assert "r/keras-small-seed0: the run there had other images or labels; delete" in capsys.readouterr().err
    assert not (tmp_path / "r/s1").exists()
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"data_sha256": fingerprint(sources.choose(str(npz)).load())})
    )
    assert begin("--seeds", "0-1", "--keras") == 0


def test_an_unfinished_keras_run_that_no_sweep_started_is_not_restarted(begin, tmp_path, capsys):
    (tmp_path / "r/keras-small-seed0").mkdir(parents=True)
    (tmp_path / "r/keras-small-seed0/history.csv").write_text("epoch,loss\n")
    assert begin("--seeds", "0", "--keras") == 2
    assert (
        "r/keras-small-seed0: the run there was interrupted (no metrics.json), and no sweep started it"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.glob("r/*/*")] == ["history.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 3-1", "argument --seeds: '3-1' is neither a seed nor a range of up to 10000"),
        ("--seeds 0,x", "'x' is neither"),
        ("--seeds 0-99999999999", "'0-99999999999' is neither"),
        ("--seeds 0,4294967296", "argument --seed: '4294967296'"),
        ("--seeds 0 --jobs 0", "argument --jobs: '0'"),
        ("--seeds 0 --epochs 3", "--epochs 3: not an option of sweep.py; put train.py's options after --"),
        ("--seeds 0 -- --epochs x", "train.py: error: argument --epochs: 'x'"),
        ("--seeds 0 -- --seed=1", "--seed after --: sweep.py gives it to each run; leave it out"),
        ("--seeds 0 -- --resume runs/a", "--resume after --"),
        ("--seeds 0,1 -- --out run", "--out run after --: is the same for two runs; put <seed> into it"),
        ("--seeds 0 -- --data gone.npz", "--data gone.npz: no such file"),
        ("--seeds 0 --within 0.01", "--within: needs --keras"),
        ("--seeds 0 --keras -- --model improved", "augments no images; add --no-augment, or leave --keras out"),
        (
            "--seeds 0 --keras -- --l2 0.1 --lr-factor 0.1",
            "has no --l2 0.1, --lr-factor 0.1; leave that or --keras out",
        ),
        ("--seeds 0 --keras -- --model whitened --no-augment", "has no --model whitened; leave"),
        ("--seeds 0 --keras -- --data synthetic", "--keras: it does not read --data synthetic; pass an .npz file"),
        ("--seeds 0 --keras -- --data small.npz", "Keras on nobody does not start (ValueError: "),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_starts(words, message, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "nobody")
    (tmp_path / "small.npz").symlink_to(npz)
    assert sweep.main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.npz"]


def test_a_dry_run_starts_nothing_and_prints_shell_commands(begin, tmp_path, capsys):
    assert begin("--seeds", "1") == 0
    capsys.readouterr()
    assert begin("--seeds", "0-1", "--dry-run") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert second == "# seed 1 has finished: r/s1"
    assert shlex.split(first)[-5:] == ["--seed", "0", "--threads", "1", "--resume"]
    assert not (tmp_path / "r/s0").exists()
    assert begin("--seeds", "0", "--keras", "--dry-run") == 0
    line = capsys.readouterr().out.splitlines()[0]
    (tmp_path / "r/keras-small-seed0").mkdir()
    (tmp_path / "r/keras-small-seed0/sweep.log").touch()
    assert subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout == "on no GPU\n"
    assert (tmp_path / "r/keras-small-seed0/metrics.json").exists()


def test_keras_sees_only_the_gpu_that_device_names_and_does_not_reserve_all_of_its_memory(begin, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for named, seen in (("5,7", "7"), ("", "1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert begin("--seeds", "0", "--keras", "--dry-run", behind=["--device", "cuda:1"]) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert f"CUDA_VISIBLE_DEVICES={seen} " in line
        assert "TF_FORCE_GPU_ALLOW_GROWTH=true XLA_PYTHON_CLIENT_PREALLOCATE=false " in line
        assert "OMP_NUM_THREADS" not in line


@pytest.mark.parametrize(
    ("device", "named", "gpus", "slots"),
    [("cuda", "5,7,8", ["5", "7", "8"], 12), ("cuda:1", None, [], 4)],
)
def test_runs_are_spread_evenly_over_the_gpus_up_to_a_number_on_each(
    device, named, gpus, slots, begin, tmp_path, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert jobs.places(torch.device(device), 1, None, 4) == (gpus, slots)
    assert jobs.places(torch.device("cuda"), 1, 2, 4) == (named.split(",") if named else ["0", "1", "2"], 2)
    waits = {f"s{seed}": ["wait"] for seed in range(6)}
    when(ready(tmp_path, 6), (tmp_path / "go").touch)
    assert begin("--seeds", "0-5", "--jobs-per-gpu", "6", behind=["--device", device], **waits) == 0
    used = [re.search("^on (.*)", log.read_text(), re.MULTILINE)[1] for log in tmp_path.glob("r/s*/sweep.log")]
    assert sorted(used) == sorted((gpus or ["no GPU"] * 3) * 2)
    for log in tmp_path.glob("r/s*/sweep.log"):
        words = log.read_text().splitlines()[0].split()
        assert words[words.index("--threads") + 1] == "1"  # the cores are divided among the concurrent runs
        assert words[-3:] == (["--device", "cuda", "--resume"] if device == "cuda" else words[-3:])


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("0,1,", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("", []),
        (" 2 , GPU-8932f937-d72c,MIG-1/2", ["2", "GPU-8932f937-d72c", "MIG-1/2"]),
    ],
)
def test_the_list_of_gpus_is_read_as_cuda_reads_it(listed, gpus):
    assert jobs.visible(listed) == gpus


def test_no_more_runs_than_jobs_allows_are_active_at_once(begin, monkeypatch):
    started, at_once, popen = [], [], subprocess.Popen

    def counting(*words, **options):
        started.append(popen(*words, **options))
        at_once.append(sum(process.poll() is None for process in started))
        return started[-1]

    monkeypatch.setattr(jobs.subprocess, "Popen", counting)
    assert begin("--seeds", "0-5", "--jobs", "2") == 0
    assert (len(started), max(at_once)) == (6, 2)


def test_ctrl_c_in_a_terminal_reaches_the_runs_only_through_the_sweep(tmp_path):
    job = jobs.Job("j", tmp_path / "j", [sys.executable, "-c", "import time; time.sleep(99)"], {}, 1)
    job.start()
    try:
        assert os.getpgid(job.process.pid) == job.process.pid != os.getpgid(0)
    finally:
        job.process.kill()
        job.process.wait()


def test_a_keras_run_that_trained_longer_than_requested_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"backend": "torch", "flags": {"epochs": 50, "seed": 0}}))
    metrics = {"test_accuracy": 0.7, "stopped": "early stopping", "epochs": 20}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert KerasSide().finished(tmp_path, Options(epochs=20).resolved().flags()) == metrics
    with pytest.raises(BadInput, match="had --epochs 50"):
        KerasSide().finished(tmp_path, Options(epochs=10).resolved().flags())


def test_threads_reach_keras_too(tmp_path):
    flags = Options(threads=3).resolved().flags()
    job = KerasSide().job("k", ["k.py"], tmp_path, flags, "", torch.device("cpu"))
    assert {job.environment[name] for name in keras_side.THREADS} == {"3"}


def test_on_a_cpu_each_run_gets_one_core_per_thread(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [jobs.places(torch.device("cpu"), threads, None, 4)[1] for threads in (1, 3, 16)] == [8, 2, 1]


def test_a_terminal_shows_a_progress_bar_over_the_epochs_of_all_runs(begin, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert begin("--seeds", "0-1", "--jobs", "1") == 0
    shown = sys.stderr.getvalue()
    assert "0/4 [" in shown
    assert "2/4 [" in shown
    assert "4/4 [" in shown


def test_every_option_passed_to_keras_exists_on_its_side():
    text = (sweep.ROOT / KerasSide.program).read_text()
    assert [name for name in (*KerasSide.options, "resume") if f'"{flag_of(name)}"' not in text] == []


def test_a_sweep_trains_two_real_runs_with_one_thread_each(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "overlay", lambda *_: b"")
    assert sweep.main(["--seeds", "0-1", "--jobs", "2", "--", "--data", str(npz), "--epochs", "1"]) == 0
    assert re.search(r"^runs +2$", capsys.readouterr().out, re.MULTILINE)
    for seed in (0, 1):
        config = json.loads((tmp_path / f"runs/baseline-small-seed{seed}/config.json").read_text())
        assert (config["flags"]["seed"], config["threads"]) == (seed, 1)
