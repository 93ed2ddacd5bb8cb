"""Trainings as processes, several at once: started, watched, started again where they were killed, and ended together.

Each writes to a log in its run's directory. The log is locked by whoever writes to it, so that a run which outlives
the process that started it is found again.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from harness import files, lock, signals
from harness.console import complain, say
from harness.errors import BadInput, Interrupted
from harness.run import HISTORY, METRICS

LOG, PROCESS = "sweep.log", "process "
KILLED, RESTARTS = (137, 143), 3  # exit codes after which a run is started again, and how often
PAUSE = 0.2  # seconds between two looks at the processes


class Job:
    """One run: the command that starts it or goes on with it, and what became of it.

    `look` returns the metrics of the run in the directory `out` if it has finished; it raises BadInput where the
    command would be refused, and lock.Held where another process is at work. `clear` is called before each start, the
    job begins when the one `after` which it comes has finished, and it trains `most` epochs at most.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        command: list[str],
        look: Callable[[], dict | None],
        most: int,
        environment: dict[str, str],
        clear: Callable[[], None] = lambda: None,
        after: "Job | None" = None,
    ):
        self.name, self.out, self.command, self.log = name, out, command, out / LOG
        self.look, self.clear, self.after = look, clear, after
        self.most, self.environment = most, environment
        self.process: subprocess.Popen | None = None
        self.accuracy: float | None = None  # on the test images, when it has finished
        self.fault: str | None = None  # when it has failed
        self.kills, self.waits = 0, False

    @property
    def over(self) -> bool:
        return self.accuracy is not None or self.fault is not None

    def epochs(self) -> int:
        """How many epochs are trained."""
        with contextlib.suppress(OSError):
            return max(0, (self.out / HISTORY).read_bytes().count(b"\n") - 1)
        return 0

    def shell(self) -> str:
        """The command as a line for a shell."""
        return " ".join(
            [*(f"{name}={shlex.quote(value)}" for name, value in self.environment.items()), shlex.join(self.command)]
        )

    def start(self) -> None:
        """Start the process; or take note that the run has finished, that it cannot start, or that it must wait."""
        try:
            self._start()
        except lock.Held as holder:
            if not self.waits:
                self.waits = True
                _say(f"{self.name}: {self.out} is in use by {holder}; waiting for its end")
        except BadInput as error:
            self.fault = str(error)
        except OSError as error:
            self.fault = f"cannot start ({error})"

    def _start(self) -> None:
        if not self.log.exists():  # a log would make the directory look like one in which a sweep was at work
            self.look()
        self.out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(self.log.open("ab", buffering=0))
            with contextlib.suppress(lock.Unsupported):
                if not lock.take(self.file):
                    raise lock.Held("another sweep, or by a run of one that was killed")
            if not self.take_note():
                self._begin()
                stack.pop_all()  # the log stays open, and so locked

    def take_note(self) -> bool:
        """Ask `look` if it has finished, and keep the accuracy; not before the job `after` which it comes is over."""
        metrics = self.look()
        if self.after is not None and not self.after.over:
            return False
        self.accuracy = metrics and metrics["test_accuracy"]
        return metrics is not None

    def _begin(self) -> None:
        self.clear()
        self.file.write(f"$ {self.shell()}\n".encode())
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that a terminal's Ctrl-C reaches this process alone, which hands it on
        )
        with contextlib.suppress(OSError):  # a full disk: the process, which runs, will tell
            self.file.write(f"{PROCESS}{self.process.pid}\n".encode())

    def poll(self) -> None:
        """Take note of the end of the process, if it has ended, or start it again."""
        code = self.process.poll()
        if code is None:
            return
        code = 128 - code if code < 0 else code  # as a shell has it
        self.process = None
        try:
            if code == 0:
                self.accuracy = files.read_json(self.out / METRICS)["test_accuracy"]
            elif code in KILLED and self.kills < RESTARTS:
                self.kills += 1
                _say(f"{self.name}: ended with {code}, started again ({self.kills} of {RESTARTS} times)")
                self._begin()
            else:
                self.fault = f"exit code {code}: {self._last_line()}"
        except (BadInput, OSError) as error:
            self.fault = str(error)
        if self.process is None:
            self.file.close()

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4096:].decode(errors="replace").splitlines()
            said = (line.strip() for line in reversed(lines) if not line.startswith(PROCESS))
            return next(filter(None, said), "")
        return ""


