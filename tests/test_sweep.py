"""Many seeds by one command. A small script stands for train.py and Keras's side where only the sweep is tested."""

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

import data
import sweep
from harness import jobs, keras_side
from harness.lock import Lock

# It does the seed's action of this attempt: an exit code, a signal to itself (negative), or to wait.
STAND_IN = """
import json, os, pathlib, shutil, signal, sys, time
words = sys.argv[1:]
seed, out = (words[len(words) - words[::-1].index(flag)] for flag in ("--seed", "--out"))
out, template = pathlib.Path(out.replace("<seed>", seed)), pathlib.Path(os.environ["TEMPLATE"])
attempts = (out / "sweep.log").read_text().count("$ ")
actions = json.loads(os.environ["ACTIONS"]).get(out.name, [0])
action = actions[min(attempts, len(actions)) - 1]
print("on", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if action in ("wait", "deaf"):
    def ended(*_):
        print("asked to end", flush=True)
        if action == "wait" or asked:
            sys.exit(143)
        asked.append(1)
    asked = []
    signal.signal(signal.SIGTERM, ended)
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
    config |= {"model": "keras notebook", "flags": {"epochs": 2, "seed": int(seed)}}
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
    """Run `sweep.main` on stand-ins of runs of 2 epochs; `actions` are by the name of the run's directory."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "TRAIN", script)
    monkeypatch.setattr(sweep, "KERAS", script)
    monkeypatch.setattr(jobs, "PAUSE", 0.01)
    monkeypatch.setattr(keras_side, "refuse_without", lambda *_, **__: None)
    monkeypatch.setattr(sweep.compare.plots, "overlay", lambda *_: b"")
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


def test_all_seeds_are_trained_once_and_what_they_reached_is_said_together(begin, tmp_path, capsys):
    assert begin("--seeds", "0,2-3,2") == 0
    said = capsys.readouterr().out
    assert {"seed 0: 0.7000, r/s0", "seed 2: 0.7020, r/s2", "seed 3: 0.7030, r/s3"} <= {
        line.partition("] ")[2] for line in said.splitlines()
    }
    assert re.search(r"test accuracy +0.7017 ± 0.0015", said)
    assert (tmp_path / "r" / "comparison.json").exists()
    assert begin("--seeds", "0-3") == 0  # one more
    assert re.search(r"^runs +4$", capsys.readouterr().out, re.MULTILINE)
    assert starts(tmp_path) == {"s0": 1, "s1": 1, "s2": 1, "s3": 1}
    assert re.search(r"^process \d+$", (tmp_path / "r/s0/sweep.log").read_text(), re.MULTILINE)


def test_a_killed_run_is_started_again_three_times_a_failed_one_is_named_with_its_reason(begin, tmp_path, capsys):
    actions = {"s0": [-9, -15, 143, 0], "s1": [-9], "s2": [1], "s3": [2], "s4": [3], "s5": [-11]}
    assert begin("--seeds", "0-6", "--jobs", "7", **actions) == 1
    assert starts(tmp_path) == {"s0": 4, "s1": 4, "s2": 1, "s3": 1, "s4": 1, "s5": 1, "s6": 1}
    said = capsys.readouterr().out
    assert re.search(r"^runs +2$", said, re.MULTILINE)
    failed = said[said.index("5 of 7 runs failed") :].splitlines()[1:]
    assert [line.split(" (r/")[0] for line in failed] == [
        "seed 1: exit code 137: on None",
        *(f"seed {seed}: exit code {code}: the reason of {code}" for seed, code in ((2, 1), (3, 2), (4, 3))),
        "seed 5: exit code 139: on None",
    ]
    assert begin("--seeds", "0-6") == 0  # tries the failed ones again
    assert starts(tmp_path) == {"s0": 4, "s1": 5, "s2": 2, "s3": 2, "s4": 2, "s5": 2, "s6": 1}


