"""SIGINT, SIGTERM and SIGUSR1 as `Interrupted`: raised at once, or between two steps while training."""

import contextlib
import signal
from collections.abc import Iterator

from harness.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, pre-emption, Slurm's warning; Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

_deferring = False
_pending: Interrupted | None = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let SIGNALS raise Interrupted in the main thread; one that the process ignores (nohup, `&`) stays ignored."""
    global _pending
    _pending = None
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: handler for signum, handler in before.items() if handler is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, _receive)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keep a signal for the next `check`, or for the end of the block; a second one does not wait."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    check()


def check() -> None:
    """Raise what a signal has left while deferred."""
    if _pending is not None:
        raise _pending


def _receive(signum: int, frame: object) -> None:
    global _pending
    if not _deferring or _pending is not None:
        raise Interrupted(signum)
    _pending = Interrupted(signum)
