"""Several processes give the same results as one: started as torchrun starts them, and by torchrun itself."""

import copy
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPE, child

import data
import train
from batchnorm import BatchNorm2d
from callbacks import Callback, Stop
from cli.errors import Interrupted, Lost
from comparing import histories
from model import build_model, to_keras_weights
from running import distributed, signals
from running.outcome import BEST_WEIGHTS, CHECKPOINT, CONFIG, ERROR, HISTORY, METRICS, WEIGHTS

# Only order and augmentation are random, as functions of seed and epoch; 76 images in batches of 15, so that
# slices differ in size and the last batch is one image, which leaves a process with none.
EXACT = ["--epochs", "2", "--batch-size", "15", "--dropout", "0", "--dtype", "float64", "--quiet"]
# Sums in another order differ by some 1e-16 in float64; training multiplies that.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def few(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, **{name: array[: 95 if "train" in name else 25] for name, array in arrays.items()})
    return path


def group_environment(size):
    """The environment variables that torchrun sets for all of `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return common | {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}


@pytest.fixture
def group(start, tmp_path):
    """Start a group of processes as torchrun does; returns them, and one log each.

    All but the first are given the arguments `others`, if there are any; `before` is called in each.
    """

    def run(size, arguments, name="group", others=None, before=None):
        common = group_environment(size)
        logs = [tmp_path / f"{name}-{rank}.log" for rank in range(size)]
        processes = []
        for rank, log in enumerate(logs):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            given = arguments if others is None or rank == 0 else others
            processes.append(start(given, log, before=before, **own))
        return processes, logs

    return run


def finish(processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


class StopsTheSecond(Callback):
    """Stops after an epoch in the second process only, as a time limit by its own clock would."""

    def after_epoch(self, epoch, logs):
        if distributed.rank() == 1:
            self.stop = Stop("time limit", final=False)


def add_stops_the_second():
    make = train.make_callbacks
    train.make_callbacks = lambda *given: make(*given) | {"limit": StopsTheSecond()}


def test_the_first_process_decides_when_a_callback_stops(few, group, tmp_path):
    arguments = ["--data", few, *EXACT, "--out", tmp_path / "run"]
    processes, logs = group(2, arguments, before=add_stops_the_second)
    assert finish(processes) == [0, 0], logs[0].read_text()
    metrics = json.loads((tmp_path / "run" / METRICS).read_text())
    assert (metrics["epochs"], metrics["stopped"]) == (2, "all epochs used")


def assert_equal_runs(one, other):
    first, second = histories.read(one), histories.read(other)
    for column, values in first.history.items():
        np.testing.assert_allclose(second.history[column], values, rtol=TOLERANCE, atol=0, err_msg=column)
    for figure in ("test_loss", "test_accuracy"):
        assert second.metrics[figure] == pytest.approx(first.metrics[figure], rel=TOLERANCE)
    assert second.metrics["test_confusion"] == first.metrics["test_confusion"]
    with np.load(one / BEST_WEIGHTS) as ours, np.load(other / BEST_WEIGHTS) as theirs:
        for name, array in ours.items():
            np.testing.assert_allclose(theirs[name], array, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (2, "--model baseline --l2 0.01 --lookahead --tensorboard"),
        (2, "--model improved"),
        (3, "--model whitened --schedule onecycle --optimizer adamw --label-smoothing 0.1"),
    ],
)
def test_training_in_several_processes_equals_training_in_one(size, flags, group, few, tmp_path):
    arguments = ["--data", str(few), *EXACT, *flags.split(), "--out"]
    processes, logs = group(size, [*arguments, tmp_path / "several"])
    assert finish(processes) == [0] * size, logs[0].read_text()
    assert train.main([*arguments, str(tmp_path / "one")]) == 0
    assert_equal_runs(tmp_path / "one", tmp_path / "several")
    assert json.loads((tmp_path / "several" / CONFIG).read_text())["processes"] == size
    # One process writes and prints.
    assert len(re.findall(r"^Epoch \d/2 - 6/6", logs[0].read_text(), re.MULTILINE)) == 2
    assert len([*(tmp_path / "several").glob("events*")]) == flags.count("--tensorboard")
    assert [log.read_text() for log in logs[1:]] == [""] * (size - 1)


def test_a_run_can_be_resumed_with_a_different_number_of_processes(group, few, tmp_path):
    arguments = ["--data", str(few), *EXACT, "--model", "improved", "--patience", "9"]
    for epochs, size in ((1, 2), (2, 1), (3, 3)):
        now = [*arguments, "--epochs", str(epochs), "--out", str(tmp_path / "run"), "--resume"]
        processes, logs = group(size, now, f"to-{epochs}") if size > 1 else ([], [])
        assert finish(processes) == [0] * len(processes), logs[0].read_text()
        assert size > 1 or train.main(now) == 0
    assert train.main([*arguments, "--epochs", "3", "--out", str(tmp_path / "whole")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    changed = histories.read(tmp_path / "run").metrics["bits_changed"]
    assert "processes 1 instead of 2" in changed[0]
    assert "processes 3 instead of 1" in changed[1]


LONG = ["--epochs", "500", "--patience", "500", "--quiet"]


def wait_for(path, processes):
    while not path.exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def test_a_process_that_dies_ends_the_others_and_the_run_can_be_resumed(group, npz, tmp_path):
    out = tmp_path / "run"
    processes, logs = group(3, ["--data", npz, *LONG, "--out", out])
    wait_for(out / CHECKPOINT, processes)
    processes[1].kill()
    assert finish(processes) == [1, -signal.SIGKILL, 1]
    *_, message = logs[0].read_text().splitlines()
    assert "another process has ended or does not answer" in message
    assert "to continue: the same torchrun command with --resume" in message
    assert "process 2: another process has ended" in logs[2].read_text()
    assert "Lost: " in (out / ERROR).read_text()
    finished = histories.read(out).history["loss"]
    processes, logs = group(2, ["--data", npz, *LONG, "--out", out, "--resume"], "on")
    while not re.search(r"^Epoch \d+/500 - ", logs[0].read_text() if logs[0].exists() else "", re.MULTILINE):
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert finish(processes) == [143, 143]
    *_, message = logs[0].read_text().splitlines()
    assert "interrupted by SIGTERM" in message
    assert logs[1].read_text() == ""
    assert histories.read(out).history["loss"][: len(finished)] == finished


def test_bad_input_and_a_diverging_loss_end_all_processes_with_one_line(group, npz, finished, tmp_path):
    processes, logs = group(2, ["--data", npz, "--out", finished], "taken")
    assert finish(processes) == [2, 1]
    assert "already holds a run" in logs[0].read_text()
    assert len("".join(log.read_text() for log in logs).splitlines()) == 1
    processes, logs = group(2, ["--data", npz, "--lr", "1e9", "--out", tmp_path / "run"], "diverged")
    assert finish(processes) == [1, 1]
    assert re.search(
        r"epoch \d+, learning rate 1e\+09: the loss is not finite in (evaluation )?batch \d+", logs[0].read_text()
    )
    assert logs[1].read_text() == ""


def test_when_the_first_process_is_killed_the_others_say_why_they_end(group, npz, tmp_path):
    out = tmp_path / "run"
    processes, logs = group(3, ["--data", npz, *LONG, "--out", out])
    wait_for(out / CHECKPOINT, processes)
    processes[0].kill()
    assert finish(processes) == [-signal.SIGKILL, 1, 1]
    for rank, log in enumerate(logs[1:], start=1):
        (line,) = log.read_text().splitlines()
        assert line.startswith(f"train.py: error: process {rank}: another process has ended or does not answer")
        assert line.endswith("to continue: the same torchrun command with --resume")


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--seed", "1"], "--seed 1 (process 0: 0)"),
        (["--lr", "0.5", "--epochs", "9"], "--epochs 9 (process 0: 2), --lr 0.5 (process 0: 0.001)"),
        (["--model", "improved", "--no-augment"], "--model improved (process 0: baseline)"),
        (["--data", "other.npz"], "images and labels of --data, by hash "),
        (["--data", "fewer.npz"], "images and labels of --data, by hash "),
    ],
)
def test_processes_with_different_options_or_data_refuse_to_train(
    others, said, group, few, arrays, tmp_path, monkeypatch
):
    np.savez(tmp_path / "other.npz", **arrays | {"y_test": arrays["y_test"][::-1]})
    np.savez(tmp_path / "fewer.npz", **arrays | {"x_train": arrays["x_train"][:9], "y_train": arrays["y_train"][:9]})
    others = [str(tmp_path / word) if word.endswith(".npz") else word for word in others]
    arguments = ["--data", few, *EXACT, "--out", tmp_path / "run"]
    processes, logs = group(2, arguments, others=[*arguments, *others])
    assert finish(processes) == [2, 2]
    (line,) = logs[0].read_text().splitlines()[-1:]
    assert f"process 1 has {said}" in line
    assert "give all processes the same" in line
    assert logs[1].read_text() == ""
    assert not (tmp_path / "run").exists()


def test_all_processes_start_from_the_weights_of_the_first(group, few, tmp_path):
    for name in ("first", "second"):
        np.savez(tmp_path / f"{name}.npz", *to_keras_weights(build_model(image_shape=SHAPE)))
    arguments = ["--data", str(few), *EXACT, "--epochs", "1", "--batch-size", "38"]
    first, second = (["--init-weights", str(tmp_path / f"{name}.npz")] for name in ("first", "second"))
    several = [*arguments, "--out", str(tmp_path / "several")]
    processes, logs = group(2, [*several, *first], others=[*several, *second])
    assert finish(processes) == [0, 0], logs[0].read_text()
    assert train.main([*arguments, "--out", str(tmp_path / "one"), *first]) == 0
    assert_equal_runs(tmp_path / "one", tmp_path / "several")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_process_without_data_says_so_and_the_others_end(resume, group, npz, tmp_path):
    missing = tmp_path / "none.npz"
    (tmp_path / "run").mkdir()
    arguments = ["--out", tmp_path / "run", *resume, "--data"]
    processes, logs = group(2, [*arguments, npz], others=[*arguments, missing])
    assert finish(processes) == [1, 2]
    *_, message = logs[0].read_text().splitlines()
    assert "another process has ended or does not answer" in message
    (line,) = logs[1].read_text().splitlines()
    assert line.startswith(f"train.py: error: process 1: --data {missing}: no such file")
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("size", [1, 2])
def test_a_loss_that_is_not_finite_is_reported_in_the_same_batch_by_one_process_and_by_two(size, group, npz, tmp_path):
    # The first step makes the weights so large that the second loss overflows.
    flags = ["--lr", "1e9", "--dropout", "0", "--batch-size", "32", "--out", tmp_path / "run"]
    processes, logs = group(size, ["--data", npz, *flags])
    assert finish(processes) == [1] * size
    assert "epoch 1, learning rate 1e+09: the loss is not finite in batch 2" in logs[0].read_text()


def test_each_process_draws_dropout_masks_of_its_own(npz, tmp_path, monkeypatch):
    seeds, seed_torch = [], data.seed_torch
    monkeypatch.setattr(data, "seed_torch", lambda *entropy: seeds.append(entropy) or seed_torch(*entropy))
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert train.main(["--data", str(npz), "--epochs", "2", "--seed", "7", "--out", str(tmp_path / "run")]) == 0
    assert seeds == [(7, 0), (7, 1), (7, 1, 1), (7, 2), (7, 2, 1)]


def test_torchrun_runs_the_command(npz, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", ROOT / "train.py", "--data", npz]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "--epochs", "1", "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "1 thread in each of 2 processes" in process.stdout
    assert process.stdout.count("Test accuracy: ") == 1
    assert (tmp_path / "run" / METRICS).exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_one_of_several_processes_ends_without_the_interpreters_clean_up(processes):
    program = (
        f"import atexit, sys; sys.path.insert(0, {str(ROOT)!r}); atexit.register(print, 'cleaned up'); "
        "from running import distributed; print('said'); distributed.end(3)"
    )
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(processes), "RANK": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.splitlines() == (["said", "cleaned up"] if processes == 1 else ["said"])


def as_torchrun(arguments, logs, environment, alive):
    """Start a training process for each of `logs`, which keep `alive` open, and wait until a signal ends this one."""
    for rank, log in enumerate(logs):
        if os.fork() == 0:
            child([*arguments, "--threads", "1"], log, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    alive.close()
    signal.pause()


def test_a_signal_to_torchrun_alone_ends_its_processes_too(npz, tmp_path):
    context, logs = multiprocessing.get_context("forkserver"), [tmp_path / "0.log", tmp_path / "1.log"]
    reader, writer = context.Pipe(duplex=False)
    arguments = ["--data", str(npz), *LONG, "--out", str(tmp_path / "run")]
    torchrun = context.Process(target=as_torchrun, args=(arguments, logs, group_environment(2), writer))
    torchrun.start()
    writer.close()
    wait_for(tmp_path / "run" / CHECKPOINT, [torchrun])
    os.kill(torchrun.pid, signal.SIGUSR1)
    assert reader.poll(None)  # every process that could write to it has ended
    with pytest.raises(EOFError):
        reader.recv()
    (line,) = [line for log in logs for line in log.read_text().splitlines() if "error" in line]
    assert line.endswith("error: interrupted by SIGTERM; to continue: the same torchrun command with --resume")
    assert len((tmp_path / "run" / HISTORY).read_text().splitlines()) > 1
    torchrun.join()
    assert torchrun.exitcode == -signal.SIGUSR1


def test_a_run_on_two_processes_is_resumed_to_the_same_bits(group, few, tmp_path):
    arguments = ["--data", few, "--model", "improved", "--quiet"]
    for epochs, name in ((2, "whole"), (1, "run"), (2, "run")):
        now = [*arguments, "--epochs", epochs, "--out", tmp_path / name, "--resume"]
        processes, logs = group(2, now, f"{name}-{epochs}")
        assert finish(processes) == [0, 0], logs[0].read_text()
    for name in (HISTORY, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert histories.read(tmp_path / "run").metrics["bits_changed"] == []


@pytest.fixture
def alone(monkeypatch):
    """As if torchrun had started this process, and the others had nothing to add."""
    monkeypatch.setattr(distributed, "launched", lambda: True)
    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: None)


def test_a_process_that_was_asked_to_end_reports_the_signal_even_if_another_ended_first(alone, monkeypatch):
    def gone(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    with pytest.raises(Lost, match="Connection closed by peer"):
        distributed.total(torch.zeros(1))

    def asked_to_end(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        gone()

    monkeypatch.setattr(torch.distributed, "all_reduce", asked_to_end)
    with signals.handled(), pytest.raises(Interrupted, match="SIGTERM"):
        distributed.total(torch.zeros(1))


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_batchnorm_over_all_processes_equals_that_of_one_process_in_each_dtype(dtype, alone):
    own = torch.nn.Sequential(BatchNorm2d(3)).double()
    if dtype is not torch.float64:  # bfloat16 comes from a convolution under autocast; the weights are float32 then
        own.float()
    several = copy.deepcopy(own)
    distributed.unify(several)
    assert type(several[0]) is not type(own[0])
    images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, found = own(images), several(images)
    assert found.dtype == expected.dtype == dtype
    # The sums are taken in another order; bfloat16 has 8 bits.
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-2)
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(several.state_dict()[name], tensor, msg=name)


def test_only_the_first_process_writes_files(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    arguments = ["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    assert train.main([*arguments[:-1], str(tmp_path / "diverged"), "--lr", "1e9", "--epochs", "9"]) == 1
    # Here this process did what the first one does for all: it made the folder and its lock.
    assert sorted(file.name for file in tmp_path.glob("*/*")) == [".holder"] * 2 + [".lock"] * 2


def test_an_error_in_one_process_alone_is_reported_with_its_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    missing = tmp_path / "none.npz"
    assert train.main(["--data", str(missing), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"train.py: error: process 1: --data {missing}: no such file")


def test_each_process_uses_the_gpu_of_its_local_rank_unless_one_is_named(monkeypatch):
    environment = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for given, expected in (("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        assert distributed.own_device(torch.device(given)) == torch.device(expected)


def test_torchrun_with_one_process_does_not_form_a_group(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not distributed.launched()  # else another BatchNorm is used, and the last bits differ