def when(condition, act):
    """Call `act` in a thread of its own as soon as `condition` holds."""

    def watch():
        end = time.monotonic() + 30
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def ready(tmp_path, count):
    return lambda: len([*tmp_path.glob("r/*/ready")]) >= count


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_every_run_and_is_waited_for(signum, code, begin, tmp_path, capsys):
    when(ready(tmp_path, 2), lambda: os.kill(os.getpid(), signum))
    assert begin("--seeds", "0-3", "--jobs", "2", s0=["wait"], s1=["wait"]) == code
    logs = [log.read_text() for log in tmp_path.glob("r/*/sweep.log")]
    assert [log.splitlines()[-1] for log in logs] == ["asked to end"] * 2  # seeds 2 and 3 were not begun
    error = capsys.readouterr().err
    assert f"interrupted by {signum.name}; the same command goes on" in error
    assert begin("--seeds", "0-3") == 0
    assert starts(tmp_path) == {"s0": 2, "s1": 2, "s2": 1, "s3": 1}


def test_a_second_signal_does_not_wait_and_is_handed_on_too(begin, tmp_path):
    def act():
        os.kill(os.getpid(), signal.SIGTERM)
        when(lambda: "asked" in (tmp_path / "r/s0/sweep.log").read_text(), lambda: os.kill(os.getpid(), signal.SIGINT))

    when(ready(tmp_path, 1), act)
    assert begin("--seeds", "0", s0=["deaf"]) == 130
    end = time.monotonic() + 10
    while (tmp_path / "r/s0/sweep.log").read_text().count("asked to end") < 2:
        assert time.monotonic() < end
        time.sleep(0.01)


def other_sweep(words, log, script):
    sweep.TRAIN = script
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 1)
    os._exit(sweep.main(words))


def test_what_runs_on_after_a_sweep_was_killed_is_found_again_and_waited_for(begin, tmp_path, npz, monkeypatch, capsys):
    monkeypatch.setenv("ACTIONS", json.dumps({"s0": ["wait"], "s1": ["wait"]}))
    words = ["--seeds", "0-1", "--jobs", "2", "--", "--data", str(npz), "--epochs", "2", "--out", "r/s<seed>"]
    script = tmp_path / "stand_in.py"
    killed = multiprocessing.get_context("fork").Process(target=other_sweep, args=(words, tmp_path / "log", script))
    killed.start()
    when(ready(tmp_path, 2), killed.kill).join()
    killed.join()
    when(lambda: "in use" in capsys.readouterr().out, (tmp_path / "go").touch)
    assert begin("--seeds", "0-2", s0=["wait"], s1=["wait"]) == 0
    assert starts(tmp_path) == {"s0": 1, "s1": 1, "s2": 1}


