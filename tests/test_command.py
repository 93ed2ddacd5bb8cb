"""What the commands share: the values of flags, and how whatever ends a command becomes a line and an exit code."""

import argparse
import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import compare
import train
from cli.command import command
from cli.errors import BadInput, CannotWrite, Diverged, Failure, Interrupted, Lost, first_line
from cli.messages import say
from cli.parser import number
from options import Options
from running import distributed


def ending(error, resumes=True):
    @command("x.py", resumes=resumes)
    def main(argv):
        raise error

    return main


def test_an_unexpected_system_error_is_reported_in_one_line(capsys):
    assert ending(OSError(5, "Input/output error"))(["--a"]) == 1
    assert capsys.readouterr().err == "x.py: error: [Errno 5] Input/output error\n"


def test_a_file_without_read_permission_is_reported_by_name_as_bad_input(capsys):
    assert ending(PermissionError(errno.EACCES, "Permission denied", "private"))([]) == 2
    assert capsys.readouterr().err == "x.py: error: private: Permission denied; check its permissions\n"


@pytest.mark.parametrize(
    ("argv", "resumes", "expected"),
    [
        (["--out", "a b"], True, "x.py --out 'a b' --resume"),
        (["--resume", "--out", "a"], True, "x.py --resume --out a"),
        (["--out", "a"], False, "x.py --out a"),
    ],
)
def test_the_advice_names_the_command_to_continue_with(argv, resumes, expected, capsys):
    assert ending(CannotWrite("x", OSError(errno.ENOSPC, "No space left on device")), resumes)(argv) == 1
    message = "x.py: error: cannot write x (No space left on device); free some space there, then continue: "
    assert capsys.readouterr().err == f"{message}{expected}\n"


def test_without_write_permission_the_advice_is_to_make_it_writable_and_not_to_free_space(capsys):
    ending(CannotWrite("x", PermissionError(errno.EACCES, "Permission denied")))([])
    assert "cannot write x (Permission denied); make it writable, then" in capsys.readouterr().err


