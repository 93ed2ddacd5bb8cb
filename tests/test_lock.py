"""A directory is for one process at a time where the system has locks; where it has none, runs still work."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from conftest import ROOT

import train
from running import lock
from running.lock import DirectoryLock, InUse, refuse_in_use

ME = f"process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize("kind", [filelock.FileLock, filelock.SoftFileLock], ids=["flock", "soft lock"])
def test_a_lock_has_one_holder_and_names_it_until_it_is_released(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "FileLock", kind)
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    refuse_in_use(tmp_path)
    first.claim()
    for _ in range(2):  # the refused one has not wiped the name
        with pytest.raises(InUse, match=ME):
            second.claim()
        second.release()
        with pytest.raises(InUse, match=ME):
            refuse_in_use(tmp_path)
    first.release()
    refuse_in_use(tmp_path)
    second.claim()
    second.release()


def look(folder, until):
    while time.monotonic() < until:
        with contextlib.suppress(InUse):
            refuse_in_use(folder)


def test_checking_a_lock_never_makes_a_claim_fail(tmp_path):
    (tmp_path / ".lock").touch()
    context = multiprocessing.get_context("fork")
    lookers = [context.Process(target=look, args=(tmp_path, time.monotonic() + 2)) for _ in range(3)]
    for looker in lookers:
        looker.start()
    claims = 0
    while any(looker.is_alive() for looker in lookers):
        claimed = DirectoryLock(tmp_path)
        claimed.claim()
        claimed.release()
        claims += 1
    assert claims > 20
    assert [looker.exitcode for looker in lookers] == [0, 0, 0]


def test_two_checks_of_a_lock_do_not_take_each_other_for_its_holder(tmp_path, monkeypatch):
    (tmp_path / ".lock").touch()
    other = (tmp_path / ".lock").open("rb")
    fcntl.flock(other, fcntl.LOCK_EX)  # as a process that checks holds it for a moment
    asleep = time.sleep

    def sleep(seconds):
        other.close()
        asleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    refuse_in_use(tmp_path)
    assert other.closed


def without_locks(monkeypatch, number):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", failing)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_on_a_file_system_without_locks_a_run_trains_with_a_warning(number, npz, tmp_path, capsys, monkeypatch):
    without_locks(monkeypatch, number)
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("No locks")]
    assert line.startswith(f"No locks in {tmp_path / 'run'} ({os.strerror(number)})")
    assert "make sure that no other process works there" in line
    refuse_in_use(tmp_path / "run")


def test_a_lock_that_fails_is_not_mistaken_for_one_that_is_held(npz, tmp_path, capsys, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
    assert f"--out {tmp_path / 'run'}: cannot write there (Input/output error)" in capsys.readouterr().err


def test_a_lock_is_held_even_if_the_name_of_its_holder_cannot_be_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    first = DirectoryLock(tmp_path)
    first.claim()
    with pytest.raises(InUse, match="another process"):
        refuse_in_use(tmp_path)
    first.release()
    refuse_in_use(tmp_path)


def test_after_a_run_its_directory_is_free_even_while_the_exception_that_ended_it_is_kept(npz, tmp_path, monkeypatch):
    def failing(*_):
        raise KeyboardInterrupt  # not one of ours: it propagates, with all that its traceback holds

    monkeypatch.setattr(train, "fit", failing)
    with pytest.raises(KeyboardInterrupt) as kept:
        train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")])
    assert kept.tb is not None
    refuse_in_use(tmp_path / "run")


POOR = """
import ctypes, platform, signal, sys
sys.modules["fcntl"] = None  # an import of it fails
sys.path.insert(0, {root!r})
import torch  # it copes with what is missing in its own way
del signal.SIGUSR1
def without(name, *_, **__):
    raise TypeError("no handle of the program itself")
ctypes.CDLL = without
platform.libc_ver = lambda *_: ("glibc", "2.36")
import compare, predict, sweep, train
code = train.main(sys.argv[1:]) or compare.main([sys.argv[-1], "--out", sys.argv[-1]])
sys.exit(code or sweep.main(["--seeds", "0", "--dry-run", "--", *sys.argv[1:3]]))
"""


def test_a_run_and_its_comparison_work_without_fcntl_sigusr1_and_ctypes_cdll(npz, tmp_path):
    arguments = ["--data", npz, "--epochs", "1", "--threads", "1", "--quiet", "--out", tmp_path / "run"]
    process = subprocess.run(
        [sys.executable, "-c", POOR.format(root=str(ROOT)), *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "comparison.json").exists()
    refuse_in_use(tmp_path / "run")