def test_a_seed_on_which_another_process_is_at_work_has_its_turn_when_that_is_done(begin, tmp_path, capsys):
    (tmp_path / "r" / "s0").mkdir(parents=True)
    other = Lock(tmp_path / "r" / "s0" / ".lock")
    other.claim()
    when(lambda: (tmp_path / "r/s1/metrics.json").exists(), lambda: (time.sleep(0.1), other.release()))
    assert begin("--seeds", "0-1", "--jobs", "1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"seed 0: r/s0 is in use by process {os.getpid()} on {os.uname().nodename}; waiting for its end"
    assert [line.partition(",")[0] for line in said[2:4]] == ["[1/2] seed 1: 0.7010", "[2/2] seed 0: 0.7000"]


def test_a_run_of_keras_that_somebody_began_by_hand_is_waited_for_and_nothing_of_it_taken_away(begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    by_hand = tmp_path / "r" / "keras-small-seed0"
    metrics = (by_hand / "metrics.json").read_bytes()
    (by_hand / "metrics.json").unlink()  # and the log of a sweep lies there
    other = Lock(by_hand / ".lock")
    other.claim()

    def end():
        (by_hand / "metrics.json").write_bytes(metrics)
        other.release()

    when(lambda: "keras-small-seed0 is in use by process" in capsys.readouterr().out, end)
    assert begin("--seeds", "0", "--keras") == 0
    assert starts(tmp_path) == {"keras-small-seed0": 1, "s0": 1}


def test_a_run_that_cannot_be_started_fails_and_the_others_go_on(begin, monkeypatch, capsys):
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
def test_keras_comes_first_and_the_exit_code_tells_if_the_two_are_equivalent(within, code, begin, tmp_path, capsys):
    killed = {"keras-small-seed1": [-9, 0]}  # it cannot go on, and begins anew
    flags = ("--dropout", "0.25", "--mixed-precision")
    assert begin("--seeds", "0-2", "--keras", "--within", within, behind=flags, **killed) == code
    said = capsys.readouterr().out
    ended = re.findall(r"^\[./6\] (seed .*?):", said, re.MULTILINE)
    assert sorted(ended, key=lambda name: name[:6]) == [f"seed {n}{side}" for n in range(3) for side in (", Keras", "")]
    assert "(3 pairs with the same initial weights)" in said
    log = (tmp_path / "r/keras-small-seed1/sweep.log").read_text()
    assert log.count("--dropout 0.25 ") == log.count("KERAS_BACKEND=torch ") == 2
    assert "--epochs 2" in log
    assert "mixed" not in log
    assert (
        "--init-weights r/keras-small-seed1/initial_weights.npz --resume" in (tmp_path / "r/s1/sweep.log").read_text()
    )


def test_where_keras_failed_its_pair_is_not_started_and_the_others_are_compared(begin, tmp_path, capsys):
    assert begin("--seeds", "0-2", "--keras", behind=("--dropout", "0.25"), **{"keras-small-seed1": [2]}) == 1
    said = capsys.readouterr().out
    assert "(2 pairs" in said
    assert "seed 1: not started, since seed 1, Keras failed" in said
    assert not (tmp_path / "r/s1").exists()
    assert begin("--seeds", "0-2", "--keras", behind=("--dropout", "0")) == 2  # another recipe than Keras's had
    assert "r/keras-small-seed0: Keras's run there had --dropout 0.25; delete it" in capsys.readouterr().err


def test_a_run_of_keras_on_another_backend_is_not_taken_for_a_finished_one(begin, monkeypatch, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert begin("--seeds", "0", "--keras") == 2
    said = "r/keras-small-seed0: Keras's run there was on torch, not tensorflow; set KERAS_BACKEND=torch"
    assert said in capsys.readouterr().err


def test_a_run_that_did_not_begin_with_keras_s_weights_is_refused_before_keras_begins(begin, tmp_path, capsys):
    assert begin("--seeds", "0") == 0
    assert begin("--seeds", "0", "--keras") == 2
    assert "r/s0: its run cannot be resumed with --init-weights" in capsys.readouterr().err
    assert starts(tmp_path) == {"s0": 1}


def test_after_more_epochs_were_asked_for_a_run_of_keras_that_stopped_early_is_still_finished(begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0  # 2 epochs
    assert begin("--seeds", "0", "--keras", behind=("--epochs", "3")) == 2
    assert "Keras's run there had --epochs 2" in capsys.readouterr().err
    for metrics in tmp_path.glob("r/*/metrics.json"):
        metrics.write_text(metrics.read_text().replace("all epochs used", "early stopping"))
    assert begin("--seeds", "0", "--keras", behind=("--epochs", "3")) == 0
    assert starts(tmp_path) == {"keras-small-seed0": 1, "s0": 1}


def test_a_run_that_began_with_other_weights_than_keras_s_has_now_is_no_pair_of_it(begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    shutil.rmtree(tmp_path / "r/keras-small-seed0")
    np.savez(tmp_path / "template/initial_weights.npz", np.zeros(3))  # of Keras's next run
    assert begin("--seeds", "0", "--keras") == 1
    assert "not the weights that the run in r/s0 started from" in capsys.readouterr().out
    assert starts(tmp_path) == {"keras-small-seed0": 1, "s0": 1}


def test_the_second_network_has_pairs_too_without_augmentation(begin, tmp_path):
    assert begin("--seeds", "0", "--keras", behind=("--model", "improved", "--no-augment")) == 0
    log = (tmp_path / "r/keras-small-seed0/sweep.log").read_text()
    assert "--model improved" in log
    assert "augment" not in log


def test_the_number_of_a_process_is_no_reason_of_its_end(tmp_path):
    job = jobs.Job("seed 0", tmp_path, [], dict, 2, {})
    job.log.write_text("$ train.py\nout of memory\n$ train.py\nprocess 7\n")
    assert job._last_line() == "$ train.py"


def test_no_picture_is_named_where_none_was_written(begin, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/comparison.json").write_text("{}")
    assert begin("--seeds", "0", "--out", "mine") == 2
    printed = capsys.readouterr()
    assert "not compare.py's own" in printed.err
    assert "Picture" not in printed.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"seed": 55}, "Keras's run there had --seed 55"),
        ({"draws": "draws.npz"}, "Keras's run there had --draws; move it"),
        (None, "no flags in its config.json"),
    ],
)
def test_a_run_of_keras_that_is_not_the_seed_s_own_is_refused(flags, said, begin, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    config = tmp_path / "r/keras-small-seed0/config.json"
    before = json.loads(config.read_text())
    config.write_text(json.dumps(before | {"flags": flags and before["flags"] | flags}))
    assert begin("--seeds", "0", "--keras") == 2
    assert f"r/keras-small-seed0: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "behind", "said"),
    [
        (["--out", "file"], [], "--out file: cannot make that folder"),
        (["--out", "others"], [], "--out others: has a comparison.json or comparison.png that is not compare.py's own"),
        (["--keras"], ["--out", "r/keras-small-seed<seed>"], "--out r/keras-small-seed0 behind --: is Keras's own"),
        ([], ["--init-weights", "gone.npz"], "--init-weights gone.npz: no such file"),
    ],
)
def test_what_could_not_end_well_is_refused_before_any_run_starts(own, behind, said, begin, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others/comparison.json").write_text("{}")
    assert begin("--seeds", "0", *own, behind=behind) == 2
    assert said in capsys.readouterr().err
    assert starts(tmp_path) == {}


def test_a_run_of_keras_on_other_data_is_refused_before_any_run_starts(begin, npz, tmp_path, capsys):
    assert begin("--seeds", "0", "--keras") == 0
    config = tmp_path / "r/keras-small-seed0/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data_sha256": "another"}))
    assert begin("--seeds", "0-1", "--keras") == 2
    assert "r/keras-small-seed0: Keras's run there had other images or labels; delete" in capsys.readouterr().err
    assert not (tmp_path / "r/s1").exists()
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"data_sha256": data.fingerprint(data.load(str(npz)))})
    )
    assert begin("--seeds", "0-1", "--keras") == 0


