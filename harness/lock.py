"""A lock on a file, for one process at a time; it is free again when its holder ends, however that ends.

`flock` on Unix, a byte far behind the end on Windows. The holder writes its name into the file. Who only looks has the
lock for a moment, so that a claim is repeated for a second before it is given up.
"""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None

LOCK = ".lock"  # its name in a run's directory
PAUSE = 0.01  # seconds between two tries
FAR = 1 << 30  # bytes: Windows lets nobody read what is locked
BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
NOT_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Held(Exception):
    """Another process holds the lock; the message is what it wrote about itself."""


class Unsupported(Exception):
    """There are no locks on this file system; the message is the reason."""


class Lock:
    """The lock on the file at `path`."""

    def __init__(self, path: Path):
        self.path = path
        self.file: BinaryIO | None = None

    def holder(self) -> str | None:
        """Return what the process that holds it wrote; None if nobody holds it, as far as one can see."""
        if not self.path.exists():
            return None
        with self.path.open("rb+" if msvcrt else "rb") as file, contextlib.suppress(Unsupported):
            return None if take(file, shared=True) else _name(file)
        return None

    def claim(self, patience: float = 1.0) -> None:
        """Hold it until `release`. Raises Held if another holds it for `patience` seconds, Unsupported, OSError."""
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.path.open("ab+", buffering=0))
            end = time.monotonic() + patience
            while not take(file):
                if time.monotonic() >= end:
                    raise Held(_name(file))
                time.sleep(PAUSE)
            stack.pop_all()  # it stays open, and so locked
        self.file = file
        with contextlib.suppress(OSError):  # held it is on a full disk too
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def still_there(self) -> bool:
        """Tell whether the file that is locked still lies at the path; of no use where nothing could be locked."""
        try:
            return self.file is None or os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Give it back; nothing if it was never claimed."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.truncate(0)
            self.file.close()


def take(file: BinaryIO, shared: bool = False) -> bool:
    """Lock `file` until it is closed, on Unix by whoever inherits it too; return False if another process has it.

    Raises Unsupported.
    """
    try:
        if fcntl:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif msvcrt:
            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            raise Unsupported("this Python has neither fcntl nor msvcrt")
    except OSError as error:
        if error.errno in NOT_HERE:
            raise Unsupported(error.strerror) from None
        if error.errno in BUSY:
            return False
        raise
    return True


def _name(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace") or "another process"
