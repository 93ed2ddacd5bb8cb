"""A run's directory: which process may use it, and in which order its files are written."""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from cli.errors import BadInput, DirectoryTaken, refusing
from cli.messages import say
from running import checkpoint, distributed, files, history, machine
from running.code import TRAIN
from running.lock import DirectoryLock, InUse, refuse_in_use
from running.outcome import (
    ALL_EPOCHS,
    BEST_WEIGHTS,
    CHECKPOINT,
    CONFIG,
    EMPTY,
    ERROR,
    FILES,
    FINISHED,
    HISTORY,
    INITIAL_WEIGHTS,
    METRICS,
    WEIGHTS,
    outcome,
    program_of,
)

RECORDED = ("device_name", "cpu_capability", "threads", "processes", "variables", "code_sha256", "git_commit")


class Settings(Protocol):
    """The options that a run's directory uses."""

    out: Path
    resume: bool
    epochs: int
    dtype: str
    init_weights: Path | None

    def differences(self, config: dict) -> list[str]:
        """Name the differences that prevent these options from resuming the run that wrote `config`."""


class Run:
    """One training in the directory `settings.out`. Only the first process writes and prints.

    Call, within `claimed`: `finished`; if it returns None, `begin`, `resume`, `keep` after each epoch, `finish`.
    """

    def __init__(self, settings: Settings):
        self.settings, self.out = settings, settings.out
        self.lock = DirectoryLock(self.out)

    # --- claiming the directory ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Claim the directory for this process within the block; an error that ends the block is written to error.txt.

        Raises BadInput if it holds a run and `--resume` was not given, or if another process is using it.
        """
        distributed.first(self._claim)
        try:
            yield
        except BadInput:  # bad input changes no file
            raise
        except BaseException as error:
            with contextlib.suppress(Exception):  # on a full disk, stderr still has the reason
                self._write(files.write_bytes, ERROR, "".join(traceback.format_exception_only(error)).encode())
            raise
        finally:
            if distributed.rank() == 0:
                self.lock.release()

    def _claim(self) -> None:
        self.refuse_if_taken()  # before a folder or a lock is created
        try:
            files.make_folder(self.out)
            self.lock.claim()
        except InUse as holder:
            raise self._in_use(holder) from None
        except NotImplementedError as error:
            say(f"No locks in {self.out} ({error}): make sure that no other process works there.")
        except OSError as error:
            raise self._refusal(f"cannot write there ({error.strerror})") from None
        try:
            self._refuse_if_there_is_a_run()  # another process may have written one there meanwhile
        except BadInput:
            self.lock.release()
            raise
        files.remove_partial(self.out, (*FILES, ERROR))

    def refuse_if_taken(self) -> None:
        """Raise BadInput if another process is using the directory, or if it holds a run without `--resume`."""
        try:
            refuse_in_use(self.out)
        except InUse as holder:
            raise self._in_use(holder) from None
        except OSError as error:
            raise self._refusal(f"cannot write there ({error.strerror})") from None
        self._refuse_if_there_is_a_run()

    def _refuse_if_there_is_a_run(self) -> None:
        try:
            present = [name for name in FILES if (self.out / name).exists()]
        except OSError as error:
            raise self._refusal(f"cannot be read ({error.strerror})") from None
        if present and not self.settings.resume:
            raise BadInput(
                f"--out {self.out}: already holds a run ({', '.join(present)}); "
                "resume it with --resume, pass another --out or --seed, or delete that folder first"
            )

    def _in_use(self, holder: InUse) -> DirectoryTaken:
        return self._refusal(f"in use by {holder}; wait until that is done")

    def _refusal(self, reason: str) -> DirectoryTaken:
        return DirectoryTaken(f"--out {self.out}: {reason}")

    def finished(self, data_sha256: str | None) -> dict | None:
        """Return the metrics of the run in the directory if it has finished, else None.

        Raises BadInput if these settings, or data with this hash (None: unavailable), cannot resume the run there.
        """
        return distributed.first(lambda: self._finished(data_sha256))

    def _finished(self, data_sha256: str | None) -> dict | None:
        end = outcome(self.out)
        if end.kind == EMPTY:
            return None
        if not end.config:
            raise DirectoryTaken(f"{self.out / CONFIG}: missing, so the run there cannot be identified")
        if program_of(end.config) != TRAIN:
            raise DirectoryTaken(f"{self.out / CONFIG}: not written by {TRAIN}")
        different = self.settings.differences(end.config)
        if data_sha256 not in (None, end.config.get("data_sha256")):
            different.append(f"other images or labels than {end.config['flags'].get('data')!r:.200} had")
        if different:
            raise self._refusal(f"its run cannot be resumed with {', '.join(different)}")
        # A missing history and missing weights are recreated from the checkpoint, if there is one.
        made = all((self.out / name).exists() for name in (HISTORY, WEIGHTS, BEST_WEIGHTS))
        whole = made or not (self.out / CHECKPOINT).exists()
        if end.kind == FINISHED and whole and not self._goes_on(end.metrics):
            self._check_start_and_epochs(end.metrics.get("initial_weights"), end.metrics["epochs"])
            return end.metrics
        # The checkpoint is written before these files: without it, they are not from an interrupted run.
        later = any((self.out / name).exists() for name in (HISTORY, WEIGHTS, METRICS))
        if later and not (self.out / CHECKPOINT).exists():
            raise self._refusal(f"no {CHECKPOINT} in it, so its run cannot be resumed")
        return None

    def _goes_on(self, metrics: dict) -> bool:
        return metrics["stopped"] == ALL_EPOCHS and metrics["epochs"] < self.settings.epochs

    # --- training -----------------------------------------------------------------------------------------------------

    def begin(self, config: dict, initial_weights: list[np.ndarray], to_keras: Callable) -> None:
        """Set the content of config.json and the weights that the run starts from.

        `to_keras` returns a network's weights in Keras's order.
        """
        self.config = config
        self.initial_weights = initial_weights
        self.to_keras = to_keras
        part = {
            "after_epoch": 0,
            "device": config["flags"]["device"].partition(":")[0],
            "dtype": self.settings.dtype,
            **{name: config[name] for name in RECORDED},
            **config["versions"],
        }
        self.record = {
            "parts": [part],
            "bits_changed": [],
            "initial_weights": files.hash_of(initial_weights),
            "flags": config["flags"],
            "not_default": config["not_default"],
            "data_sha256": config["data_sha256"],
        }

    def resume(self, state: dict) -> None:
        """Load checkpoint.pt, if it exists, into the parts of `state`; then write the files that need no further epoch.

        `state` has model, best (the network with the best weights), optimizer and the callbacks, including `history`.
        Raises BadInput, without changing a file, if the checkpoint is damaged or from a different run.
        """
        path = self.out / CHECKPOINT
        saved = distributed.first(lambda: self._read_checkpoint(path, state))
        if saved is not None:
            checkpoint.load(path, saved, state)
            self._take_up(saved["run"], len(state["history"]))
        self._write(files.write_json, CONFIG, self.config | {"parts": self.record["parts"]})
        self._write(Path.unlink, ERROR, True)  # if it is there
        if saved is None:
            self._write(files.write_arrays, INITIAL_WEIGHTS, self.initial_weights)
        else:  # the previous process may have ended after its checkpoint, before these
            self._write_history_and_best(state, improved=True)

    def _read_checkpoint(self, path: Path, state: dict) -> dict | None:
        if not path.exists():
            return None
        saved = checkpoint.read(path, state)
        with checkpoint.refusing_checkpoint(path):
            run, epochs = saved["run"], len(saved["history"]["logs"])
            different = self.settings.differences(run)
            if run["data_sha256"] != self.record["data_sha256"]:
                different.append("other images or labels")
        started = self.out / INITIAL_WEIGHTS
        if started.exists():
            arrays = files.read_npz("--out", started)
            if files.hash_of(list(arrays.values())) != run["initial_weights"]:
                different.append(f"other weights at its start than {INITIAL_WEIGHTS}")
        if different:
            raise DirectoryTaken(f"{path}: belongs to another run ({', '.join(different)})")
        self._check_start_and_epochs(run["initial_weights"], epochs)
        return saved

    def goes_on_without(self, start: Path | None) -> bool:
        """Return whether the initial weights `start` are missing, but the run can be resumed without them."""
        here = start is None or os.path.exists(start)
        begun = any(os.path.exists(self.out / name) for name in (CHECKPOINT, METRICS))
        return self.settings.resume and not here and begun

    def _check_start_and_epochs(self, started_from: str | None, trained: int) -> None:
        """Raise BadInput if the run has more epochs than --epochs, or did not start from --init-weights."""
        if trained > self.settings.epochs:
            raise BadInput(f"--epochs {self.settings.epochs}: {trained} are already trained; pass {trained} or more")
        given = self.settings.init_weights
        if given is None or not os.path.exists(given):
            return
        arrays = files.read_npz("--init-weights", given)
        fault = f"not the weights that the run in {self.out} started from"
        with refusing(f"--init-weights {given}", fault, "pass those or another --out"):
            ordered = [arrays[f"arr_{number}"].astype(self.settings.dtype) for number in range(len(arrays))]
            if files.hash_of(ordered) != started_from:
                raise ValueError("another hash")

    def _take_up(self, saved: dict, epoch: int) -> None:
        """Continue the saved run's record, and print what has changed since."""
        say(f"Resuming after epoch {epoch}.")
        before, now = saved["parts"][-1], self.record["parts"][-1] | {"after_epoch": epoch}
        self.record = saved | {"parts": [*saved["parts"], now]}
        changes = ", ".join(machine.changes(before, now))
        if changes:
            self.record["bits_changed"] = [*self.record["bits_changed"], f"after epoch {epoch}: {changes}"]
            say(f"Changed since then: {changes}. Results may differ from those of an uninterrupted run.")

    def keep(self, state: dict, improved: bool) -> None:
        """Write the files of an epoch; `improved` means that it is the best so far."""
        # The checkpoint first: the other files can be recreated from it if the process ends before writing them.
        self._write(checkpoint.write, CHECKPOINT, state, self.record)
        self._write_history_and_best(state, improved)

    def _write_history_and_best(self, state: dict, improved: bool) -> None:
        self._write(history.write, HISTORY, state["history"].logs)
        if improved:
            self._write(files.write_weights, WEIGHTS, state["best"].state_dict())
            self._write(files.write_arrays, BEST_WEIGHTS, self.to_keras(state["best"]))

    def finish(self, metrics: dict, pictures: dict[str, Callable[[], bytes]]) -> None:
        """Write metrics.json, which marks the end of training, and only then draw `pictures`, by file name."""
        for name in pictures:  # from an earlier end
            self._write(Path.unlink, name, True)
        self._write(files.write_json, METRICS, metrics)
        self.draw(pictures)

    def draw(self, pictures: dict[str, Callable[[], bytes]]) -> None:
        """Draw the `pictures` that are missing from the finished run."""
        for name, draw in pictures.items():
            if not (self.out / name).exists():
                self._write(files.write_picture, name, draw)
        self._write(Path.unlink, ERROR, True)  # the previous process may have ended after metrics.json

    def _write(self, write: Callable, name: str, *content: object) -> None:
        """Call `write(path, *content)` for the file `name`, in the first process only."""
        if distributed.rank() == 0:
            write(self.out / name, *content)