def test_a_run_of_keras_that_no_sweep_began_is_not_begun_anew(begin, tmp_path, capsys):
    (tmp_path / "r/keras-small-seed0").mkdir(parents=True)
    (tmp_path / "r/keras-small-seed0/history.csv").write_text("epoch,loss\n")
    assert begin("--seeds", "0", "--keras") == 2
    assert "r/keras-small-seed0: Keras's run there broke off, and no sweep began it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("r/*/*")] == ["history.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 3-1", "argument --seeds: '3-1' is neither a seed nor up to 10000 of them"),
        ("--seeds 0,x", "'x' is neither"),
        ("--seeds 0-99999999999", "'0-99999999999' is neither"),
        ("--seeds 18446744073709551616", "argument --seed: '18446744073709551616'"),
        ("--seeds 0 --jobs 0", "argument --jobs: '0'"),
        ("--seeds 0 --epochs 3", "--epochs 3: not an option of sweep.py; those of train.py go behind --"),
        ("--seeds 0 -- --epochs x", "train.py: error: argument --epochs: 'x'"),
        ("--seeds 0 -- --seed=1", "--seed behind --: sweep.py gives it to each run; leave it out"),
        ("--seeds 0 -- --resume runs/a", "--resume behind --"),
        ("--seeds 0,1 -- --out run", "--out run behind --: is the same for each seed; put <seed> into it"),
        ("--seeds 0 -- --data gone.npz", "--data gone.npz: no such file"),
        ("--seeds 0 --within 0.01", "--within: needs --keras"),
        (
            "--seeds 0 --keras -- --model improved --l2 0.1",
            "has no --l2 0.1, augmentation (--no-augment turns it off); leave that or --keras out",
        ),
        ("--seeds 0 --keras -- --model whitened --no-augment", "has no --model whitened; leave"),
        ("--seeds 0,4294967296 --keras -- --data small.npz", "--seeds 4294967296: Keras's side takes none above 4294"),
        ("--seeds 0 --keras -- --data synthetic", "--keras: Keras does not read --data synthetic; pass an .npz file"),
        ("--seeds 0 --keras -- --data small.npz", "Keras on nobody does not start (ValueError: "),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(words, message, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "nobody")
    (tmp_path / "small.npz").symlink_to(npz)
    assert sweep.main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.npz"]


def test_a_dry_run_starts_nothing_and_prints_lines_for_a_shell(begin, tmp_path, monkeypatch, capsys):
    assert begin("--seeds", "1") == 0
    capsys.readouterr()
    assert begin("--seeds", "0-1", "--dry-run") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert second == "# seed 1 has finished: r/s1"
    assert shlex.split(first)[-5:] == ["--seed", "0", "--threads", "1", "--resume"]
    assert not (tmp_path / "r/s0").exists()
    assert begin("--seeds", "0", "--keras", "--dry-run") == 0
    line = capsys.readouterr().out.splitlines()[0]
    monkeypatch.setattr(sweep, "TRAIN", None)
    (tmp_path / "r/keras-small-seed0").mkdir()
    (tmp_path / "r/keras-small-seed0/sweep.log").touch()
    assert subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout == "on \n"  # no GPU
    assert (tmp_path / "r/keras-small-seed0/metrics.json").exists()


def test_keras_sees_the_one_gpu_that_device_names_and_does_not_take_all_of_its_memory(begin, monkeypatch, capsys):
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
def test_on_gpus_so_many_on_each_in_turn(device, named, gpus, slots, begin, tmp_path, monkeypatch):
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
    assert sorted(used) == sorted((gpus or ["None"] * 3) * 2)
    assert not any("--threads" in log.read_text() for log in tmp_path.glob("r/s*/sweep.log"))


