"""What Keras's callbacks do between epochs: early stopping, the learning rate, the log of both."""

import importlib
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch.optim import lr_scheduler

from harness.errors import BadInput, first_line
from metrics import rounded


def less(one: float, other: float) -> bool:
    """Compare as Keras's callbacks do on TensorFlow: in float32, whatever the model's dtype."""
    return rounded(one, torch.float32) < rounded(other, torch.float32)


class EarlyStopping:
    """`keras.callbacks.EarlyStopping(monitor, patience)`: says which epoch is the best and when to stop.

    The caller keeps the weights: a copy whenever `update` returns True, put back when training ends for any reason.
    """

    STATE: ClassVar = {"best": float, "best_epoch": int, "stopped_epoch": int | None, "wait": int}  # after an epoch

    def __init__(self, patience: int, monitor: str = "val_loss"):
        self.patience, self.monitor = patience, monitor
        self.best = self.best_epoch = self.stopped_epoch = None
        self.wait = 0

    def update(self, epoch: int, logs: dict[str, float], counts: bool = True) -> bool:
        """Take the figures of `epoch` (from 0); return whether it is the best so far. Sets `stopped_epoch`.

        An epoch that does not count takes nothing of the patience.
        """
        value = logs[self.monitor]
        if counts:
            self.wait += 1
        if self.best is None or less(value, self.best):
            self.best, self.best_epoch, self.wait = value, epoch, 0
            return True
        if counts and self.wait >= self.patience:
            self.stopped_epoch = epoch
        return False

    @property
    def should_stop(self) -> bool:
        return self.stopped_epoch is not None

    def state_dict(self) -> dict[str, float | int | None]:
        """Return the counters and the best value; settings are not among them."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, float | int | None]) -> None:
        """Take up where `state_dict` was called, after one epoch at least. Raises ValueError for any other."""
        for name, kind in self.STATE.items():
            value = state_dict[name]
            if not isinstance(value, kind) or (kind is float and not math.isfinite(value)):
                raise ValueError(f"early_stopping.{name} is {state_dict[name]!r:.60}")
            setattr(self, name, state_dict[name])


class Schedule:
    """Mixed in before one of torch's schedulers, which holds the optimizer: what the loop asks of each.

    Made by `SCHEDULES[name](optimizer, total_steps=, min_lr=, factor=, patience=)`, of which it names what it takes:
    options for the rest are refused. `state_dict` and `load_state_dict` are torch's.
    """

    spans_all_epochs: ClassVar[bool] = True  # their number is fixed then, also when a run is resumed
    cutting: ClassVar[bool] = False  # does the rate stay as it is but for cuts between epochs?

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def rising(self) -> bool:
        """Tell whether the highest rate is still to come; so long early stopping does not count."""
        return False

    def after_step(self) -> None:
        """Set the rate of the next step."""
        self.step()

    def after_epoch(self, val_loss: float) -> str | None:
        """Set the rate of the next epoch; return what Keras would print of it."""
        return None


class Plateau(Schedule, lr_scheduler.ReduceLROnPlateau):
    """`keras.callbacks.ReduceLROnPlateau`: multiplies the rate by `factor` after `patience` epochs without a gain."""

    spans_all_epochs, cutting = False, True

    def __init__(self, optimizer: torch.optim.Optimizer, *, min_lr: float, factor: float, patience: int, **_):
        super().__init__(
            optimizer,
            mode="min",
            factor=factor,
            # Difference 4: torch cuts when the bad epochs exceed its patience, Keras when they reach it.
            patience=max(patience, 1) - 1,
            # Difference 5: Keras's min_delta of 1e-4 is absolute, torch's default threshold is relative.
            threshold=1e-4,
            threshold_mode="abs",
            cooldown=0,
            min_lr=min_lr,
            eps=0,  # torch skips cuts smaller than eps; Keras takes each one down to min_lr
        )

    def is_better(self, loss: float, best: float) -> bool:
        # Difference 13: torch compares in float64.
        return less(loss + self.threshold, best)

    _is_better = is_better  # torch has had both names

    def after_step(self) -> None:
        pass

    def after_epoch(self, val_loss: float) -> str | None:
        before = self.rate
        self.step(val_loss)
        if self.rate != before:
            for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                # Keras rounds a float32 model's rate at each cut, and compares any with its floor in float32.
                cut = rounded(group["lr"], group["params"][0].dtype)
                group["lr"] = cut if less(floor, before) else before
        return None if self.rate == before else f"ReduceLROnPlateau reducing learning rate to {self.rate}."


class Cosine(Schedule, lr_scheduler.CosineAnnealingLR):
    """Falls from the rate to `min_lr` along half a cosine, step by step."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, total_steps: int, min_lr: float, **_):
        super().__init__(optimizer, T_max=total_steps, eta_min=min_lr)


