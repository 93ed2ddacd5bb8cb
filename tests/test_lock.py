"""One process at a time in a directory, where the system can tell; and a run where it cannot."""

import errno
import fcntl
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import train
from harness import lock
from harness.lock import Held, Lock, Unsupported

ME = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_lock_is_held_by_one_and_names_it_until_it_is_given_back(tmp_path):
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert first.holder() is None
    first.claim()
    for _ in range(2):  # the refused one has not wiped the name
        with pytest.raises(Held, match=ME):
            second.claim(patience=0.05)
        second.release()
        assert second.holder() == ME
    first.release()
    assert second.holder() is None
    second.claim(patience=0)
    second.release()


def look(path, until):
    while time.monotonic() < until:
        Lock(path).holder()


def test_who_only_looks_never_makes_a_claim_fail(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    context = multiprocessing.get_context("fork")
    lookers = [context.Process(target=look, args=(path, time.monotonic() + 2)) for _ in range(3)]
    for looker in lookers:
        looker.start()
    claims = 0
    while any(looker.is_alive() for looker in lookers):
        claimed = Lock(path)
        claimed.claim()
        claimed.release()
        claims += 1
    assert claims > 20
    assert [looker.exitcode for looker in lookers] == [0, 0, 0]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_on_a_file_system_without_locks_a_run_goes_on_and_says_what_it_cannot_promise(
    number, npz, tmp_path, capsys, monkeypatch
):
    def without(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "lock" in line]
    assert line.startswith(f"No locks in {tmp_path / 'run'} ({os.strerror(number)})")
    assert "cannot be promised" in line
    assert Lock(tmp_path / "run" / ".lock").holder() is None


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES, errno.EDEADLK])
def test_whichever_word_the_system_has_for_it_a_lock_that_is_held_is_held(number, tmp_path, monkeypatch):
    def held(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(Held, match="another process"):
        Lock(tmp_path / ".lock").claim(patience=0)


def test_a_lock_that_fails_is_not_taken_for_one_that_is_held(npz, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failing)
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
    assert f"--out {tmp_path / 'run'}: cannot write there (Input/output error)" in capsys.readouterr().err


def test_two_that_look_do_not_take_each_other_for_a_holder(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as who looks has it for a moment
        assert Lock(path).holder() is None


def test_a_lock_is_held_where_no_name_can_be_written(tmp_path, monkeypatch):
    opened = Path.open

    def full(path, *mode, **options):
        file = opened(path, *mode, **options)
        return file if mode == ("rb",) else Full(file)

    class Full:
        def __init__(self, file):
            self.file, self.close, self.fileno = file, file.close, file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def truncate(self, size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    first.claim()
    assert second.holder() == "another process"
    first.release()
    assert second.holder() is None


def test_after_a_run_its_directory_is_free_for_whoever_keeps_what_ended_it(npz, tmp_path, monkeypatch):
    def failing(*_):
        raise KeyboardInterrupt  # not one of ours: it comes out, with all that it holds

    monkeypatch.setattr(train, "fit", failing)
    with pytest.raises(KeyboardInterrupt) as kept:
        train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")])
    assert kept.tb is not None
    assert Lock(tmp_path / "run" / ".lock").holder() is None


class Msvcrt:
    """What Windows's module does, written with Unix's."""

    LK_NBLCK = 2

    def locking(self, descriptor, mode, count):
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == lock.FAR
        assert (mode, count) == (self.LK_NBLCK, 1)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_on_windows_a_byte_behind_the_name_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", Msvcrt())
    test_a_lock_is_held_by_one_and_names_it_until_it_is_given_back(tmp_path)


def test_without_either_module_nothing_is_locked_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", None)
    with pytest.raises(Unsupported, match="neither fcntl nor msvcrt"):
        Lock(tmp_path / ".lock").claim()


POOR = """
import ctypes, platform, signal, sys
sys.modules["fcntl"] = None  # an import of it fails
sys.path.insert(0, {root!r})
import torch  # it has its own ways with what is missing
del signal.SIGUSR1
def without(name, *_, **__):
    raise TypeError("no handle of the program itself")
ctypes.CDLL = without
platform.libc_ver = lambda *_: ("glibc", "2.36")
import compare, predict, sweep, train
code = train.main(sys.argv[1:]) or compare.main([sys.argv[-1], "--out", sys.argv[-1]])
sys.exit(code or sweep.main(["--seeds", "0", "--dry-run", "--", *sys.argv[1:3]]))
"""


def test_a_run_and_its_comparison_work_without_fcntl_sigusr1_and_the_program_s_own_library(npz, tmp_path):
    arguments = ["--data", npz, "--epochs", "1", "--threads", "1", "--quiet", "--out", tmp_path / "run"]
    process = subprocess.run(
        [sys.executable, "-c", POOR.format(root=str(ROOT)), *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "No locks in" in process.stdout
    assert (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "comparison.json").exists()


LONG = ["--epochs", "500", "--patience", "500", "--quiet"]


def wait_for(path, process):
    end = time.monotonic() + 60
    while not path.exists():
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.005)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("what", ["lock", "directory"])
def test_a_run_whose_directory_is_taken_away_ends_and_touches_nothing_of_the_next_one_s(what, start, npz, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    first = start(["--data", npz, *LONG, "--out", out], log)
    wait_for(out / "checkpoint.pt", first)
    if what == "lock":
        (out / ".lock").unlink()
    else:
        out.rename(tmp_path / "away")  # as if deleted, all at once
        assert train.main(["--data", str(npz), "--epochs", "1", "--seed", "9", "--out", str(out)]) == 0
        before = contents(out)
    first.join(60)
    assert first.exitcode == 1
    assert f"--out {out}: its .lock was taken away" in log.read_text().splitlines()[-1]
    if what == "directory":
        assert contents(out) == before
    assert not (out / "error.txt").exists()
