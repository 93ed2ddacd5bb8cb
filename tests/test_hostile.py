"""Input that is wrong or hostile: one line that names it and the remedy, exit code 2, and no file changed."""

import functools
import io
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import options
import sources
import train
from callbacks import EarlyStopping, History, Schedule
from cli.errors import BadInput
from comparing import histories
from metrics import Figures
from optim import Adam
from running import checkpoint

# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(finished, npz, tmp_path, monkeypatch):
    """A current folder with good data (good.npz), a finished run (run) and a note (note.txt)."""
    shutil.copy(npz, tmp_path / "good.npz")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "note.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in folder.rglob("*")}


def refuses(place, capsys, arguments, words):
    before = contents(place)
    code = train.main(["--data", "good.npz", "--epochs", "3", *arguments])
    err = capsys.readouterr().err
    assert code == 2, err
    (line,) = err.splitlines()
    assert line.startswith("train.py: error: ")
    for word in words:
        assert word in line
    assert contents(place) == before


class Payload:
    """Makes a folder named `executed` when a pickle of it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def change_arrays(path, **change):
    with np.load("good.npz") as file:
        arrays = dict(file) | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def weights(**change):
    with np.load("run/initial_weights.npz") as file:
        np.savez("w.npz", **dict(file) | change)


def change_json(path, **change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | change))


def floats():
    images = np.zeros((320, 32, 32, 3), np.float32)
    images[7] = np.nan
    return images


INPUT = {
    # --data
    "data: missing": ("--data=none.npz", None, ["none.npz: no such file", "pass"]),
    "data: a text file": ("--data=note.txt", None, ["note.txt: neither a folder nor an .npz", "pass"]),
    "data: below a file": ("--data=note.txt/x", None, ["note.txt/x", "no such folder", "pass"]),
    "data: an empty name": ("--data=", None, ["--data", "''", "pass"]),
    "data: a name with a line break": ("--data=a\nb", None, ["--data", r"'a\nb'", "pass"]),
    "data: a name that is not valid text": ("--data=a\udcff.npz", None, ["--data", "pass"]),
    "data: a long name": (f"--data={'n' * 300}", None, ["n" * 300, "File name too long", "pass another folder"]),
    "data: a long name of an .npz": (f"--data={'n' * 300}.npz", None, ["n" * 300, "read (File name too long)"]),
    "data: a folder that cannot be made": ("--data=/proc/none", None, ["/proc/none", "pass"]),
    "data: a folder as a file": ("--data=f.npz", lambda: os.mkdir("f.npz"), ["f.npz", "not a file", "np.savez"]),
    "data: a pipe": ("--data=f.npz", lambda: os.mkfifo("f.npz"), ["f.npz", "not a file", "np.savez"]),
    "data: a link to itself": ("--data=f.npz", lambda: os.symlink("f.npz", "f.npz"), ["f.npz", "np.savez"]),
    "data: unreadable": ("--data=f.npz", lambda: os.symlink("/proc/self/mem", "f.npz"), ["f.npz", "cannot be read ("]),
    "data: empty": ("--data=f.npz", lambda: open("f.npz", "w").close(), ["f.npz", "np.savez"]),
    "data: of the wrong kind": ("--data=f.npz", lambda: shutil.copy("note.txt", "f.npz"), ["f.npz", "np.savez"]),
    "data: a saved network": (
        "--data=f.npz",
        lambda: shutil.copy("run/best.pt", "f.npz"),
        ["f.npz: is a PyTorch file", "np.savez"],
    ),
    "data: truncated": (
        "--data=good.npz",
        lambda: os.truncate("good.npz", os.path.getsize("good.npz") // 2),
        ["good.npz", "np.savez"],
    ),
    "data: a pickled object": (
        "--data=f.npz",
        lambda: change_arrays("f.npz", y_test=np.array([Payload()] * 100)),
        ["f.npz", "not a readable .npz of plain arrays", "np.savez"],
    ),
    "data: an array is missing": (
        "--data=f.npz",
        lambda: change_arrays("f.npz", y_test=None),
        ["f.npz: no array y_test", "write all with np.savez("],
    ),
    "data: float images with NaN": (
        "--data=f.npz",
        lambda: change_arrays("f.npz", x_train=floats()),
        ["f.npz: x_train is float32", "must be uint8"],
    ),
    "data: a label of -1": (
        "--data=f.npz",
        lambda: change_arrays("f.npz", y_train=np.arange(320) % 11 - 1),
        ["f.npz: y_train has labels from -1 to 9", "must be from 0 to 999"],
    ),
    "data: no images": (
        "--data=f.npz",
        lambda: change_arrays("f.npz", x_test=np.zeros((0, 32, 32, 3), np.uint8), y_test=np.zeros(0, int)),
        ["f.npz: x_test has shape (0, 32, 32, 3)", "N of at least 1"],
    ),
    "data: an empty validation part": ("--validation-split=1e-17", None, ["1e-17", "no validation image", "larger"]),
    "data: an empty training part": ("--validation-split=0.999", None, ["0.999", "no training image", "smaller"]),
    # --init-weights
    "weights: missing": ("--init-weights=w.npz", None, ["w.npz: no such file", "pass"]),
    "weights: a folder": ("--init-weights=run", None, ["--init-weights run", "not a file", "np.savez"]),
    "weights: a text file": ("--init-weights=note.txt", None, ["note.txt", "np.savez"]),
    "weights: a pickled object": (
        "--init-weights=w.npz",
        lambda: np.savez("w.npz", np.array([Payload()])),
        ["w.npz", "np.savez"],
    ),
    "weights: of another network": (
        "--init-weights=w.npz",
        lambda: weights(arr_0=np.zeros((5, 5, 3, 32))),
        ["w.npz", "(5, 5, 3, 32); it must be (3, 3, 3, 32)"],
    ),
    "weights: whole numbers": (
        "--init-weights=w.npz",
        lambda: weights(arr_1=np.zeros(32, int)),
        ["w.npz", "array 1 (conv1.bias) is int64", "must be floating-point"],
    ),
    "weights: NaN": (
        "--init-weights=w.npz",
        lambda: weights(arr_1=np.full(32, np.nan)),
        ["w.npz", "array 1 (conv1.bias) has a value that is not finite", "np.savez"],
    ),
    "weights: too large for float32": (
        "--init-weights=w.npz",
        lambda: weights(arr_1=np.full(32, 1e300)),
        ["w.npz", "array 1 (conv1.bias) has a value that is not finite in float32", "np.savez"],
    ),
    # --out
    "out: a file": ("--out=note.txt", None, ["note.txt: cannot make that folder (File exists)", "pass another --out"]),
    "out: below a file": (
        "--out=note.txt/run",
        None,
        ["note.txt/run: cannot make that folder (Not a directory)", "pass another --out"],
    ),
    "out: already a run": ("--out=run", None, ["--out run: already holds a run", "--resume"]),
    "out: in /proc": ("--out=/proc/none/run", None, ["/proc/none/run", "pass another --out"]),
    "out: an empty name": ("--out=", None, ["--out", "''", "pass"]),
    "out: a name with a line break": ("--out=a\nb", None, ["--out", r"'a\nb'", "pass"]),
    "out: a name with a line separator": ("--out=a\u2028b", None, ["--out", r"'a\u2028b'", "pass"]),
    "out: a long name": (f"--out={'n' * 300}", None, ["n" * 300, "File name too long", "pass another --out"]),
    "out: a link to itself": ("--out=o", lambda: os.symlink("o", "o"), ["--out o", "pass another --out"]),
    "out: its lock is a folder": ("--out=o", lambda: os.makedirs("o/.lock"), ["--out o", "pass another --out"]),
}


@pytest.mark.parametrize(("argument", "prepare", "words"), INPUT.values(), ids=INPUT)
def test_hostile_input_is_refused(argument, prepare, words, place, capsys):
    if prepare is not None:
        prepare()
    refuses(place, capsys, [argument], words)


def moments(state):
    """The optimizer's state of the first parameter in a saved tree."""
    return state["optimizer"]["state"][0]