def places(device: torch.device, threads: int, at_once: int | None, per_gpu: int) -> tuple[list[str], int]:
    """Return the GPUs to be used in turn, as CUDA_VISIBLE_DEVICES names them, and how many runs go at once."""
    gpus = []
    if device == torch.device("cuda"):  # no number: not the one that --device cuda:N names
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    if device.type == "cuda":
        return gpus, at_once or max(1, len(gpus)) * per_gpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return gpus, at_once or max(1, cores // threads)


def one_gpu(device: torch.device) -> dict[str, str]:
    """The environment of a process that is to see no GPU but `device`; nothing for a `cuda` without a number."""
    if device.index is None:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": named.split(",")[device.index] if named else str(device.index)}


def work(jobs: list[Job], slots: int, gpus: list[str]) -> None:
    """Run `jobs`, `slots` at once and on `gpus` in turn, until each has finished or failed.

    A signal is handed on: each run ends after its step, then this raises Interrupted. A second one does not wait.
    """
    try:
        with signals.deferred(), tqdm(unit="epoch", disable=None, initial=sum(job.epochs() for job in jobs)) as bar:
            while left := [job for job in jobs if not job.over]:
                for job in left:
                    _advance(job, jobs, slots, gpus)
                    if job.over:
                        _report(job, jobs)
                if not bar.disable:
                    _show(bar, jobs)
                signals.check()
                time.sleep(PAUSE)
    except BaseException as error:
        end(jobs)
        if isinstance(error, Interrupted):
            signum = signal.SIGINT if error.code == 130 else signal.SIGTERM
            raise Interrupted(signum, f"{error}; the same command goes on") from None
        raise


def _advance(job: Job, jobs: list[Job], slots: int, gpus: list[str]) -> None:
    running = [other for other in jobs if other.process is not None]
    if job.process is not None:
        job.poll()
    elif job.after is not None and job.after.fault is not None:
        job.fault = f"not started, since {job.after.name} failed"
    elif len(running) < slots and (job.after is None or job.after.over):
        if gpus:
            taken = Counter(other.environment["CUDA_VISIBLE_DEVICES"] for other in running)
            job.environment["CUDA_VISIBLE_DEVICES"] = min(gpus, key=lambda gpu: taken[gpu])
        job.start()


def _report(job: Job, jobs: list[Job]) -> None:
    ended = f"failed, {job.log}" if job.fault else f"{job.accuracy:.4f}, {job.out}"
    _say(f"[{sum(other.over for other in jobs)}/{len(jobs)}] {job.name}: {ended}")


def _show(bar: tqdm, jobs: list[Job]) -> None:
    trained = {job: job.epochs() for job in jobs}
    bar.total = sum(epochs if job.over else max(epochs, job.most) for job, epochs in trained.items())
    bar.n = sum(trained.values())
    bar.refresh()


def _say(line: str) -> None:
    with tqdm.external_write_mode():  # the bar makes room
        say(line)


def end(jobs: list[Job]) -> None:
    """Ask each process to end, and wait for that; a signal meanwhile asks once more, and is not waited for."""
    running = [job for job in jobs if job.process is not None]
    if running:
        complain(f"Waiting for {len(running)} runs to end after their step; a second signal does not wait.")
    try:
        for job in running:
            job.process.terminate()
        while any(job.process.poll() is None for job in running):  # in `wait` a signal may go unseen
            time.sleep(PAUSE)
    except Interrupted:
        for job in running:
            job.process.terminate()
        raise
    finally:
        for job in running:
            job.file.close()
