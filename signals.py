"""SIGINT, SIGTERM and SIGUSR1 as one exception: raised at once, or between two steps while training."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, pre-emption, Slurm's warning

_deferring = False
_pending: "Interrupted | None" = None


class Interrupted(BaseException):
    """The process was asked to stop; `exit_code` is a shell's for the signal, SIGUSR1 counting as SIGTERM."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 130 if signum == signal.SIGINT else 143


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