def test_in_a_notebook_the_command_to_continue_with_is_that_of_the_script_and_not_of_the_kernel(monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])  # as %run sets it
    ending(Interrupted(signal.SIGINT))(None)
    assert capsys.readouterr().err == "x.py: error: interrupted by SIGINT; to continue: x.py --epochs 3 --resume\n"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "GET was unable to find an engine to execute this computation",
        "NCCL Error 2: unhandled system error",
        "Cannot find a working triton installation",
        "CUDA-capable device(s) is/are busy or unavailable",
    ],
)
def test_a_gpu_library_error_is_reported_in_one_line_with_the_remedy(message, capsys):
    assert ending(RuntimeError(f"{message}\nmore of it"))([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"x.py: error: the device failed ({message}); run fewer at once on that device, or ")
    assert "--compile" in line


def test_any_other_runtime_error_counts_as_a_bug_and_is_raised():
    with pytest.raises(RuntimeError, match="shapes"):
        ending(RuntimeError("shapes cannot be multiplied"))([])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadInput("why"), "process 1: why"),
        (
            torch.OutOfMemoryError("why"),
            "process 1: why; pass a smaller --batch-size or --image-size, or another --device",
        ),
        (Diverged("why"), None),
        (Lost("why"), "process 1: why; to continue: x.py --resume"),
        (Interrupted(signal.SIGTERM), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_process_other_than_the_first_reports_only_what_happens_to_it_alone(error, said, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    ending(error)([])
    assert capsys.readouterr().err == (f"x.py: error: {said}\n" if said else "")


def test_an_error_is_summed_up_by_its_first_line_or_without_a_message_by_its_type():
    assert first_line(ValueError()) == "ValueError"
    assert first_line(Failure("one\ntwo")) == "one"


@pytest.mark.parametrize(
    ("interval", "inside", "outside"), [("[0, 1)", "0", "1"), ("(0, 1]", "1", "0"), ("[0, 31]", "31", "31.5")]
)
def test_an_interval_includes_or_excludes_its_ends_as_its_brackets_say(interval, inside, outside):
    assert number(float, interval)(inside) == float(inside)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number in"):
        number(float, interval)(outside)


def test_an_argument_with_a_line_break_is_refused_in_one_line(capsys):
    assert train.main(["a\nb"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_comparison_that_cannot_be_written_is_to_be_repeated_and_not_resumed(tmp_path, capsys, monkeypatch):
    (tmp_path / "history.csv").write_text("epoch,loss\n0,1.0\n")
    (tmp_path / f".comparison.png.{os.getpid()}.partial").mkdir()
    arguments = [str(tmp_path / "history.csv"), "--out", str(tmp_path)]
    assert compare.main(arguments) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"compare.py: error: cannot write {tmp_path / 'comparison.png'} (Is a directory); ")
    assert line.endswith(f"continue: compare.py {' '.join(arguments)}")


def test_characters_that_standard_output_cannot_encode_are_escaped(monkeypatch):
    for encoding, expected in (("ascii", rb"\xb1 \u4e2d"), ("latin-1", b"\xb1 \\u4e2d"), ("utf-8", "± 中".encode())):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert command("x.py")(lambda _: say("± 中", 1))([]) == 0
        assert sys.stdout.buffer.getvalue() == expected + b"\n1\n"


def test_a_printed_line_is_in_the_log_at_once(monkeypatch):
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, encoding="utf-8"))  # it buffers 8 kB
    say("Epoch 1/50")
    assert log.getvalue() == b"Epoch 1/50\n"


def test_a_log_file_has_no_progress_bar(little, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    assert train.main(["--data", str(little), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert sys.stderr.getvalue() == ""


class BrokenPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(("resumes", "lines"), [(False, 0), (True, 1)])
def test_a_closed_output_pipe_is_reported_only_by_commands_that_train(resumes, lines, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    assert command("x.py", resumes=resumes)(lambda _: say("hello"))([]) == 1
    assert sys.stdout is None  # otherwise the interpreter would complain at exit
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_help_written_to_a_closed_pipe_ends_quietly(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    assert train.main(["--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, bytearray], ids=["torch", "numpy", "python"])
def test_running_out_of_memory_on_the_cpu_is_reported_in_one_line(allocate, capsys):
    assert command("x.py", resumes=True)(lambda _: allocate(1 << 50))([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("x.py: error: out of memory (")
    assert line.endswith("); pass a smaller --batch-size or --image-size, or another --device")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_flag_error_is_printed_once_on_each_machine(rank, lines, monkeypatch, capsys):
    environment = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (environment | {"RANK": "2" if rank == "0" else "1", "LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # enough for one of them, but all refuse it alike
    for arguments in (["--epochs", "x"], ["--device", "cuda"]):
        assert train.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_absurdly_many_digits_are_refused_in_a_short_line(digits, capsys):
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(Options)}
    numbers = [name for name, kind in kinds.items() if getattr(kind, "__qualname__", "").startswith("number")]
    assert {"epochs", "seed", "patience", "lr"} <= {*numbers}
    for name in numbers:
        assert train.main([f"--{name.replace('_', '-')}={'9' * digits}", "--schedule=cosine"]) == 2
        assert train.main([f"--device=cuda:{'9' * digits}"]) == 2
        assert all(len(line) < 240 for line in capsys.readouterr().err.splitlines())


FULL = """
import sys
from cli.command import command
from cli.messages import say
sys.exit(command("x.py")(lambda _: say("hello"))([]))
"""


def test_a_full_disk_behind_the_log_is_reported_only_once():
    # If it buffers, Python would try again at exit, complain in two lines of its own, and exit with 120.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words, pipe = [sys.executable, "-c", FULL], subprocess.PIPE
    with open("/dev/full", "w") as full:
        process = subprocess.run(words, cwd=ROOT, env=environment, stdout=full, stderr=pipe, text=True, check=False)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
