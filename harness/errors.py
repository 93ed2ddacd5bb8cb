"""Why a command ends before its time: one family of exceptions; `console.command` makes a line and a code of one."""

import contextlib
import pickle
import signal
from collections.abc import Iterator

GO_ON = "the epochs that were finished are kept, to go on: {again}"


class Failure(Exception):
    """A command cannot go on. The message names what is wrong; `advice` follows it, `code` is the exit code.

    In an advice `{again}` stands for the command that goes on with the run. A `shared` failure happens to all
    processes of a run alike: the first one says it.
    """

    code, advice, shared = 1, "", False


class BadInput(Failure):
    """A value, file or directory that the user named is wrong; the message names the remedy."""

    code = 2


class Unavailable(Failure):
    """CIFAR-10 is neither on disk nor reachable; the message names the ways on."""

    code = 3


class Diverged(Failure):
    """The loss is not finite."""

    advice, shared = "the epochs before are kept; try a smaller --lr in another --out", True


class CannotWrite(Failure):
    """A file could not be written; what stood in its place still stands."""

    advice = "what was finished before stands: make room there, then go on: {again}"


class ReaderGone(CannotWrite):
    """Nobody reads standard output any more, as behind `| head`: no fault of what only prints."""

    advice = GO_ON


class TakenAway(Failure):
    """The run's directory is no longer its own: nothing in it may be touched."""


class OutOfMemory(Failure):
    advice = "pass a smaller --batch-size"


class DeviceOutOfMemory(OutOfMemory):
    advice = "pass a smaller --batch-size, or --device cpu"


class DeviceFailed(Failure):
    advice = GO_ON


class Lost(Failure):
    """Another process of the run has ended, or does not answer."""

    advice = GO_ON  # not shared: it may be the first one that has ended


class FirstFailed(Failure):
    """The first process failed at what it does for all, and has said why."""

    shared = True


class Interrupted(BaseException):
    """A signal asked the process to stop, which no `except Exception` may keep it from.

    `code` is a shell's for the signal, SIGUSR1 counting as SIGTERM.
    """

    advice, shared = GO_ON, True

    def __init__(self, signum: int, why: str | None = None):
        super().__init__(why or f"interrupted by {signal.Signals(signum).name}")
        self.code = 130 if signum == signal.SIGINT else 143


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the CPU's memory was not enough; torch has no class of its own for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def cannot_read(path: object, error: Exception) -> BadInput:
    return BadInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or first_line(error):.200})")


@contextlib.contextmanager
def refusing(path: object, fault: str, remedy: str) -> Iterator[None]:
    """Make whatever goes wrong within the block a BadInput: bytes that are damaged or hostile can raise nearly all.

    What could not be read may well be without `fault`: then the reason is all that is said.
    """
    try:
        yield
    except BadInput:
        raise
    except pickle.UnpicklingError:
        raise BadInput(f"{path}: {fault} (it holds more than plain data, nothing of it was run); {remedy}") from None
    except Exception as error:
        if out_of_memory(error) or (isinstance(error, OSError) and error.errno):  # one of Pillow's own has no number
            raise cannot_read(path, error) from None
        raise BadInput(f"{path}: {fault} ({first_line(error):.200}); {remedy}") from None