def damaged(change):
    """Return what prepares a checkpoint to whose saved tree `change` was applied."""

    def prepare(run):
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        change(state)
        torch.save(state, run / "checkpoint.pt")

    return prepare


def cut(part):
    def prepare(run):
        os.truncate(run / "checkpoint.pt", int(part * (run / "checkpoint.pt").stat().st_size))

    return prepare


def replaced(name, content):
    return lambda run: (run / name).write_bytes(content)


def folder_for(name):
    def prepare(run):
        (run / name).unlink()
        (run / name).mkdir()

    return prepare


def flipped(run):
    content = bytearray((run / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)


def other_flags(**change):
    def prepare(run):
        config = json.loads((run / "config.json").read_text())
        change_json(run / "config.json", flags=config["flags"] | change)

    return prepare


ANOTHER = "pass another --out"
RUN = {
    "checkpoint: empty": (replaced("checkpoint.pt", b""), ["run/checkpoint.pt: not a checkpoint", ANOTHER]),
    "checkpoint: a text file": (replaced("checkpoint.pt", b"hello"), ["run/checkpoint.pt: not a checkpoint", ANOTHER]),
    "checkpoint: a folder": (folder_for("checkpoint.pt"), ["run/checkpoint.pt: cannot be read (Is a directory)"]),
    "checkpoint: missing": (lambda run: (run / "checkpoint.pt").unlink(), ["no checkpoint.pt in it", ANOTHER]),
    "checkpoint: one bit changed": (flipped, ["run/checkpoint.pt", "is damaged", ANOTHER]),
    "checkpoint: the best weights": (
        lambda run: shutil.copy(run / "best.pt", run / "checkpoint.pt"),
        ["run/checkpoint.pt: not a checkpoint", ANOTHER],
    ),
    "checkpoint: from a future version": (
        damaged(lambda state: state.update(format=7)),
        ["its format is 7, this version of the project reads 6", ANOTHER],
    ),
    "checkpoint: from an earlier version": (
        damaged(lambda state: state.update(format=5)),
        ["its format is 5, this version of the project reads 6", ANOTHER],
    ),
    "checkpoint: a pickled payload": (
        damaged(lambda state: state["run"].update(bits=Payload())),
        ["run/checkpoint.pt", "a pickle of more than plain data and was not loaded", ANOTHER],
    ),
    "checkpoint: a bare pickled payload": (
        replaced("checkpoint.pt", pickle.dumps(Payload())),
        ["run/checkpoint.pt: not a checkpoint", ANOTHER],
    ),
    "checkpoint: another network's shapes": (
        damaged(lambda state: state["model"].update({"conv1.weight": torch.zeros(64, 3, 3, 3)})),
        ["run/checkpoint.pt: not a checkpoint", ANOTHER],
    ),
    "checkpoint: another network's names": (
        damaged(lambda state: state["model"].pop("conv1.weight")),
        ["run/checkpoint.pt: not a checkpoint", ANOTHER],
    ),
    "checkpoint: an unknown part": (
        damaged(lambda state: state.update(swarm={"best": 1.0})),
        ["it has parts that this version lacks: swarm", ANOTHER],
    ),
    "checkpoint: an unknown figure": (
        damaged(lambda state: [logs.update(val_f1=0.5) for logs in state["history"]["logs"]]),
        ["its history has columns that this version does not log: val_f1", ANOTHER],
    ),
    "checkpoint: fewer epochs than it says": (
        damaged(lambda state: state["history"]["logs"].pop()),
        ["its history has 1, 2 and 2 epochs", ANOTHER],
    ),
    "checkpoint: fewer times than epochs": (
        damaged(lambda state: state["history"]["seconds"].pop()),
        ["its history has 2, 2 and 1 epochs", ANOTHER],
    ),
    "checkpoint: no epoch": (
        damaged(lambda state: state.update(history={"logs": [], "learning_rates": [], "seconds": []})),
        ["its history has 0, 0 and 0 epochs", ANOTHER],
    ),
    "checkpoint: a moment of another shape": (
        damaged(lambda state: moments(state).update(exp_avg=torch.zeros(7))),
        ["the optimizer's exp_avg of parameter 0 has shape (7,); it must be (32, 3, 3, 3)", ANOTHER],
    ),
    **{
        f"checkpoint: no step taken by parameter group {number}": (
            damaged(lambda state, number=number: state["optimizer"]["param_groups"][number].update(taken=0)),
            ["the optimizer has taken no step", ANOTHER],
        )
        for number in range(2)
    },
    "checkpoint: a list": (
        lambda run: torch.save([1, 2], run / "checkpoint.pt"),
        ["run/checkpoint.pt: not a checkpoint", ANOTHER],
    ),
    **{
        f"checkpoint: cut after {part:.0%}": (cut(part), ["run/checkpoint.pt: not a checkpoint", ANOTHER])
        for part in np.arange(10) / 10
    },
    "config: empty": (replaced("config.json", b""), ["run/config.json: not JSON"]),
    "config: a list": (replaced("config.json", b"[1]"), ["run/config.json: a JSON list", "must be an object"]),
    "config: nested without end": (replaced("config.json", b"[" * 100_000), ["run/config.json: not JSON"]),
    "config: not text": (replaced("config.json", b"\xff\xfe"), ["run/config.json: not a text file"]),
    "config: a folder": (folder_for("config.json"), ["run/config.json: cannot be read"]),
    "config: missing": (
        lambda run: (run / "config.json").unlink(),
        ["run/config.json: missing, so the run there cannot be identified", ANOTHER],
    ),
    "config: no flags": (
        lambda run: change_json(run / "config.json", flags=None),
        ["run/config.json: not written by train.py", ANOTHER],
    ),
    "config: of a Keras run": (
        lambda run: change_json(run / "config.json", program="reference/keras_notebook.py"),
        ["run/config.json: not written by train.py", ANOTHER],
    ),
    "config: nonsensical flags": (other_flags(lr=[{}]), ["--lr 0.001 (was [{}])", ANOTHER]),
    "checkpoint: more epochs than asked for": (
        damaged(lambda state: [values.extend(values) for values in state["history"].values()]),
        ["--epochs 3: 4 are already trained; pass 4 or more"],
    ),
    "checkpoint: with a different seed": (
        damaged(lambda state: state["run"]["flags"].update(seed=1)),
        ["run/checkpoint.pt: belongs to another run (--seed 0 (was 1))", ANOTHER],
    ),
    "checkpoint: with different data": (
        damaged(lambda state: state["run"].update(data_sha256="0")),
        ["run/checkpoint.pt: belongs to another run (other images or labels)", ANOTHER],
    ),
    "checkpoint: with different initial weights": (
        damaged(lambda state: state["run"].update(initial_weights="0")),
        ["run/checkpoint.pt: belongs to another run (other weights at its start", ANOTHER],
    ),
    "checkpoint: nonsensical flags": (
        damaged(lambda state: state["run"].update(flags={7: 8}, not_default=[7])),
        ["run/checkpoint.pt", ANOTHER],
    ),
    "initial weights: damaged": (
        replaced("initial_weights.npz", b"hello"),
        ["run/initial_weights.npz: not a readable"],
    ),
    "config: different images": (
        lambda run: change_json(run / "config.json", data_sha256=7),
        ["other images or labels than '", "small.npz' had", ANOTHER],
    ),
    "metrics: incomplete": (
        replaced("metrics.json", b'{"test_accuracy": 0.5, "epochs": 3}'),
        ["run/metrics.json: lacks", "stopped", "delete that file"],
    ),
    "metrics: not JSON": (replaced("metrics.json", b"hello"), ["run/metrics.json: not JSON", "delete"]),
    "history: without a checkpoint": (
        lambda run: [(run / name).unlink() for name in ("checkpoint.pt", "metrics.json")],
        ["no checkpoint.pt in it", ANOTHER],
    ),
    "weights: without a checkpoint": (
        lambda run: [(run / name).unlink() for name in ("checkpoint.pt", "metrics.json", "history.csv")],
        ["no checkpoint.pt in it", ANOTHER],
    ),
}


@pytest.mark.parametrize(("prepare", "words"), RUN.values(), ids=RUN)
def test_a_hostile_run_is_not_resumed(prepare, words, place, capsys):
    prepare(place / "run")
    refuses(place, capsys, ["--out", "run", "--resume"], words)


OTHER_FLAGS = {
    "--model": "improved",
    "--weight-decay": "0.1 --optimizer=sgd",
    "--optimizer": "sgd",
    "--lookahead": None,
    "--label-smoothing": "0.1",
    "--augment": None,
    "--shift": "2 --augment",
    "--no-mirror": "--augment",
    "--mixed-precision": None,
    "--tf32": None,
    "--deterministic": None,
    "--compile": None,
    "--schedule": "cosine",
    "--batch-size": "32",
    "--lr": "0.002",
    "--l2": "0.1",
    "--dropout": "0.1",
    "--validation-split": "0.3",
    "--patience": "4",
    "--lr-factor": "0.4",
    "--lr-patience": "2",
    "--min-lr": "0.0",
    "--seed": "1",
    "--dtype": "float64",
    "--no-shuffle": None,
    "--init-weights": "run/initial_weights.npz",
}


def test_every_flag_that_changes_the_result_is_refused_on_resuming_with_both_values(place, capsys):
    for flag, value in OTHER_FLAGS.items():
        words = (value or "").split()
        now = words[0] if words and not words[0].startswith("--") else "True"
        now = place / now if flag == "--init-weights" else now
        refuses(place, capsys, ["--out", "run", "--resume", flag, *words], [f"{flag} {now} (was ", ANOTHER])
    deciding = options.parse([]).checked().defaults()
    assert {options.flag_of(name) for name in deciding} == set(OTHER_FLAGS)


def test_other_initial_weights_under_the_same_name_are_refused_on_resuming(place, capsys):
    weights()
    start = ["--data", "good.npz", "--init-weights", "w.npz", "--out", "new"]
    assert train.main([*start, "--epochs", "1"]) == 0
    weights(arr_1=np.ones(32))
    refuses(
        place, capsys, [*start, "--resume"], ["--init-weights w.npz: not the weights", "pass those or another --out"]
    )
    weights()
    assert train.main([*start, "--epochs", "3", "--resume"]) == 0


def test_initial_weights_are_compared_by_their_hash_and_not_by_their_path(place, capsys):
    weights()
    start = ["--data", "good.npz", "--out", "new", "--resume", "--epochs"]
    assert train.main([*start, "1", "--init-weights", "w.npz"]) == 0
    shutil.move("w.npz", "moved.npz")
    capsys.readouterr()
    for epochs, name, said in (
        ("1", "moved.npz", "It had already finished, after epoch 1"),
        ("2", "moved.npz", "Resuming after epoch 1."),
        ("3", "w.npz", "--init-weights w.npz does not exist; the run's directory has everything that is needed."),
        ("3", "w.npz", "It had already finished, after epoch 3"),
    ):
        assert train.main([*start, epochs, "--init-weights", name]) == 0
        assert said in capsys.readouterr().out
    weights(arr_1=np.ones(32))
    for epochs in ("3", "4"):  # finished, and not
        refuses(place, capsys, [*start, epochs, "--init-weights", "w.npz"], ["--init-weights w.npz: not the weights"])
    os.remove("w.npz")
    os.remove("new/checkpoint.pt")
    assert train.main(["--data", "good.npz", "--out", "other", "--resume", "--init-weights", "w.npz"]) == 2
    assert "--init-weights w.npz: no such file" in capsys.readouterr().err


# --- data that are odd, but legal -------------------------------------------------------------------------------------

ODD = {
    "constant images": {"x_train": np.full((320, *SHAPE), 255, np.uint8)},
    "black images": {"x_train": np.zeros((320, *SHAPE), np.uint8), "x_test": np.zeros((100, *SHAPE), np.uint8)},
    "a missing class": {"y_train": np.arange(320) % 9},
    "one class": {"y_train": np.full(320, 3)},
    "fewer images than a batch": {"x_train": np.zeros((20, *SHAPE), np.uint8), "y_train": np.arange(20) % 10},
    "one test image": {"x_test": np.zeros((1, *SHAPE), np.uint8), "y_test": np.zeros(1, np.uint8)},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_odd_but_legal_data_give_a_run_with_finite_figures(change, place):
    change_arrays("odd.npz", **change)
    assert train.main(["--data", "odd.npz", "--epochs", "2", "--out", "odd"]) == 0
    history = histories.read(place / "odd").history
    assert np.isfinite(list(history.values())).all()
    assert len(history["loss"]) == 2


def test_paths_with_special_characters_are_accepted(place):
    for name in ("$x^$_{%s}", "<seed>", "[a-z]*", "ü ß"):
        shutil.copy("good.npz", f"{name}.npz")
        assert train.main(["--data", f"{name}.npz", "--epochs", "1", "--out", f"out {name}"]) == 0


# --- fuzzing the readers ----------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused_in_one_line(path, read, error):
    """Return what `read(path)` returns, or None if it raises `error`."""
    try:
        return read(path)
    except error as refusal:
        message = str(refusal)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return None


def mutated(whole):
    """Strategy: `whole` with a few bytes changed, a piece cut out, or a piece put in; or any bytes."""
    at = st.integers(0, len(whole) - 1)
    changed = st.dictionaries(at, st.integers(0, 255), min_size=1, max_size=8).map(
        lambda changes: bytes(changes.get(position, byte) for position, byte in enumerate(whole))
    )
    cut_out = st.tuples(at, at).map(lambda ends: whole[: min(ends)] + whole[max(ends) :])
    put_in = st.tuples(at, st.binary(min_size=1, max_size=50)).map(lambda x: whole[: x[0]] + x[1] + whole[x[0] :])
    return st.one_of(changed, cut_out, put_in, st.binary(max_size=200))


def mutated_inside(whole, member):
    """Strategy: the zip `whole` with `member` mutated and its checksum corrected, so that it is read at all."""

    def rezipped(content):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name == member else old.read(name))
        return buffer.getvalue()

    with zipfile.ZipFile(io.BytesIO(whole)) as old:
        return mutated(old.read(member)).map(rezipped)


def small_npz():
    buffer = io.BytesIO()
    images, labels = np.zeros((1, 32, 32, 3), np.uint8), np.ones(1, np.int64)
    np.savez(buffer, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return buffer.getvalue()


@FUZZ
@given(content=mutated(small_npz()) | mutated_inside(small_npz(), "y_train.npy"))
@example(content=small_npz())
def test_any_bytes_as_npz_are_read_or_refused(content, tmp_path):
    path = tmp_path / "fuzz.npz"
    path.write_bytes(content)
    arrays = refused_in_one_line(path, lambda path: sources.choose(str(path)).load(), BadInput)
    if arrays is None:
        return
    assert arrays.x_train.dtype == np.uint8
    assert arrays.image_shape == (32, 32, 3)
    assert len(arrays.y_train) == len(arrays.x_train)


class Constant(Schedule):
    """A schedule without a state."""

    rate = 0.001

    def state_dict(self):
        return {}


def small_parts():
    """The parts of a run of the smallest model, before its first epoch."""
    model, schedule = torch.nn.Linear(1, 1), Constant()
    state = {"model": model, "best": model, "optimizer": Adam(model.parameters(), 1e-3), "schedule": schedule}
    return state | {"early_stopping": EarlyStopping(5), "history": History(Figures.columns(), schedule)}


@functools.cache
def small_checkpoint():
    """The bytes of a checkpoint of such a run after an epoch of one step."""
    state = small_parts()
    state["model"](torch.zeros(1, 1)).sum().backward()
    state["optimizer"].step()
    for name in ("early_stopping", "history"):
        state[name].after_epoch(0, dict.fromkeys(Figures.columns(), 0.5))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder, "checkpoint.pt"), state, {"parts": [], "flags": {}, "initial_weights": "x"})
        return Path(folder, "checkpoint.pt").read_bytes()


