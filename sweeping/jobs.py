"""Run several trainings at once, each in a process: start them, restart them if they are killed, end them together.

Each command can be repeated: it resumes its run, or reports that it has finished. Each writes to a log in its run's
directory.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from cli.errors import BadInput, Interrupted
from cli.messages import complain, counted, say
from running import machine
from running.lock import InUse, refuse_in_use
from running.outcome import FINISHED, HISTORY, outcome

LOG = "sweep.log"
KILLED = (137, 143)  # exit codes after which a run is restarted
RESTARTS = 3  # at most, of one run
PAUSE = 0.2  # seconds between two checks of the processes


@dataclasses.dataclass(eq=False)
class Job:
    """One run: the command that starts or resumes it, and its outcome.

    It trains at most `epochs` epochs in the directory `out`, and starts when the job `after` is done.
    """

    name: str
    out: Path
    command: list[str]
    environment: dict[str, str]
    epochs: int
    after: "Job | None" = None
    process: subprocess.Popen | None = None
    accuracy: float | None = None  # on the test images, once it has finished
    fault: str | None = None  # once it has failed
    kills: int = 0
    waits: bool = False  # for the end of another process in its directory
    had_finished: bool = False  # when the process was started

    @property
    def log(self) -> Path:
        return self.out / LOG

    @property
    def done(self) -> bool:
        return self.accuracy is not None or self.fault is not None

    def trained(self) -> int:
        """Return the number of epochs trained so far."""
        with contextlib.suppress(OSError):
            return max(0, (self.out / HISTORY).read_bytes().count(b"\n") - 1)
        return 0

    def shell(self) -> str:
        """Return the command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])

    def start(self) -> None:
        """Start the process. If another one is using the directory, the job waits for its next turn."""
        try:
            refuse_in_use(self.out)
            self.had_finished = self._accuracy() is not None
            self.out.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab", buffering=0) as log:
                log.write(f"$ {self.shell()}\n".encode())
                self.process = subprocess.Popen(
                    self.command,
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # a terminal's Ctrl-C reaches only the sweep, which passes it on
                )
        except InUse as holder:
            if not self.waits:
                _say(f"{self.name}: {self.out} is in use by {holder}; waiting for its end")
            self.waits = True
        except OSError as error:
            self.fault = f"cannot start ({error})"

    def poll(self) -> None:
        """Record the outcome of the process if it has ended, or restart it if it was killed."""
        code = self.process.poll()
        if code is None:
            return
        code = 128 - code if code < 0 else code  # as a shell reports it
        self.process = None
        try:
            if code == 0:
                self._finish()
            elif code in KILLED and self.kills < RESTARTS:
                self.kills += 1
                _say(f"{self.name}: exited with code {code}; restarting ({self.kills} of {RESTARTS})")
                self.start()
            else:
                refuse_in_use(self.out)  # another process was faster, so this one was refused
                if code == BadInput.code and not self.had_finished:
                    self.accuracy = self._accuracy()  # that process may have finished the run in the meantime
                if self.accuracy is None:
                    self.fault = f"exit code {code}: {self._last_line()}"
        except InUse:
            self.waits = True
        except BadInput as error:
            self.fault = str(error)

    def _finish(self) -> None:
        end = outcome(self.out)
        if end.kind == FINISHED:
            self.accuracy = end.metrics["test_accuracy"]
        else:
            self.fault = f"has not finished ({end.reason})"

    def _accuracy(self) -> float | None:
        """Return the test accuracy of the run in the directory; None unless it has finished."""
        with contextlib.suppress(BadInput):
            end = outcome(self.out)
            if end.kind == FINISHED:
                return end.metrics["test_accuracy"]
        return None

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4096:].decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""


def places(device: torch.device, threads: int, at_once: int | None, per_gpu: int) -> tuple[list[str], int]:
    """Return the GPUs to use in turn, as CUDA_VISIBLE_DEVICES names them, and the number of runs at once."""
    gpus = []
    if device == torch.device("cuda"):  # without a number, unlike --device cuda:N
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible(listed) if listed else [str(index) for index in range(torch.cuda.device_count())]
    if device.type == "cuda":
        return gpus, at_once or max(1, len(gpus)) * per_gpu
    return gpus, at_once or max(1, machine.cores() // threads)


def visible(listed: str) -> list[str]:
    """Return the GPUs in a value of CUDA_VISIBLE_DEVICES, as CUDA reads it: up to the first that is not valid."""
    names = [name.strip() for name in listed.split(",")]
    return list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-[\w/-]+").fullmatch, names))


def one_gpu(device: torch.device) -> dict[str, str]:
    """Return the environment in which a process sees only the GPU `device`; empty for `cuda` without a number."""
    if device.index is None:
        return {}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible(listed)[device.index] if listed else str(device.index)}


def work(jobs: list[Job], slots: int, gpus: list[str]) -> None:
    """Run `jobs`, `slots` at once and on `gpus` in turn, until each has finished or failed.

    A signal is passed on to the runs, and `work` waits for them to end; a second one is passed on without waiting.
    """
    try:
        with tqdm(unit="epoch", disable=None, initial=sum(job.trained() for job in jobs)) as bar:
            while waiting := [job for job in jobs if not job.done]:
                for job in waiting:
                    _advance(job, jobs, slots, gpus)
                    if job.done:
                        _report(job, jobs)
                if not bar.disable:
                    _show(bar, jobs)
                time.sleep(PAUSE)
    except BaseException as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGTERM
        end(jobs, signum)
        if isinstance(error, Interrupted):
            raise Interrupted(signum, "; the same command continues") from None
        raise


def _advance(job: Job, jobs: list[Job], slots: int, gpus: list[str]) -> None:
    running = [other for other in jobs if other.process is not None]
    if job.process is not None:
        job.poll()
    elif job.after is not None and job.after.fault is not None:
        job.fault = f"not started, since {job.after.name} failed"
    elif len(running) < slots and (job.after is None or job.after.done):
        if gpus:
            used = Counter(other.environment["CUDA_VISIBLE_DEVICES"] for other in running)
            job.environment["CUDA_VISIBLE_DEVICES"] = min(gpus, key=lambda gpu: used[gpu])
        job.start()


def _report(job: Job, jobs: list[Job]) -> None:
    end = f"failed: {job.fault} ({job.log})" if job.fault else f"test accuracy {job.accuracy:.4f}, {job.out}"
    _say(f"[{sum(other.done for other in jobs)}/{len(jobs)}] {job.name}: {end}")


def _show(bar: tqdm, jobs: list[Job]) -> None:
    trained = {job: job.trained() for job in jobs}
    bar.total = sum(epochs if job.done else max(epochs, job.epochs) for job, epochs in trained.items())
    bar.n = sum(trained.values())
    bar.refresh()


def _say(line: str) -> None:
    with tqdm.external_write_mode():  # the bar makes room
        say(line)


def end(jobs: list[Job], signum: int) -> None:
    """Pass the signal on to each process, and wait for it to end; a second signal is passed on and ends the wait."""
    running = [job for job in jobs if job.process is not None]
    if running:
        complain(f"Waiting for {counted(len(running), 'run')} to end; interrupt again to exit without waiting.")
    try:
        for job in running:
            job.process.send_signal(signum)
        for job in running:
            job.process.wait()
    except Interrupted as again:
        for job in running:
            job.process.send_signal(again.signum)
        raise
