"""A lock that gives a run's directory to one process at a time, until that process ends, however it ends."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".holder"  # the second names the process that holds the first
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # the errors of a file system without locks


class InUse(Exception):
    """Another process is using the directory; the message names the process and its host."""


class DirectoryLock:
    """The lock on the directory `folder`, which must exist when it is claimed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = FileLock(folder / LOCK)

    def claim(self) -> None:
        """Hold the lock until `release`. Raises InUse, OSError, or NotImplementedError if there are no locks."""
        try:
            self.lock.acquire(timeout=1)  # readers hold it briefly
        except Timeout:
            raise InUse(_holder(self.folder)) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise NotImplementedError(error.strerror) from None
            raise
        with contextlib.suppress(OSError):  # on a full disk, the lock is held all the same
            (self.folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def release(self) -> None:
        """Release the lock; do nothing if it was not claimed."""
        if self.lock.is_locked:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER).unlink()
            self.lock.release()


def refuse_in_use(folder: Path) -> None:
    """Raise InUse if a process is using `folder`."""
    if not (folder / LOCK).exists():
        return
    with contextlib.suppress(OSError, NotImplementedError):
        try:
            with FileLock(folder / LOCK, timeout=0.2):  # other readers hold it briefly
                return
        except Timeout:
            raise InUse(_holder(folder)) from None


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / HOLDER).read_text(errors="replace") or "another process"
    return "another process"
