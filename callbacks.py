"""Keras's EarlyStopping and ReduceLROnPlateau, and the other schedules: numbers in, decisions out."""

from typing import ClassVar

import torch

PLATEAU = "plateau"
# What torch's schedulers count, of all that their state_dicts hold: the settings are the flags'.
SCHEDULE_STATE = {
    PLATEAU: {"best": float, "num_bad_epochs": int},
    "cosine": {"last_epoch": int},  # torch's word: in steps here
    "onecycle": {"last_epoch": int},
}


class EarlyStopping:
    """`keras.callbacks.EarlyStopping(monitor, patience)`: says which epoch is the best and when to stop.

    The caller keeps the weights: a copy whenever `update` returns True, put back when training ends for any reason.
    """

    STATE: ClassVar = {"best": float, "best_epoch": int, "stopped_epoch": int | None, "wait": int}  # after an epoch

    def __init__(self, patience: int, monitor: str = "val_loss"):
        self.patience = patience
        self.monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self.wait = 0

    def update(self, epoch: int, logs: dict[str, float]) -> bool:
        """Take the figures of `epoch` (from 0); return whether it is the best so far. Sets `stopped_epoch`."""
        value = logs[self.monitor]
        self.wait += 1
        if self.best is None or value < self.best:
            self.best, self.best_epoch, self.wait = value, epoch, 0
            return True
        if self.wait >= self.patience:
            self.stopped_epoch = epoch
        return False

    @property
    def should_stop(self) -> bool:
        return self.stopped_epoch is not None

    def state_dict(self) -> dict[str, float | int | None]:
        """Return the counters and the best value; settings are not among them."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        """Take up where `state_dict` was called."""
        for name in self.STATE:
            setattr(self, name, state[name])


def reduce_lr_on_plateau(
    optimizer: torch.optim.Optimizer, factor: float, patience: int, min_lr: float, min_delta: float = 1e-4
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """`keras.callbacks.ReduceLROnPlateau` as torch's scheduler: `step(val_loss)` once per epoch."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="min",
        factor=factor,
        # Difference 4: torch cuts when the bad epochs exceed its patience, Keras when they reach it.
        patience=max(patience, 1) - 1,
        # Difference 5: Keras's min_delta is absolute, torch's default threshold is relative.
        threshold=min_delta,
        threshold_mode="abs",
        cooldown=0,
        min_lr=min_lr,
        eps=0,  # torch skips cuts smaller than eps; Keras takes each one down to min_lr
    )


def per_step_schedule(
    name: str, optimizer: torch.optim.Optimizer, steps: int, min_lr: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The `cosine` or `onecycle` schedule over `steps` optimizer steps; `step()` after each. Rates are the groups'.

    cosine falls from the rate to `min_lr` along half a cosine; onecycle rises from 1/25 of the rate to it in a
    quarter of the steps and falls to nothing (4e-6 of it), both in a straight line.
    """
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=min_lr)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps + 1,  # the rates before and after each step
        pct_start=max(0.25, 1.5 / (steps + 1)),  # torch divides by zero where the rise ends with the first step
        anneal_strategy="linear",
        cycle_momentum=False,
    )
