"""What the commands share: flags' values, and how whatever ends a command becomes a line and an exit code."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import compare
import train
from harness import console, distributed
from harness.console import command, first_line, number
from harness.errors import (
    BadInput,
    DeviceFailed,
    Diverged,
    Failure,
    FirstFailed,
    Interrupted,
    Lost,
)


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
    assert ending(DeviceFailed("the device failed (x)"), resumes)(argv) == 1
    message = "x.py: error: the device failed (x); the epochs that were finished are kept, to go on: "
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
    (tmp_path / ".comparison.png.partial").mkdir()
    arguments = [str(tmp_path / "history.csv"), "--out", str(tmp_path)]
    assert compare.main(arguments) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"compare.py: error: cannot write {tmp_path / 'comparison.png'} (Is a directory); ")
    assert line.endswith(f"go on: compare.py {' '.join(arguments)}")


FULL = "import sys; from harness.console import command, say; sys.exit(command('x.py')(lambda _: say('hello'))([]))"


def test_a_full_log_is_complained_of_once():
    # Python would try again at its end, if it buffers, complain in two lines of its own, and exit with 120.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words, pipe = [sys.executable, "-c", FULL], subprocess.PIPE
    with open("/dev/full", "w") as full:
        process = subprocess.run(words, cwd=ROOT, env=environment, stdout=full, stderr=pipe, text=True, check=False)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
