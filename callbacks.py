"""Callbacks in Keras's form: early stopping, the learning rate, the history, Lookahead, TensorBoard."""

import importlib
import inspect
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from cli.errors import BadInput, first_line
from metrics import rounded
from running.history import less
from running.outcome import EARLY_STOPPING

LOOKAHEAD_STEPS, LOOKAHEAD_ALPHA = 5, 0.5  # k and alpha, as Zhang et al. 2019 recommend


class Stop(NamedTuple):
    """Why a callback ends training. If `final`, the run has then finished; otherwise, `--resume` continues it."""

    reason: str
    final: bool = True


class Callback:
    """Base class of callbacks; a subclass overrides the methods that it needs.

    `train.fit` calls all callbacks, in the order of its dict. A callback with a state also has `state_dict` and
    `load_state_dict`, like a torch module; the state, tensors and plain values, is saved after each epoch.
    """

    network: nn.Module | None = None  # evaluated, and kept as best, instead of the network that is trained
    stop: Stop | None = None  # if set, training ends before the next epoch

    def before_epoch(self, epoch: int) -> None:
        """Called before `epoch`, from 0."""

    def after_step(self) -> None:
        """Called after each step of the optimizer."""

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> str | None:
        """Called after `epoch`, from 0, with its metrics; return a line to print, or None."""
        return None


