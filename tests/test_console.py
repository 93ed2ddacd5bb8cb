"""What the commands share: flags' values, and how whatever ends a command becomes a line and an exit code."""

import dataclasses
import errno
import io
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import compare
import train
from harness import console, distributed
from harness.console import command, first_line, number, say
from harness.errors import (
    BadInput,
    CannotWrite,
    DeviceFailed,
    Diverged,
    Failure,
    FirstFailed,
    Interrupted,
    Lost,
)
from options import Options


def ending(error, resumes=True):
    @command("x.py", resumes=resumes)
    def main(argv):
        raise error

    return main


def test_an_error_of_the_system_that_nobody_expected_is_one_line_too(capsys):
    assert ending(OSError(5, "Input/output error"))(["--a"]) == 1
    assert capsys.readouterr().err == "x.py: error: [Errno 5] Input/output error\n"


@pytest.mark.parametrize(
    ("argv", "resumes", "expected"),
    [
        (["--out", "a b"], True, "x.py --out 'a b' --resume"),
        (["--resume", "--out", "a"], True, "x.py --resume --out a"),
        (["--out", "a"], False, "x.py --out a"),
    ],
)
def test_the_advice_names_the_command_that_goes_on(argv, resumes, expected, capsys):
    assert ending(CannotWrite("cannot write x"), resumes)(argv) == 1
    message = "x.py: error: cannot write x; what was finished before stands: make room there, then go on: "
    assert capsys.readouterr().err == f"{message}{expected}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadInput("why"), "process 1: why"),
        (DeviceFailed("why"), "process 1: why; the epochs that were finished are kept, to go on: x.py --resume"),
        (torch.OutOfMemoryError("why"), "process 1: why; pass a smaller --batch-size, or --device cpu"),
        (Diverged("why"), None),
        (Lost("why"), "process 1: why; the epochs that were finished are kept, to go on: x.py --resume"),
        (FirstFailed(), None),
        (Interrupted(signal.SIGTERM), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_process_than_the_first_says_what_happens_to_it_alone(error, said, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    ending(error)([])
    assert capsys.readouterr().err == (f"x.py: error: {said}\n" if said else "")


def test_an_error_without_a_message_is_named_by_its_kind():
    assert first_line(ValueError()) == "ValueError"
    assert first_line(Failure("one\ntwo")) == "one"


@pytest.mark.parametrize(
    ("interval", "inside", "outside"), [("[0, 1)", "0", "1"), ("(0, 1]", "1", "0"), ("[0, 31]", "31", "31.5")]
)
def test_an_interval_has_the_ends_that_its_brackets_say(interval, inside, outside):
    assert number(float, interval)(inside) == float(inside)
    with pytest.raises(console.argparse.ArgumentTypeError, match="is not a number in"):
        number(float, interval)(outside)


def test_an_argument_of_two_lines_is_refused_in_one(capsys):
    assert train.main(["a\nb"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_comparison_that_cannot_be_written_is_not_to_be_resumed(tmp_path, capsys, monkeypatch):
    (tmp_path / "history.csv").write_text("epoch,loss\n0,1.0\n")
    (tmp_path / f".comparison.png.{os.getpid()}.partial").mkdir()
    arguments = [str(tmp_path / "history.csv"), "--out", str(tmp_path)]
    assert compare.main(arguments) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"compare.py: error: cannot write {tmp_path / 'comparison.png'} (Is a directory); ")
    assert line.endswith(f"go on: compare.py {' '.join(arguments)}")


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch):
    for encoding, expected in (("ascii", rb"\xb1 \u4e2d"), ("latin-1", b"\xb1 \\u4e2d"), ("utf-8", "± 中".encode())):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        say("± 中", 1)
        assert sys.stdout.buffer.getvalue() == expected + b"\n1\n"


class BrokenPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(("resumes", "lines"), [(False, 0), (True, 1)])
def test_a_reader_that_has_gone_is_a_fault_for_what_trains_only(resumes, lines, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    assert command("x.py", resumes=resumes)(lambda _: say("hello"))([]) == 1
    assert sys.stdout is None  # else the interpreter would complain at its end
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_where_nobody_reads_errors_the_exit_code_still_tells(monkeypatch):
    for arguments, code in ((["--epochs", "x"], 2), (["--data", "none.npz"], 2)):
        monkeypatch.setattr(sys, "stderr", BrokenPipe())
        assert train.main(arguments) == code
        assert sys.stderr.name == os.devnull  # else it is 120


def test_a_closed_standard_error_ends_no_run_and_nothing_of_it_comes_on_standard_output(npz, tmp_path):
    training = [sys.executable, ROOT / "train.py", "--data", npz, "--epochs", "1", "--out", tmp_path / "run"]
    comparison = [sys.executable, ROOT / "compare.py", "no-run"]
    shell = "; ".join(f"{shlex.join(map(str, words))} 2>&-" for words in (training, comparison))
    ended = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "error.txt").exists()
    assert ended.returncode == 2
    assert "no-run" not in ended.stdout


def test_help_for_a_reader_that_has_gone_ends_quietly(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    assert train.main(["--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, bytearray], ids=["torch", "numpy", "python"])
def test_a_cpu_whose_memory_is_not_enough_is_one_line(allocate, capsys):
    assert command("x.py", resumes=True)(lambda _: allocate(1 << 50))([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("x.py: error: out of memory (")
    assert line.endswith("); pass a smaller --batch-size")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_flag_error_is_said_once_on_each_machine(rank, lines, monkeypatch, capsys):
    environment = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (environment | {"RANK": "2" if rank == "0" else "1", "LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # enough for one of them: they refuse it alike
    for arguments in (["--epochs", "x"], ["--device", "cuda"]):
        assert train.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines
    assert train.main(["--help"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_absurdly_many_digits_are_refused_in_a_short_line(digits, capsys):
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(Options)}
    numbers = [name for name, kind in kinds.items() if getattr(kind, "__qualname__", "").startswith("number")]
    assert {"epochs", "seed", "patience", "lr"} <= {*numbers}
    for name in numbers:
        assert train.main([f"--{name.replace('_', '-')}={'9' * digits}", "--schedule=cosine"]) == 2
        assert train.main([f"--device=cuda:{'9' * digits}"]) == 2
        assert all(len(line) < 240 for line in capsys.readouterr().err.splitlines())


FULL = "import sys; from harness.console import command, say; sys.exit(command('x.py')(lambda _: say('hello'))([]))"


def test_a_full_log_is_complained_of_once():
    # Python would try again at its end, if it buffers, complain in two lines of its own, and exit with 120.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words, pipe = [sys.executable, "-c", FULL], subprocess.PIPE
    with open("/dev/full", "w") as full:
        process = subprocess.run(words, cwd=ROOT, env=environment, stdout=full, stderr=pipe, text=True, check=False)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
