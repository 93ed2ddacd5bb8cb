"""SIGINT, SIGTERM and SIGUSR1 as `Interrupted`: raised at once, or between two steps while training.

It imports nothing large, so that a command can have its handlers before it imports torch.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from harness.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, pre-emption, Slurm's warning; Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
PAUSE, GRACE = 1.0, 20.0  # seconds between two looks for torchrun, and until a process that waits is ended

_deferring = False
_pending: Interrupted | None = None
_parent: int | None = None  # the process of torchrun, if that started this one


def end_at_once(prog: str) -> None:
    """Let SIGNALS end the process with one line until `handled`: for the seconds in which a command imports torch."""
    # Not by an exception: an import may take that for a fault of what it imports.
    _handle(lambda signum, frame: _exit(f"{prog}: error: ", Interrupted(signum)))
    watch_parent()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let SIGNALS raise Interrupted in the main thread; one that the process ignores (nohup, `&`) stays ignored."""
    global _pending
    _pending = None
    before = _handle(_receive)
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
    """Raise what a signal has left while deferred, and SIGTERM's end where torchrun, who would send it, has gone."""
    if _pending is not None:
        raise _pending
    if _parent not in (None, os.getppid()):
        raise _orphaned()


def watch_parent() -> None:
    """If torchrun started this process, let it end when torchrun does: by `check`, or where it waits for the others."""
    global _parent
    if _parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        _parent = os.getppid()
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.getppid() == _parent:
        time.sleep(PAUSE)
    time.sleep(GRACE)
    _exit("error: ", _orphaned())


def _orphaned() -> Interrupted:
    return Interrupted(signal.SIGTERM, "torchrun has ended")


def _exit(prefix: str, error: Interrupted) -> None:
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"{prefix}{error}\n".encode())
    os._exit(error.code)


def _handle(handler: Callable) -> dict:
    """Make `handler` that of SIGNALS, and return those before; other threads than the main one have none."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: former for signum, former in before.items() if former is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, handler)
    return before


def _receive(signum: int, frame: object) -> None:
    global _pending
    if not _deferring or _pending is not None:
        raise Interrupted(signum)
    _pending = Interrupted(signum)