class OneCycle(Schedule, lr_scheduler.OneCycleLR):
    """Rises from 1/25 of the rate to it in 5 % of the steps and falls to 4e-6 of it, both in a straight line."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, total_steps: int, **_):
        super().__init__(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps + 1,  # the rates before and after each step
            # torch divides by zero where the rise ends with the first step.
            pct_start=max(0.05, 1.5 / (total_steps + 1)),
            anneal_strategy="linear",
            cycle_momentum=False,
        )

    @property
    def rising(self) -> bool:
        return self.last_epoch < self._schedule_phases[0]["end_step"]  # torch's word: in steps here


SCHEDULES = {"plateau": Plateau, "cosine": Cosine, "onecycle": OneCycle}


class History:
    """The log of a run, by epoch: Keras's `history`, the notebook's own list of learning rates, and times.

    In `logs` the `learning_rate` is the one that an epoch began with; `learning_rates` are those after each epoch, as
    the notebook logs them; `seconds` are wall time.
    """

    def __init__(self):
        self.logs, self.learning_rates, self.seconds = [], [], []

    def __len__(self) -> int:
        return len(self.logs)

    def append(self, logs: dict[str, float], learning_rate: float, seconds: float) -> None:
        """Add an epoch. Raises BadInput unless it has the figures that the epochs before have."""
        if self.logs and self.logs[0].keys() != logs.keys():
            others = ", ".join(sorted(self.logs[0].keys() ^ logs.keys()))
            raise BadInput(f"the run's history and this version log other figures ({others}); pass another --out")
        self.logs.append(logs)
        self.learning_rates.append(learning_rate)
        self.seconds.append(seconds)

    @property
    def cuts(self) -> list[dict]:
        """The epochs that ended with another rate: `[{"epoch": from 1, "learning_rate": after it}]`."""
        pairs = enumerate(zip(self.logs, self.learning_rates, strict=True), start=1)
        return [
            {"epoch": epoch, "learning_rate": after} for epoch, (logs, after) in pairs if after != logs["learning_rate"]
        ]

    def state_dict(self) -> dict[str, list]:
        return {"logs": self.logs, "learning_rates": self.learning_rates, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Take up where `state_dict` was called. Raises ValueError unless each epoch has the same finite figures."""
        logs, rates, seconds = (list(state_dict[name]) for name in ("logs", "learning_rates", "seconds"))
        if not (logs and len(logs) == len(rates) == len(seconds)):
            raise ValueError(f"its history has {len(logs)}, {len(rates)} and {len(seconds)} epochs")
        if not all(isinstance(epoch, dict) and epoch.keys() == logs[0].keys() for epoch in logs):
            raise ValueError("its history has other figures in some epoch")
        if not {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} <= logs[0].keys():
            raise ValueError(f"its history has only {', '.join(logs[0]):.60}")
        for value in [*rates, *seconds, *(value for epoch in logs for value in epoch.values())]:
            if not isinstance(value, float) or not math.isfinite(value):
                raise ValueError(f"its history has {value!r:.60}, not a finite number")
        self.logs, self.learning_rates, self.seconds = logs, rates, seconds


class TensorBoard:
    """Writes the figures of each epoch into `folder`, for TensorBoard: a logger, so without a state to be resumed."""

    def __init__(self, folder: Path, history: History):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=0)  # a resumed run's points replace those before it
        for epoch, logs in enumerate(history.logs):
            self.after_epoch(epoch, logs)

    def after_epoch(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the figures of `epoch` (from 0), one curve each."""
        for name, value in logs.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    @staticmethod
    def refuse_without_package() -> None:
        """Raise BadInput where TensorBoard is not installed."""
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            remedy = "install it by python -m pip install tensorboard, or leave --tensorboard out"
            raise BadInput(f"--tensorboard: no package tensorboard ({first_line(error)}); {remedy}") from None
