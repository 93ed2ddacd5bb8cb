"""Adam as Keras computes it."""

import math

import numpy as np
import torch
from torch import nn

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
# Keras rounds both to float32 where it raises them to the power of the step, and nowhere else.
POWER_BETA_1, POWER_BETA_2 = float(np.float32(BETA_1)), float(np.float32(BETA_2))
MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(torch.optim.Adam):
    """`keras.optimizers.Adam`: torch's Adam with Keras's epsilon and step size; weight decay is coupled (L2).

    The step count lives in the parameter groups. A group's `lr` is
    Keras's learning rate: schedulers read and write it as usual.
    """

    def __init__(self, params, lr: float):
        super().__init__(params, lr=lr, betas=(BETA_1, BETA_2), fused=True)
        for group in self.param_groups:
            group["steps"] = 0

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step; a group's `lr` and `eps` are the same after it as before."""
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            group["steps"] = t = group["steps"] + 1
            # Difference 1: Keras adds epsilon to sqrt(v), torch to sqrt(v) / sqrt(1 - beta_2**t).
            group["eps"] = EPSILON / math.sqrt(1 - BETA_2**t)
            # Keras's step size over torch's: 7e-6 below 1 at t = 1, through the rounded betas.
            keras_size = math.sqrt(1 - POWER_BETA_2**t) / (1 - POWER_BETA_1**t)
            torch_size = math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
            group["lr"] *= keras_size / torch_size
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps) in zip(self.param_groups, before, strict=True):
                group["lr"], group["eps"] = lr, eps

    def moments(self, model: nn.Module) -> dict:
        """Return step count and moments by parameter name: what training changes, without the settings."""
        named = dict(model.named_parameters())
        return {"steps": self.param_groups[0]["steps"]} | {
            moment: {name: self.state[parameter][moment] for name, parameter in named.items()} for moment in MOMENTS
        }

    def set_moments(self, model: nn.Module, moments: dict) -> None:
        """Take up where `moments` was called; each tensor must lie in memory as its parameter does."""
        for group in self.param_groups:
            group["steps"] = moments["steps"]
        for name, parameter in model.named_parameters():
            step = torch.tensor(float(moments["steps"]), device=parameter.device)
            self.state[parameter] = {"step": step} | {moment: moments[moment][name] for moment in MOMENTS}