class EarlyStopping(Callback):
    """`keras.callbacks.EarlyStopping(monitor, patience)`: decides which epoch is the best and when to stop.

    The caller copies the weights whenever `improved`, and uses that copy when training ends for any reason. Epochs do
    not count toward the patience while `schedule` is rising.
    """

    def __init__(self, patience: int, monitor: str = "val_loss", schedule: "Schedule | None" = None):
        self.patience, self.monitor, self.schedule = patience, monitor, schedule
        self.best: float | None = None
        self.best_epoch: int | None = None  # from 0
        self.stopped_epoch: int | None = None
        self.wait = 0
        self.improved = False  # whether the last epoch was the best so far

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> str | None:
        value = logs[self.monitor]
        counts = self.schedule is None or not self.schedule.rising
        if counts:
            self.wait += 1
        self.improved = self.best is None or less(value, self.best)
        if self.improved:
            self.best, self.best_epoch, self.wait = value, epoch, 0
        elif counts and self.wait >= self.patience:
            self.stopped_epoch = epoch
        return None if self.stop is None else EARLY_STOPPING

    @property
    def stop(self) -> Stop | None:
        return None if self.stopped_epoch is None else Stop(EARLY_STOPPING)

    def state_dict(self) -> dict[str, float | int | None]:
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
            "wait": self.wait,
        }

    def load_state_dict(self, state_dict: dict[str, float | int | None]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.stopped_epoch, self.wait = state_dict["stopped_epoch"], state_dict["wait"]


class Schedule(Callback):
    """Mixin that makes a torch scheduler a callback; it precedes the scheduler, which holds optimizer and state.

    `make_schedule` constructs it. The keyword-only arguments are the options that it uses, by name, and `total_steps`
    and `steps_per_epoch` if it needs them. These options are refused with any schedule that does not use them.
    """

    spans_all_epochs: ClassVar[bool] = True  # if so, a resumed run cannot change their number
    cutting: ClassVar[bool] = False  # whether the rate changes only by cuts between epochs

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def rising(self) -> bool:
        """Return whether the peak rate is still ahead; until then, early stopping does not count epochs."""
        return False

    def after_step(self) -> None:
        self.step()


class Plateau(Schedule, lr_scheduler.ReduceLROnPlateau):
    """`keras.callbacks.ReduceLROnPlateau`: cuts the rate by `lr_factor` after `lr_patience` bad epochs."""

    spans_all_epochs, cutting = False, True

    def __init__(self, optimizer: torch.optim.Optimizer, *, min_lr: float, lr_factor: float, lr_patience: int):
        super().__init__(
            optimizer,
            mode="min",
            factor=lr_factor,
            # Difference 4: torch cuts when the bad epochs exceed its patience, Keras when they reach it.
            patience=max(lr_patience, 1) - 1,
            # Difference 5: Keras's min_delta of 1e-4 is absolute, torch's default threshold is relative.
            threshold=1e-4,
            threshold_mode="abs",
            cooldown=0,
            min_lr=_as_rate(min_lr, optimizer),
            eps=0,  # torch skips cuts smaller than eps; Keras makes every cut down to min_lr
        )

    def is_better(self, loss: float, best: float) -> bool:
        # Difference 13: torch compares in float64.
        return less(loss + self.threshold, best)

    _is_better = is_better  # torch has used both names

    def after_step(self) -> None:
        pass

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> str | None:
        before = self.rate
        self.step(logs["val_loss"])
        if self.rate != before:
            for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                # Keras rounds a float32 model's rate at each cut, and compares every rate with its floor in float32.
                cut = rounded(group["lr"], group["params"][0].dtype)
                group["lr"] = cut if less(floor, before) else before
        return None if self.rate == before else f"ReduceLROnPlateau reducing learning rate to {self.rate}."


class Cosine(Schedule, lr_scheduler.CosineAnnealingLR):
    """Decays from the initial rate to `min_lr` along half a cosine, step by step."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, total_steps: int, min_lr: float):
        super().__init__(optimizer, T_max=total_steps, eta_min=_as_rate(min_lr, optimizer))


class OneCycle(Schedule, lr_scheduler.OneCycleLR):
    """Warms up linearly from 1/25 of the peak rate in 5 % of the steps, then decays linearly to 4e-6 of it."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, total_steps: int):
        super().__init__(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps + 1,  # a rate before the first step and one after each
            # torch divides by zero where the rise ends with the first step.
            pct_start=max(0.05, 1.5 / (total_steps + 1)),
            anneal_strategy="linear",
            cycle_momentum=False,
        )

    @property
    def rising(self) -> bool:
        return self.last_epoch < self._schedule_phases[0]["end_step"]  # torch calls it epoch; here it counts steps


SCHEDULES = {"plateau": Plateau, "cosine": Cosine, "onecycle": OneCycle}


def options_of(schedule: type[Schedule]) -> set[str]:
    """Return the names of the options that a schedule uses, from its signature."""
    return _keywords(schedule) - {"total_steps", "steps_per_epoch"}


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, options: Mapping[str, object], epochs: int, steps_per_epoch: int
) -> Schedule:
    """Return the schedule called `name` for this number of epochs, with the `options` that it uses."""
    available = {**options, "total_steps": epochs * steps_per_epoch, "steps_per_epoch": steps_per_epoch}
    return SCHEDULES[name](optimizer, **{keyword: available[keyword] for keyword in _keywords(SCHEDULES[name])})


def _keywords(schedule: type[Schedule]) -> set[str]:
    parameters = inspect.signature(schedule).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _as_rate(value: float, optimizer: torch.optim.Optimizer) -> float:
    """Return `value` rounded to the dtype of the optimizer's weights."""
    # Difference 9: a float32 Keras model keeps its rates in float32, so that 0.001 is 0.0010000000474974513.
    return rounded(value, optimizer.param_groups[0]["params"][0].dtype)


