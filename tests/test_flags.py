"""How people resume a run, start another, or do so in Python; where its directory is; what is printed at the end."""

import json
import os
import shlex
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import compare
import options
import predict
import train
from cli.errors import BadInput
from options import Options
from running import signals
from running.lock import LOCK
from running.outcome import CONFIG, CURVES, HISTORY

DIRECTORIES = {
    "": "runs/baseline-seed0",
    "--data=data": "runs/baseline-seed0",
    "--data=./data/ --seed=3": "runs/baseline-seed3",
    "--data=synthetic --recipe=fast": "runs/fast-synthetic-seed0",
    "--data=mine.npz": "runs/baseline-mine-seed0",
    "--data=../elsewhere/mine.npz": "runs/baseline-mine-seed0",
    "--data=/scratch/cifar.d/": "runs/baseline-cifar.d-seed0",
    "--data=data/.": "runs/baseline-seed0",
    "--data='a b [1]*?$(x);<seed>.npz'": "runs/baseline-a_b_1_x_seed_-seed0",
    "--data=été.npz": "runs/baseline-été-seed0",
    f"--data={'n' * 300}": f"runs/baseline-{'n' * 40}-seed0",
    # As directories used to be named, and named by hand.
    "--data=mine.npz --out='runs/<name>-seed<seed>'": "runs/baseline-seed0",
    "--data=mine.npz --out=x": "x",
}


@pytest.mark.parametrize(("flags", "expected"), DIRECTORIES.items())
def test_a_runs_directory_is_named_after_its_data_unless_they_are_the_default(flags, expected):
    assert str(options.parse(shlex.split(flags)).checked().out) == expected


def test_the_default_data_folder_is_recognised_by_its_absolute_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(options.parse(["--data", str(tmp_path / "data")]).checked().out) == "runs/baseline-seed0"
    assert str(options.parse(["--data", str(tmp_path)]).checked().out) == f"runs/baseline-{tmp_path.name[:40]}-seed0"


# --- make train -------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Call `make train ARGS=...` with a Python that exits with each of `codes` in turn; returns its calls."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> calls\nread -r code < codes\nsed -i 1d codes\nexit "$code"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / "train.installed").touch()

    def run(args, *codes):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").unlink(missing_ok=True)
        process = subprocess.run(["make", "train", f"ARGS={args}"], cwd=tmp_path, capture_output=True, text=True)
        return (tmp_path / "calls").read_text().splitlines(), process

    return run


@pytest.mark.parametrize("args", ["", "--recipe fast", "--seed 1 --config 'a run/config.json'"])
def test_make_train_resumes_and_uses_the_stand_in_when_cifar_10_is_unavailable(args, make):
    words = " ".join(shlex.split(args))
    called, process = make(args, 0)
    assert (called, process.returncode) == ([f"train.py --resume {words}".strip()], 0)
    called, process = make(args, 3, 0)
    assert (called[1:], process.returncode) == ([f"train.py --resume {words} --data synthetic".replace("  ", " ")], 0)
    assert "NOT CIFAR-10" in process.stdout


@pytest.mark.parametrize("args", ["--data data", '--out "a run"', "--resume runs/x", "--resume=runs/x"])
def test_make_train_does_not_use_the_stand_in_if_args_name_data_or_a_run(args, make):
    called, process = make(args, 3, 0)
    assert (len(called), process.returncode) == (1, 2)
    assert "Error 3" in process.stderr


# --- --resume RUN and --config FILE -----------------------------------------------------------------------------------