def load(path):
    """Read a checkpoint and load it, as a resumed run does."""
    state = small_parts()
    saved = checkpoint.read(path, state)
    checkpoint.load(path, saved, state)
    return saved


def reads_or_refuses(path, content):
    path.write_bytes(content)
    return refused_in_one_line(path, load, BadInput)


def test_a_checkpoint_cut_off_at_any_tenth_byte_is_refused(tmp_path):
    path, whole = tmp_path / "checkpoint.pt", small_checkpoint()
    assert reads_or_refuses(path, whole).keys() == {"format", "run", *small_parts()} - {"schedule"}
    for size in range(0, len(whole), 10):
        assert reads_or_refuses(path, whole[:size]) is None


def test_a_checkpoint_is_refused_if_damage_turns_a_tensor_into_a_folder(tmp_path):
    whole, entry = small_checkpoint(), b"PK\x01\x02"  # starts an entry of the zip's directory
    places = [match.start() + 38 for match in re.finditer(re.escape(entry), whole)]  # the byte of its attributes
    assert len(places) > 5
    for place in places:
        content = whole[:place] + b"\x10" + whole[place + 1 :]
        assert reads_or_refuses(tmp_path / "checkpoint.pt", content) is None


@FUZZ
@given(content=mutated(small_checkpoint()))
def test_a_damaged_checkpoint_is_read_as_it_was_or_refused(content, tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = reads_or_refuses(path, small_checkpoint())
    assert repr(reads_or_refuses(path, content)) in (repr(whole), "None")


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@FUZZ
@given(content=mutated_inside(small_checkpoint(), "archive/data.pkl"))
def test_any_pickle_in_a_checkpoint_is_read_or_refused(content, tmp_path):
    reads_or_refuses(tmp_path / "checkpoint.pt", content)


HISTORY = (
    b"epoch,accuracy,learning_rate,loss,val_accuracy,val_loss\r\n0,0.3,0.001,2.0,0.5,1.5\r\n1,0.4,0.001,1.0,0.6,1.2\r\n"
)
TABLE = st.text("0123456789,.\r\n\"'-+einfalocs\0", max_size=100).map(lambda rows: b"loss\n" + rows.encode())


@FUZZ
@given(content=mutated(HISTORY) | TABLE)
@example(content=HISTORY)
def test_any_bytes_as_history_are_read_or_refused(content, tmp_path):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    found = refused_in_one_line(path, histories.read, BadInput)
    if found is None:
        return
    history = found.history
    assert history.get("loss") or history.get("val_loss")
    assert {type(value) for values in history.values() for value in values} == {float}