class History(Callback):
    """The log of a run, by epoch: Keras's `history`, the notebook's own list of learning rates, and times.

    In `logs`, `learning_rate` is the rate before the epoch. `learning_rates` are the rates after each epoch, as the
    notebook logs them, read from `schedule`, which must be called first. `seconds` are wall time. `columns` names the
    metrics that this version logs; a resumed run keeps its own columns.
    """

    def __init__(self, columns: Sequence[str] = (), schedule: Schedule | None = None):
        self.columns, self.schedule = list(columns), schedule
        self.logs: list[dict[str, float]] = []
        self.learning_rates: list[float] = []
        self.seconds: list[float] = []
        self.started = time.perf_counter()

    def __len__(self) -> int:
        return len(self.logs)

    def __repr__(self) -> str:
        """Return a table with a row for each epoch."""
        names = ["epoch", *self.columns]
        rows = [[str(epoch), *(f"{row[name]:.4g}" for name in self.columns)] for epoch, row in enumerate(self.logs, 1)]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in [names, *rows])

    @property
    def history(self) -> dict[str, list[float]]:
        """Return the metrics by column, like `history` in the object that Keras's `fit` returns."""
        return {name: [row[name] for row in self.logs] for name in self.columns}

    def before_epoch(self, epoch: int) -> None:
        self.started = time.perf_counter()

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> str | None:
        self.logs.append({name: logs[name] for name in self.columns})
        self.learning_rates.append(self.schedule.rate)
        self.seconds.append(time.perf_counter() - self.started)
        return None

    @property
    def cuts(self) -> list[dict]:
        """Return the epochs that changed the rate: `[{"epoch": from 1, "learning_rate": after it}]`."""
        pairs = enumerate(zip(self.logs, self.learning_rates, strict=True), start=1)
        return [
            {"epoch": epoch, "learning_rate": after} for epoch, (logs, after) in pairs if after != logs["learning_rate"]
        ]

    def state_dict(self) -> dict[str, list]:
        return {"logs": self.logs, "learning_rates": self.learning_rates, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Restore what `state_dict` returned. Raises ValueError for a column that this version does not log."""
        logs, rates, seconds = (list(state_dict[name]) for name in ("logs", "learning_rates", "seconds"))
        if not (logs and len(logs) == len(rates) == len(seconds)):
            raise ValueError(f"its history has {len(logs)}, {len(rates)} and {len(seconds)} epochs")
        missing = [name for name in logs[0] if self.columns and name not in self.columns]
        if missing:
            raise ValueError(f"its history has columns that this version does not log: {', '.join(missing)}")
        self.logs, self.learning_rates, self.seconds = logs, rates, seconds
        self.columns = [*logs[0]]


class Lookahead(Callback):
    """Moves the weights, every 5 steps, halfway back to where they were 5 steps ago.

    Zhang et al. 2019, arXiv:1907.08610.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self.weights = list(weights)
        self.slow = [weight.detach().clone() for weight in self.weights]
        self.steps = 0

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        if self.steps % LOOKAHEAD_STEPS == 0:
            torch._foreach_lerp_(self.slow, self.weights, LOOKAHEAD_ALPHA)
            torch._foreach_copy_(self.weights, self.slow)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "slow": self.slow}

    def load_state_dict(self, state_dict: dict) -> None:
        self.steps = state_dict["steps"]
        for slow, saved in zip(self.slow, state_dict["slow"], strict=True):
            slow.copy_(saved)


class TensorBoard(Callback):
    """Writes the metrics of each epoch to `folder` for TensorBoard, starting with a resumed run's earlier epochs."""

    def __init__(self, folder: Path, history: History):
        self.folder, self.history, self.writer = folder, history, None

    def before_epoch(self, epoch: int) -> None:
        if self.writer is None:
            # Replaces the previous process's points.
            self.writer = _tensorboard().SummaryWriter(self.folder, purge_step=0)
            for earlier, logs in enumerate(self.history.logs):
                self.after_epoch(earlier, logs)

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> str | None:
        for name, value in logs.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        return None

    @staticmethod
    def refuse_without_package() -> None:
        """Raise BadInput if TensorBoard is not installed."""
        try:
            _tensorboard()
        except ImportError as error:
            remedy = "install it with python -m pip install tensorboard, or leave --tensorboard out"
            raise BadInput(f"--tensorboard: no package tensorboard ({first_line(error)}); {remedy}") from None


def _tensorboard() -> types.ModuleType:
    """Return torch.utils.tensorboard, imported without TensorFlow, which can crash a process that uses torch."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))  # TensorBoard then does without it
    return importlib.import_module("torch.utils.tensorboard")


def first_stop(callbacks: Sequence[Callback]) -> Stop | None:
    """Return the `stop` of the first callback that ends training; None if training continues."""
    return next((callback.stop for callback in callbacks if callback.stop is not None), None)