@pytest.fixture
def place(npz, tmp_path, monkeypatch):
    """A current folder with data (mine.npz) and a run of one epoch on them, started with relative paths."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(npz, "mine.npz")
    arguments = ["--data", "mine.npz", "--lr", "0.004", "--no-shuffle", "--epochs", "1", "--out", "runs/first"]
    assert train.main(arguments) == 0
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flags_of(run):
    return json.loads((run / CONFIG).read_text())["flags"]


def test_resume_with_a_directory_continues_that_run_with_its_own_flags_from_anywhere(place, monkeypatch, capsys):
    run = place / "runs" / "first"
    before = contents(place)
    capsys.readouterr()
    assert train.main(["--resume", "runs/first"]) == 0
    assert capsys.readouterr().out.startswith("finished: 0.")
    assert train.main(["--resume", "runs/first", "--lr", "0.5"]) == 2
    assert "--lr 0.5 (was 0.004)" in capsys.readouterr().err
    assert contents(place) == before
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert train.main([f"--resume={os.path.relpath(run)}", "--epochs", "2"]) == 0
    assert "Resuming after epoch 1." in capsys.readouterr().out
    whole = ["--data", str(place / "mine.npz"), "--lr", "0.004", "--no-shuffle", "--epochs", "2", "--out", "whole"]
    assert train.main(whole) == 0
    assert (run / HISTORY).read_bytes() == (place / "elsewhere" / "whole" / HISTORY).read_bytes()
    assert flags_of(run)["data"] == str(place / "mine.npz")
    monkeypatch.chdir(run)
    assert train.main(["--resume", ".", "--quiet"]) == 0
    assert sorted(file.name for file in place.iterdir()) == ["elsewhere", "mine.npz", "runs"]


def test_a_run_moved_with_its_data_reports_its_result_and_continues_when_given_their_new_path(
    place, tmp_path_factory, monkeypatch, capsys
):
    there = tmp_path_factory.mktemp("moved") / "project"
    shutil.move(place, there)
    monkeypatch.chdir(there.parent)
    capsys.readouterr()
    assert train.main(["--resume", "project/runs/first"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Its data cannot be read any more from {place / 'mine.npz'}.\nfinished: 0.")
    assert train.main(["--resume", "project/runs/first", "--data", "project/mine.npz", "--epochs", "2"]) == 0
    assert "Resuming after epoch 1." in capsys.readouterr().out
    assert flags_of(there / "runs" / "first")["data"] == str(there / "mine.npz")


REFUSED = {
    "--out given too": (
        "--resume runs/first --out x",
        None,
        ["--resume runs/first", "omit --out", "pass --config runs/first with another --out to start a new run"],
    ),
    "--config given too": ("--resume runs/first --config c.json", None, ["--resume runs/first", "omit --out"]),
    "a missing directory": ("--resume runs/none", None, ["--resume runs/none: no such directory"]),
    "a file": ("--resume mine.npz", None, ["--resume mine.npz: no such directory"]),
    "a directory without a run": ("--resume runs", None, ["--resume runs/config.json: no such file"]),
    "a Keras run": (
        "--resume runs/keras --data synthetic",
        None,
        ["runs/keras/config.json: not written by train.py"],
    ),
    "an empty path": ("--resume=", None, ["--resume", "'' is not a path"]),
    "an empty path of a config": ("--config=", None, ["--config", "'' is not a path"]),
    "not JSON": ("--config c.json", "{", ["--config c.json: not JSON"]),
    "not an object": ("--config c.json", "[1]", ["--config c.json: a JSON list"]),
    "not the config of a run": ("--config c.json", '{"lr": 0.1}', ["--config c.json: no options in it"]),
    "an option of another version": (
        "--config c.json",
        '{"flags": {"made_up": 0.5}}',
        ["--config c.json", "--made-up 0.5 (an option that this version lacks)"],
    ),
    "a number for a string": ("--config c.json", '{"flags": {"model": 5}}', ["--config c.json: --model: 5 is none of"]),
    "a list for a string": ("--config c.json", '{"flags": {"model": []}}', ["--config c.json: --model: [] is none of"]),
    "an unknown recipe": ("--config c.json", '{"flags": {"recipe": "slow"}}', ["--recipe: 'slow' is none of fast"]),
    "text for a number": ("--config c.json", '{"flags": {"lr": "high"}}', ["--lr: 'high' is not a number in"]),
    "fractional epochs": ("--config c.json", '{"flags": {"epochs": 1.5}}', ["--epochs: '1.5' is not a whole"]),
    "a switch as a number": ("--config c.json", '{"flags": {"json": 1}}', ["--json: 1 is not True or False"]),
    "True as a number": ("--config c.json", '{"flags": {"seed": true}}', ["--seed: 'True' is not a whole number"]),
    "a path with a line break": ("--config c.json", '{"flags": {"data": "a\\nb"}}', [r"--data: 'a\nb' is not a path"]),
    "an unavailable device": (
        "--config c.json",
        '{"flags": {"device": "cuda:99"}}',
        ["'cuda:99' is not available"],
    ),
    "options that do not go together": (
        "--config c.json --dtype float64",
        '{"flags": {"mixed_precision": true}}',
        ["--mixed-precision does not go with --dtype float64"],
    ),
    "its own directory": ("--config runs/first --out runs/first", None, ["--out runs/first: already holds a run"]),
}


@pytest.fixture(scope="module")
def first(finished, tmp_path_factory):
    """A folder with a run (runs/first) and an empty file in place of its data, for commands that change nothing."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(finished, folder / "runs" / "first")
    (folder / "mine.npz").touch()
    (folder / "runs" / "keras").mkdir()
    (folder / "runs" / "keras" / CONFIG).write_text('{"model": "keras notebook", "backend": "jax", "flags": {}}')
    (folder / "runs" / "keras" / LOCK).touch()
    return folder


