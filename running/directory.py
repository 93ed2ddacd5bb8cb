"""A run's directory: who may work in it, and in which order its files are written."""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from cli.errors import BadInput, refusing
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
    """What a run's directory must know of the options."""

    out: Path
    resume: bool
    epochs: int
    dtype: str
    init_weights: Path | None

    def differences(self, config: dict) -> list[str]:
        """Name what keeps a run with these options from going on with the run that wrote `config`."""


class Run:
    """One training in the directory `settings.out`. Only the first process writes and prints.

    In order: within `claimed`, `finished`; unless it has: `resume`, `keep` after each epoch, `finish`.
    """

    def __init__(self, settings: Settings):
        self.settings, self.out = settings, settings.out
        self.lock = DirectoryLock(self.out)

    # --- whose is the directory? --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the directory this process's own until the block ends; what ends the block early is left in error.txt.

        Raises BadInput if it holds a run and none is to be resumed, or another process is at work in it.
        """
        distributed.first(self._claim)
        try:
            yield
        except BadInput:  # bad input changes no file
            raise
        except BaseException as error:
            with contextlib.suppress(Exception):  # a full disk: stderr has the reason all the same
                self._write(files.write_bytes, ERROR, "".join(traceback.format_exception_only(error)).encode())
            raise
        finally:
            if distributed.rank() == 0:
                self.lock.release()

    def _claim(self) -> None:
        self.refuse_if_taken()  # before a folder or a lock is made
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
            self._refuse_if_there_is_a_run()  # another process may have been at work there meanwhile
        except BadInput:
            self.lock.release()
            raise
        files.remove_partial(self.out, (*FILES, ERROR))

    def refuse_if_taken(self) -> None:
        """Raise BadInput if another process is at work there, or there is a run and none is to be resumed."""
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
            raise self._refusal(f"cannot be looked at ({error.strerror})") from None
        if present and not self.settings.resume:
            raise BadInput(
                f"--out {self.out}: already holds a run ({', '.join(present)}); "
                "resume it with --resume, pass another --out or --seed, or delete that folder first"
            )

    def _in_use(self, holder: InUse) -> BadInput:
        return self._refusal(f"in use by {holder}; wait until that is done")

    def _refusal(self, reason: str) -> BadInput:
        return BadInput(f"--out {self.out}: {reason}; pass another --out")

    def finished(self, data_sha256: str | None) -> dict | None:
        """Return the metrics of the run in the directory if it has finished.

        Raises BadInput unless a run with these settings, on data with this hash (None: they are gone), can go on there.
        """
        return distributed.first(lambda: self._finished(data_sha256))

    def _finished(self, data_sha256: str | None) -> dict | None:
        end = outcome(self.out)
        if end.kind == EMPTY:
            return None
        if not end.config:
            raise BadInput(f"{self.out / CONFIG}: missing, so what the run there was is not known; pass another --out")
        if program_of(end.config) != TRAIN:
            raise BadInput(f"{self.out / CONFIG}: not written by {TRAIN}; pass another --out")
        different = self.settings.differences(end.config)
        if data_sha256 not in (None, end.config.get("data_sha256")):
            different.append(f"other images or labels than {end.config['flags'].get('data')!r:.200} had")
        if different:
            raise self._refusal(f"its run cannot be resumed with {', '.join(different)}")
        # History and weights are made again as a picture is, from the checkpoint, while there is one.
        made = all((self.out / name).exists() for name in (HISTORY, WEIGHTS, BEST_WEIGHTS))
        whole = made or not (self.out / CHECKPOINT).exists()
        if end.kind == FINISHED and whole and not self._goes_on(end.metrics):
            self._check_start_and_epochs(end.metrics.get("initial_weights"), end.metrics["epochs"])
            return end.metrics
        # The checkpoint is written before these, so without it they are not from a run that broke off.
        later = any((self.out / name).exists() for name in (HISTORY, WEIGHTS, METRICS))
        if later and not (self.out / CHECKPOINT).exists():
            raise self._refusal(f"no {CHECKPOINT} in it, so its run cannot be resumed")
        return None

    def _goes_on(self, metrics: dict) -> bool:
        return metrics["stopped"] == ALL_EPOCHS and metrics["epochs"] < self.settings.epochs

    # --- at work ------------------------------------------------------------------------------------------------------

    def begin(self, config: dict, initial_weights: list[np.ndarray], to_keras: Callable) -> None:
        """Take what the run is: the content of config.json, and what it starts from.

        `to_keras` gives a network's weights as Keras orders them.
        """
        self.config, self.initial_weights, self.to_keras = config, initial_weights, to_keras
        part = {"after_epoch": 0, "device": config["flags"]["device"].partition(":")[0], "dtype": self.settings.dtype}
        part |= {name: config[name] for name in RECORDED}
        self.record = {
            "parts": [part | config["versions"]],
            "bits_changed": [],
            "initial_weights": files.hash_of(initial_weights),
            "flags": config["flags"],
            "not_default": config["not_default"],
            "data_sha256": config["data_sha256"],
        }

    def resume(self, state: dict) -> None:
        """Load checkpoint.pt, if there is one, into the parts of `state`, then write what is known before an epoch.

        `state` has model, best (the network with the best weights), optimizer and the callbacks, `history` among them.
        Raises BadInput, with no file changed, for a checkpoint that is not of such a run.
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
        else:  # the process before may have ended between its checkpoint and these
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
            raise BadInput(f"{path}: belongs to another run ({', '.join(different)}); pass another --out")
        self._check_start_and_epochs(run["initial_weights"], epochs)
        return saved

    def goes_on_without(self, start: Path | None) -> bool:
        """Tell whether `start`, the weights that the run began with, are gone but its directory has all it needs."""
        here = start is None or os.path.exists(start)
        begun = any(os.path.exists(self.out / name) for name in (CHECKPOINT, METRICS))
        return self.settings.resume and not here and begun

    def _check_start_and_epochs(self, started_from: str | None, trained: int) -> None:
        """Raise BadInput if more is trained than --epochs, or --init-weights has not what the run started from."""
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
        """Continue the record of the run that was saved, and say what has changed since."""
        say(f"Resuming after epoch {epoch}.")
        before, now = saved["parts"][-1], self.record["parts"][-1] | {"after_epoch": epoch}
        self.record = saved | {"parts": [*saved["parts"], now]}
        changes = ", ".join(machine.changes(before, now))
        if changes:
            self.record["bits_changed"] = [*self.record["bits_changed"], f"after epoch {epoch}: {changes}"]
            say(f"Changed since then: {changes}. Results may differ from those of an uninterrupted run.")

    def keep(self, state: dict, improved: bool) -> None:
        """Write what an epoch has left; `improved` tells that it was the best one so far."""
        # The checkpoint first: the others can be made from it, should the process end before they are written.
        self._write(checkpoint.write, CHECKPOINT, state, self.record)
        self._write_history_and_best(state, improved)

    def _write_history_and_best(self, state: dict, improved: bool) -> None:
        self._write(history.write, HISTORY, state["history"].logs)
        if improved:
            self._write(files.write_weights, WEIGHTS, state["best"].state_dict())
            self._write(files.write_arrays, BEST_WEIGHTS, self.to_keras(state["best"]))

    def finish(self, metrics: dict, pictures: dict[str, Callable[[], bytes]]) -> None:
        """Write metrics.json, which says that training is over, and only then draw `pictures`, by name of the file."""
        for name in pictures:  # an earlier end's
            self._write(Path.unlink, name, True)
        self._write(files.write_json, METRICS, metrics)
        self.draw(pictures)

    def draw(self, pictures: dict[str, Callable[[], bytes]]) -> None:
        """Draw those of `pictures` that the finished run lacks."""
        for name, draw in pictures.items():
            if not (self.out / name).exists():
                self._write(files.write_picture, name, draw)
        self._write(Path.unlink, ERROR, True)  # the process before may have ended after metrics.json

    def _write(self, write: Callable, name: str, *content: object) -> None:
        """Let the first process call `write(path, *content)` for the file `name`."""
        if distributed.rank() == 0:
            write(self.out / name, *content)
