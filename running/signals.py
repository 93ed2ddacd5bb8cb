"""SIGINT, SIGTERM and SIGUSR1 end a command where it stands: every file of a run is whole at any moment."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from cli.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, pre-emption, Slurm's warning; Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
PAUSE = 1.0  # seconds between two looks for torchrun


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let the signals raise Interrupted within the block; those that are ignored (nohup, `&`) stay ignored.

    Afterwards the handlers are those from before. Outside the main thread the block changes nothing.
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
    """Let this process end by SIGTERM when the one that started it, torchrun's, has gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted(signum)