def test_on_a_cpu_a_core_each_or_as_many_as_threads_were_asked_for(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [jobs.places(torch.device("cpu"), threads, None, 4)[1] for threads in (1, 3, 16)] == [8, 2, 1]


def test_a_terminal_has_a_bar_over_the_epochs_of_all_runs(begin, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert begin("--seeds", "0-1", "--jobs", "1") == 0
    shown = sys.stderr.getvalue()
    assert "0/4 [" in shown
    assert "2/4 [" in shown
    assert "4/4 [" in shown


def test_every_option_that_is_handed_to_keras_is_one_of_its_side_s():
    text = (sweep.KERAS).read_text()
    assert [flag for flag in map(keras_side.flag_of, keras_side.OPTIONS) if f'"{flag}"' not in text] == []


def test_two_true_runs_of_a_thread_each(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep.compare.plots, "overlay", lambda *_: b"")
    assert sweep.main(["--seeds", "0-1", "--jobs", "2", "--", "--data", str(npz), "--epochs", "1"]) == 0
    assert re.search(r"^runs +2$", capsys.readouterr().out, re.MULTILINE)
    for seed in (0, 1):
        config = json.loads((tmp_path / f"runs/baseline-small-seed{seed}/config.json").read_text())
        assert (config["flags"]["seed"], config["threads"]) == (seed, 1)
