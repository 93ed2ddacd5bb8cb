"""A run's directory: who may work in it, what it holds, and in which order that is written."""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import nn

from harness import checkpoint, distributed, environment, files, histories
from harness.console import say
from harness.errors import BadInput, CannotWrite, TakenAway, refusing
from harness.histories import CONFIG, HISTORY, METRICS
from harness.lock import LOCK, Held, Lock, Unsupported

WEIGHTS, CURVES, CONFUSION = "best.pt", "curves.png", "confusion.png"
INITIAL_WEIGHTS, BEST_WEIGHTS = "initial_weights.npz", "best_weights.npz"  # as Keras's get_weights() orders them
CHECKPOINT, ERROR = "checkpoint.pt", "error.txt"
FILES = (CONFIG, HISTORY, METRICS, WEIGHTS, INITIAL_WEIGHTS, BEST_WEIGHTS, CURVES, CONFUSION, CHECKPOINT, ERROR)
EARLY_STOPPING, ALL_EPOCHS, STOPPED = "early stopping", "all epochs used", "stopped"


class Run:
    """One training, and the directory `options.out` that is its own. Only the first process writes and prints.

    The order is: `look`; within `claimed`, unless it has finished: `resume`, `keep` after each epoch, `finish`.
    `to_keras` gives a network's weights as Keras orders them; `data_stamp` is data.stamp's.
    """

    def __init__(self, options, to_keras: Callable[[nn.Module], list[np.ndarray]], data_stamp: list | None):
        self.options, self.to_keras, self.data_stamp = options, to_keras, data_stamp
        self.out: Path = options.out
        self.lock = Lock(self.out / LOCK)

    # --- whose is the directory? --------------------------------------------------------------------------------------

    def look(self, data_sha256: str | None = None, own: bool = False) -> dict | None:
        """Return the metrics of the run in the directory if it has finished; raise BadInput unless one can go on there.

        Touches nothing. `data_sha256` is None as long as the data are not read; `own`: this process has the lock.
        """
        taken = self._look_around(own)
        if not taken:
            return None
        if not self.options.resume:
            raise BadInput(
                f"--out {self.out}: already holds a run ({', '.join(taken)}); "
                "go on with it by --resume, pass another --out or --seed, or delete that folder first"
            )
        config = files.read_json(self.out / CONFIG)
        if not isinstance(config.get("flags"), dict) or "backend" in config:  # Keras's
            raise BadInput(f"{self.out / CONFIG}: no flags in it that train.py wrote; pass another --out")
        saved_data = config["flags"].get("data")
        different = self.options.differences(config)
        if data_sha256 is not None and config.get("data_sha256") != data_sha256:
            different.append(f"--data {self.options.data} (other images or labels than {saved_data!r:.200} had)")
        if different:
            raise self._refusal(f"its run cannot be resumed with {', '.join(different)}")
        metrics = self._finished_metrics()
        if metrics is not None:
            self._check_start_and_epochs(metrics.get("initial_weights"), metrics["epochs"])
            untouched = self.data_stamp in (None, config.get("data_stamp"))  # None: they are not there any more
            known = data_sha256 is not None or (self.options.data == saved_data and untouched)
            return metrics if known else None
        # The checkpoint is written before these, so without it they are not from a run that broke off.
        if CHECKPOINT not in taken and {HISTORY, WEIGHTS, METRICS} & set(taken):
            raise self._refusal(f"no {CHECKPOINT} in it, so its run cannot be resumed")
        return None

    def _look_around(self, own: bool) -> list[str]:
        """Return which files of a run are there; raise BadInput if none can be written, or another is at work."""
        try:
            ancestor = next(parent for parent in (self.out, *self.out.absolute().parents) if parent.exists())
            holder = None if own else self.lock.holder()
            taken = [name for name in FILES if (self.out / name).exists()]
        except OSError as error:
            raise self._refusal(f"cannot be looked at ({error.strerror})") from None
        if not ancestor.is_dir():
            raise self._refusal(f"{ancestor} is a file, not a folder")
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise self._refusal(f"no permission to write in {ancestor}")
        if holder is not None:
            raise self._refusal(f"in use by {holder}; wait until that is done")
        return taken

    def _refusal(self, reason: str) -> BadInput:
        return BadInput(f"--out {self.out}: {reason}; pass another --out")

    def _finished_metrics(self) -> dict | None:
        path = self.out / METRICS
        if not path.exists():
            return None
        metrics = files.read_json(path)
        kinds = {"test_accuracy": float, "epochs": int, "stopped": str}
        if not all(type(metrics.get(name)) is kind for name, kind in kinds.items()):
            raise BadInput(f"{path}: lacks {', '.join(kinds)}; delete that file and --resume makes it anew")
        over = metrics["stopped"] != ALL_EPOCHS or metrics["epochs"] >= self.options.epochs
        # The figures of an earlier end stay until those of a later one are there.
        history = self.out / HISTORY
        if not over or (history.exists() and len(files.read_text(history).splitlines()) - 1 != metrics["epochs"]):
            return None
        fault = histories.contradiction(metrics, {"seed": self.options.seed}, histories.columns_of(history))
        if fault:
            raise BadInput(f"{path}: {fault}; delete that file and --resume makes it anew")
        return metrics

    @contextlib.contextmanager
    def claimed(self, config: dict, initial_weights: list[np.ndarray]) -> Iterator[dict | None]:
        """Make the directory this process's own until the block ends; give the metrics if the run has finished.

        No other can claim it, however the block or the process ends. `config` goes into config.json; the run starts
        from `initial_weights`. What ends the block by an exception, but for BadInput, is left in error.txt.
        """
        self.config, self.initial_weights = config | {"data_stamp": self.data_stamp}, initial_weights
        part = {"after_epoch": 0, "device": self.options.device.type, "dtype": self.options.dtype}
        part |= {name: config[name] for name in ("device_name", "cpu_capability", "threads", "processes", "git_commit")}
        self.record = {
            "parts": [part | config["versions"]],
            "bits_changed": [],
            "initial_weights": histories.fingerprint(initial_weights),
            **{name: config[name] for name in ("flags", "not_default", "data_sha256")},
        }
        try:
            finished = distributed.first(self._claim)
            yield finished
        except BadInput:  # bad input changes no file
            raise
        except BaseException as error:
            with contextlib.suppress(Exception):  # a full disk, a directory taken away: stderr has it all the same
                self._write(files.write_bytes, ERROR, "".join(traceback.format_exception_only(error)).encode())
            raise
        finally:
            self.lock.release()

    def _claim(self) -> dict | None:
        files.make_folder(self.out)
        try:
            self.lock.claim()
        except Held as holder:
            raise self._refusal(f"in use by {holder}; wait until that is done") from None
        except Unsupported as error:
            say(f"No locks in {self.out} ({error}): that no other process works there cannot be promised.")
        except OSError as error:
            raise self._refusal(f"cannot write there ({error.strerror})") from None
        for partial in self.out.glob(".*.partial"):  # a killed process's
            self._write(Path.unlink, partial.name, True)
        # Once more: another process may have been at work here while the data were read.
        return self.look(self.config["data_sha256"], own=True)

    # --- at work ------------------------------------------------------------------------------------------------------

    def resume(self, state: dict) -> None:
        """Load checkpoint.pt, if there is one, into the parts of `state`, then write what is known before an epoch.

        `state` has model, best (the network with the best weights), optimizer, schedule, early_stopping and history.
        Raises BadInput, with no file changed, for a checkpoint that is not of such a run.
        """
        path = self.out / CHECKPOINT
        saved = distributed.first(lambda: self._read_checkpoint(path, state))
        if saved is not None:
            with checkpoint.refusing_checkpoint(path):
                for name in state.keys() & saved.keys():  # a part that came with this version begins anew
                    state[name].load_state_dict(saved[name])
                checkpoint.check_counts(state)
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
        saved = checkpoint.read(path, state, self.record | {"parts": [], "flags": {}})
        run, epochs = saved["run"], len(saved["history"]["logs"])
        with checkpoint.refusing_checkpoint(path):
            different = self.options.differences(run)
        if run["data_sha256"] != self.record["data_sha256"]:
            different.append("other images or labels")
        started = self.out / INITIAL_WEIGHTS
        if started.exists():
            arrays = files.read_npz("--out", started, files.WEIGHTS_LIMIT)
            if histories.fingerprint(list(arrays.values())) != run["initial_weights"]:
                different.append(f"other weights at its start than {INITIAL_WEIGHTS}")
        if different:
            raise BadInput(f"{path}: belongs to another run ({', '.join(different)}); pass another --out")
        self._check_start_and_epochs(run["initial_weights"], epochs)
        return saved

    def goes_on_without(self, start: Path | None) -> bool:
        """Tell whether `start`, the weights that the run began with, are gone but the checkpoint has all it needs."""
        here = start is None or os.path.exists(start)
        return self.options.resume and not here and (self.out / CHECKPOINT).exists()

    def _check_start_and_epochs(self, started_from: str, trained: int) -> None:
        """Raise BadInput if more is trained than --epochs, or --init-weights has not what the run started from."""
        if trained > self.options.epochs:
            raise BadInput(f"--epochs {self.options.epochs}: {trained} are trained already; pass {trained} or more")
        given = self.options.init_weights
        if given is None or not os.path.exists(given):
            return
        arrays = files.read_npz("--init-weights", given, files.WEIGHTS_LIMIT)
        fault = f"not the weights that the run in {self.out} started from"
        with refusing(f"--init-weights {given}", fault, "pass those or another --out"):
            ordered = [arrays[f"arr_{number}"].astype(self.options.dtype) for number in range(len(arrays))]
            if histories.fingerprint(ordered) != started_from:
                raise ValueError("another hash")

    def _take_up(self, saved: dict, epoch: int) -> None:
        """Continue the record of the run that was saved, and say what is another now, and what that means."""
        say(f"Resuming after epoch {epoch}.")
        before, now = saved["parts"][-1], self.record["parts"][-1] | {"after_epoch": epoch}
        self.record = saved | {"parts": [*saved["parts"], now]}
        for said in environment.changes(before, now, self.options.dropout):
            self.record["bits_changed"] = [*self.record["bits_changed"], f"after epoch {epoch}, {said}"]
            say(f"With {said}.")

    def keep(self, state: dict, improved: bool) -> None:
        """Write what an epoch has left; `improved` tells that it was the best one so far."""
        # The checkpoint first: what the others say can be had from it, when the process ends before they are.
        self._write(checkpoint.write, CHECKPOINT, state, self.record)
        self._write_history_and_best(state, improved)

    def _write_history_and_best(self, state: dict, improved: bool) -> None:
        self._write(histories.write, HISTORY, state["history"].logs)
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
        """Let `write(path, *content)` change the file `name`, on the first process, while it is still this run's."""
        if distributed.rank():
            return
        try:
            if self.lock.still_there():
                write(self.out / name, *content)
                return
        except CannotWrite:
            if self.lock.still_there():
                raise
        raise TakenAway(f"--out {self.out}: its {LOCK} was taken away, it may be another run's; nothing was written")