@pytest.mark.parametrize(("flags", "config", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_argument_of_resume_or_config_is_refused_in_one_line(flags, config, words, first, monkeypatch, capsys):
    monkeypatch.chdir(first)
    (first / "c.json").write_text(config or "")
    before = contents(first)
    assert train.main(flags.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert contents(first) == before


def test_values_given_on_the_command_line_are_not_read_from_the_config(tmp_path):
    flags = {"lr": "high", "data": None, "device": "cuda:99", "seed": 4, "out": "x", "made_up": 1}
    (tmp_path / "c.json").write_text(json.dumps({"flags": flags, "not_default": []}))
    given = ["--lr", "0.5", "--data", "synthetic", "--device", "cpu"]
    parsed = options.parse(
        ["--config", str(tmp_path / "c.json"), *given, "--recipe", "fast", "--epochs", "9"]
    ).checked()
    assert (parsed.lr, parsed.seed, parsed.epochs, parsed.batch_size) == (0.5, 4, 9, 256)
    assert str(parsed.out) == "runs/fast-synthetic-seed4"


def config_of(folder, *words):
    """Write the config of a run with the arguments `words`, as far as options are read from it; returns its path."""
    given = options.parse(list(words))
    content = {"flags": given.checked().flags(), "given": given.flags(), "not_default": given.checked().not_default()}
    (folder / "c.json").write_text(json.dumps(content))
    return str(folder / "c.json")


def test_a_recipe_overrides_the_values_of_a_config_and_the_command_line_overrides_both(tmp_path):
    config = config_of(tmp_path, "--data", "mine.npz", "--seed", "3", "--patience", "7", "--dropout", "0.2")
    parsed = options.parse(["--config", config, "--recipe", "fast", "--epochs", "9"]).checked()
    fast = options.parse(["--recipe", "fast", "--data", "mine.npz", "--seed", "3", "--epochs", "9"]).checked()
    assert parsed.flags() == fast.flags()


def test_resuming_a_run_with_a_recipe_that_it_did_not_have_is_refused(first, monkeypatch, capsys):
    monkeypatch.chdir(first)
    assert train.main(["--resume", "runs/first", "--recipe", "fast"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model whitened (was 'baseline'), --batch-size 256 (was 64)" in line


@pytest.mark.parametrize(
    ("before", "now"),
    [([], ["--model", "improved"]), (["--model", "improved"], ["--model", "baseline"]), ([], ["--optimizer", "adamw"])],
)
def test_a_default_that_depends_on_another_option_follows_that_one(before, now, tmp_path):
    parsed = options.parse(["--config", config_of(tmp_path, *before), *now]).checked()
    assert parsed.flags() == options.parse(now).checked().flags()


def test_a_value_given_in_place_of_such_a_default_is_kept(tmp_path):
    config = config_of(tmp_path, "--augment", "--threads", "2")
    parsed = options.parse(["--config", config, "--model", "improved", "--optimizer", "adamw"]).checked()
    assert (parsed.augment, parsed.threads, parsed.weight_decay) == (True, 2, 0.004)
    config = config_of(tmp_path, "--model", "improved", "--no-augment", "--optimizer", "sgd", "--weight-decay", "0.1")
    parsed = options.parse(["--config", config, "--model", "whitened", "--optimizer", "adamw"]).checked()
    assert (parsed.augment, parsed.weight_decay) == (False, 0.1)


def test_one_of_several_processes_uses_its_own_gpu_and_not_that_of_the_first(tmp_path, monkeypatch):
    # As the first process writes it.
    (tmp_path / "c.json").write_text('{"given": {"device": "cuda"}, "flags": {"device": "cuda:0"}}')
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert options.parse(["--config", str(tmp_path / "c.json")]).checked().device == torch.device("cuda:1")


# --- what is printed at the end ---------------------------------------------------------------------------------------


def test_the_last_lines_name_the_files_and_commands_that_can_be_pasted(arrays, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(arrays["x_test"][0]).save("image.png")
    arguments = ["--data", str(npz), "--epochs", "1", "--out=-my run's", "--json"]
    assert train.main(arguments) == 0
    first = capsys.readouterr()
    assert train.main([*arguments, "--resume"]) == 0
    for printed in (first, capsys.readouterr()):
        accuracy, *named, comparing, predicting = printed.err.splitlines()[-7:]
        assert accuracy == f"Test accuracy: {json.loads(printed.out)['test_accuracy']:.4f}"
        names = [shlex.split(line.partition(": ")[2])[0] for line in named]
        assert names == [f"-my run's/{name}" for name in ("curves.png", "confusion.png", "metrics.json", "history.csv")]
        assert all(map(os.path.isfile, names))
    for line, command, last in ((comparing, compare, str(tmp_path / "-my run's")), (predicting, predict, "image.png")):
        _, script, run, _ = shlex.split(line.partition(": ")[2])
        assert os.path.samefile(script, command.__file__)
        assert command.main([run, last]) == 0
    monkeypatch.chdir(ROOT)
    assert train.main([*arguments[:-2], f"--out={tmp_path / arguments[-2][6:]}", "--resume"]) == 0
    assert " predict.py " in capsys.readouterr().out


# --- in Python --------------------------------------------------------------------------------------------------------


def test_train_in_python_returns_what_the_files_hold_and_leaves_signals_alone(npz, tmp_path, capsys):
    handlers = [signal.getsignal(signum) for signum in signals.SIGNALS]
    given = Options(data=npz, epochs=np.int64(2), lr=np.float64(0.002), device="cpu", out=str(tmp_path / "<name>"))
    metrics, history = train.train(given)
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == handlers
    out = tmp_path / "baseline"
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert history.logs[metrics["best_epoch"] - 1] == metrics["best_epoch_logs"]
    command = ["--data", str(npz), "--epochs", "2", "--lr", "0.002", "--device", "cpu"]
    assert train.main([*command, "--out", str(tmp_path / "same")]) == 0
    assert flags_of(out) | {"out": ""} == flags_of(tmp_path / "same") | {"out": ""}
    assert (out / HISTORY).read_bytes() == (tmp_path / "same" / HISTORY).read_bytes()
    with pytest.raises(BadInput, match="already holds a run"):
        train.train(given)
    again, read = train.train(Options(**vars(given) | {"resume": True}))
    assert (again, read.state_dict()) == (metrics, history.state_dict())
    (out / HISTORY).write_text("epoch,loss\n0,a\n1,b\n")
    capsys.readouterr()
    assert train.main([*command, "--out", str(out), "--resume"]) == 0
    assert "Its history cannot be read back (could not convert string to float: 'a')." in capsys.readouterr().out


def test_a_finished_run_whose_files_come_from_two_runs_is_refused(finished, npz, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    metrics = json.loads((run / "metrics.json").read_text())
    for changed, said in (
        ({"seed": 5}, "has seed 5, config.json 0"),
        ({"best_epoch_logs": metrics["best_epoch_logs"] | {"val_loss": 9.5}}, "has val_loss 9.5 in epoch"),
    ):
        (run / "metrics.json").write_text(json.dumps(metrics | changed))
        assert train.main(["--resume", str(run), "--data", str(npz)]) == 2
        assert f"metrics.json: {said}" in capsys.readouterr().err


WRONG = {
    "epochs": (0, "epochs: '0' is not a whole number in [1, "),
    "lr": ("fast", "lr: 'fast' is not a number"),
    "batch_size": (64.0, "batch_size: '64.0' is not a whole number"),
    "model": ("resnet", "model: 'resnet' is none of baseline"),
    "recipe": ("slow", "recipe: 'slow' is none of fast"),
    "augment": ("yes", "augment: 'yes' is not True or False"),
    "resume": ("runs/x", "resume: 'runs/x' is not True or False"),
    "seed": (None, "seed: None is not allowed"),
    "device": ("gpu", "device: 'gpu' is none of"),
    "out": ("a\nb", "out: 'a\\nb' is not a path"),
    "weight_decay": (0.25, "weight_decay 0.25 is not for adam"),
    "tensorboard": (True, "tensorboard: no package tensorboard (No module named 'tensorboard'); install it with"),
}


@pytest.mark.parametrize(("name", "value", "message"), [(name, *rest) for name, rest in WRONG.items()], ids=WRONG)
def test_a_wrong_option_in_python_raises_an_error_that_names_it_and_nothing_is_written(
    name, value, message, tmp_path, monkeypatch
):
    if name == "tensorboard":
        monkeypatch.setitem(train.sys.modules, "tensorboard", None)
        for module in [module for module in train.sys.modules if module.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(train.sys.modules, module)
        message = message.replace("No module named 'tensorboard'", "import of tensorboard halted; None in sys.modules")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        train.train(Options(**{"data": "synthetic", "out": "run", name: value}))
    assert str(refused.value).startswith(message)
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="no option epoch; python"):
        Options(epoch=3)


def test_a_recipe_in_python_equals_that_of_the_command_line_and_given_values_win():
    assert Options(recipe="fast").checked() == options.parse(["--recipe", "fast"]).checked()
    assert (
        Options(recipe="fast", epochs=50).checked() == options.parse(["--recipe", "fast", "--epochs", "50"]).checked()
    )
    once = Options(recipe="fast", data="synthetic").checked()
    assert once.checked() == once


def test_tensorboard_has_each_epoch_once_however_often_a_run_was_resumed(npz, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--data", str(npz), "--out", str(tmp_path), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0  # not yet logged to TensorBoard
    for epochs in "23":
        assert train.main([*arguments, epochs, "--tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = np.genfromtxt(tmp_path / HISTORY, delimiter=",", names=True)["val_loss"]
    assert [(point.step, point.value) for point in events.Scalars("val_loss")] == [*enumerate(losses)]


def test_the_readmes_lines_for_notebooks_run_and_show_the_picture(npz, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    text = (ROOT / "README.md").read_text()
    code = "\n".join(line.strip() for line in text.partition("notebooks\n\n")[2].split("\n\n")[0].splitlines())
    assert len(code.splitlines()) == 5
    assert 'train(Options(epochs=3, data="synthetic", seed=7))' in code
    fewer = f"epochs=2, threads=1, data={str(npz)!r}, out={str(tmp_path)!r}"
    less = code.replace('epochs=3, data="synthetic", seed=7', fewer)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(less)])
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": ROOT}}).execute()
    *_, shown = notebook.cells[0].outputs
    assert shown.data["image/png"].startswith("iVBORw0KGgo")  # PNG, in base64
    assert len(shown.data["text/plain"]) < 100
    assert (tmp_path / CURVES).exists()


def test_tensorboard_does_not_load_tensorflow(npz, tmp_path, cli):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(139)  # as the true one may beside torch")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = cli(
        "--data", npz, "--epochs", 1, "--out", tmp_path / "run", "--tensorboard", "--threads", 1, env=environment
    )
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "run").glob("events*"))


def test_resuming_a_finished_run_restores_its_missing_best_pt_from_the_checkpoint(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    before = {
        name: (run / name).read_bytes() for name in ("best.pt", "history.csv", "metrics.json", "best_weights.npz")
    }
    (run / "best.pt").unlink()
    assert train.main(["--resume", str(run)]) == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    (run / "best.pt").unlink()
    (run / "checkpoint.pt").unlink()
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 0
    assert "predict.py" not in capsys.readouterr().out  # which could not read it
