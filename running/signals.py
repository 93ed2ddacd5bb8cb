"""SIGINT, SIGTERM and SIGUSR1 end a command at once: every file of a run is complete at any moment."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from cli.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, pre-emption, Slurm's warning; Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
PAUSE = 1.0  # seconds between two checks for torchrun


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Make the signals raise Interrupted within the block; signals that are ignored (nohup, `&`) stay ignored.

    The previous handlers are restored afterwards. Outside the main thread, the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: handler for signum, handler in before.items() if handler is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, _interrupt)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def end_with_parent() -> None:
    """Send this process SIGTERM when its parent, torchrun, has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted(signum)
