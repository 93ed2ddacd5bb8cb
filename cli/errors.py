"""Why a command ends early: a family of exceptions, each with an exit code and advice."""

import contextlib
import errno
import pickle
import signal
from collections.abc import Iterator

GO_ON = "to continue: {again}"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Failure(Exception):
    """A command cannot continue. The message names what is wrong; `advice` follows it, and `code` is the exit code.

    In `advice`, `{again}` stands for the command that continues the run. A `shared` failure happens in all processes of
    a run, and only the first one reports it.
    """

    code, advice, shared = 1, "", False


class BadInput(Failure):
    """A value, file or directory that the user named is wrong; the message names the remedy."""

    code = 2


class DirectoryTaken(BadInput):
    """The run's directory cannot be used for this run; the remedy is another one."""

    def __init__(self, fault: str):
        super().__init__(f"{fault}; pass another --out")


class Unavailable(Failure):
    """CIFAR-10 is neither on disk nor reachable; the message lists the alternatives."""

    code = 3


class Diverged(Failure):
    """The loss is not finite."""

    advice, shared = "try a smaller --lr in another --out", True


class CannotWrite(Failure):
    """`what` could not be written because of `error`; its earlier version is unchanged."""

    def __init__(self, what: object, error: OSError):
        super().__init__(f"cannot write {what} ({error.strerror})")
        remedy = "free some space there" if error.errno in FULL else "make it writable"
        self.advice = remedy + ", then continue: {again}"


class OutOfMemory(Failure):
    advice = "pass a smaller --batch-size or --image-size, or another --device"


class DeviceFailed(Failure):
    advice = (
        "run fewer at once on that device, or pass another --device, and leave out --compile, --tf32 and "
        "--mixed-precision if it happens again; " + GO_ON
    )


class Lost(Failure):
    """Another process of the run has ended or does not answer."""

    advice = GO_ON  # not shared: the process that has ended may be the first one


class Interrupted(BaseException):
    """A signal asked the process to stop; no `except Exception` may swallow it.

    `code` is a shell's exit code for the signal; SIGUSR1 counts as SIGTERM.
    """

    advice, shared = GO_ON, True

    def __init__(self, signum: int, more: str = ""):
        super().__init__(f"interrupted by {signal.Signals(signum).name}{more}")
        self.signum, self.code = signum, 130 if signum == signal.SIGINT else 143


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Return whether the CPU ran out of memory; torch has no exception class for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def cannot_read(path: object, error: Exception) -> BadInput:
    return BadInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or first_line(error):.200})")


@contextlib.contextmanager
def refusing(path: object, fault: str, remedy: str) -> Iterator[None]:
    """Turn any error within the block into BadInput: damaged files make their readers raise nearly anything.

    A file that cannot be read at all is reported as such, without `fault`, which may not apply.
    """
    try:
        yield
    except BadInput:
        raise
    except pickle.UnpicklingError:
        raise BadInput(
            f"{path}: {fault} (it is a pickle of more than plain data and was not loaded); {remedy}"
        ) from None
    except Exception as error:
        if out_of_memory(error) or (isinstance(error, OSError) and error.errno):  # Pillow's own errors have no errno
            raise cannot_read(path, error) from None
        raise BadInput(f"{path}: {fault} ({first_line(error):.200}); {remedy}") from None
