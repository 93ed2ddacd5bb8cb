"""Adam as Keras computes it, SGD; decoupled weight decay and Lookahead for either."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import nn

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
# Keras rounds both to float32 where it raises them to the power of the step, and nowhere else.
POWER_BETA_1, POWER_BETA_2 = float(np.float32(BETA_1)), float(np.float32(BETA_2))
MOMENTUM = 0.9
LOOKAHEAD_STEPS, LOOKAHEAD_ALPHA = 5, 0.5  # k and alpha of Zhang et al. 2019, as they advise


class _Optimizer:
    """What the optimizers here add to torch's: a step count, decoupled weight decay, Lookahead, resuming.

    The step count lives in the parameter groups. A group's `decay` is the decoupled one: a step takes lr * decay of
    each weight off first (torch's own `weight_decay` stays coupled: L2).
    """

    def __init__(self, params, lr: float, lookahead: bool, **settings):
        super().__init__(params, lr=lr, fused=True, **settings)
        for group in self.param_groups:
            group["steps"] = 0
            group.setdefault("decay", 0.0)
        self.lookahead = lookahead
        self.moment_names = (*self.MOMENTS, *["slow"] * lookahead)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; a group's `lr` is the same after it as before."""
        for group in self.param_groups:
            group["steps"] += 1
            if group["decay"]:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decay"])
        weights = [weight for group in self.param_groups for weight in group["params"]]
        first = self.lookahead and self.param_groups[0]["steps"] == 1
        slow = [weight.clone() for weight in weights] if first else None
        self._update()
        if first:
            for weight, start in zip(weights, slow, strict=True):
                self.state[weight]["slow"] = start
        if self.lookahead and self.param_groups[0]["steps"] % LOOKAHEAD_STEPS == 0:
            slow = [self.state[weight]["slow"] for weight in weights]
            torch._foreach_lerp_(slow, weights, LOOKAHEAD_ALPHA)
            torch._foreach_copy_(weights, slow)

    def moments(self, model: nn.Module) -> dict:
        """Return step count and moments by parameter name: what training changes, without the settings."""
        named = dict(model.named_parameters())
        return {"steps": self.param_groups[0]["steps"]} | {
            moment: {name: self.state[parameter][moment] for name, parameter in named.items()}
            for moment in self.moment_names
        }

    def set_moments(self, model: nn.Module, moments: dict) -> None:
        """Take up where `moments` was called; each tensor must lie in memory as its parameter does, on any device."""
        for group in self.param_groups:
            group["steps"] = moments["steps"]
        for name, parameter in model.named_parameters():
            step = torch.tensor(float(moments["steps"]), device=parameter.device)
            self.state[parameter] = {"step": step} | {
                moment: moments[moment][name].to(parameter.device) for moment in self.moment_names
            }


class Adam(_Optimizer, torch.optim.Adam):
    """`keras.optimizers.Adam`, with `decay` its AdamW: torch's Adam with Keras's epsilon and step size.

    A group's `lr` is Keras's learning rate: schedulers read and write it as usual.
    """

    MOMENTS: ClassVar = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr: float, lookahead: bool = False):
        super().__init__(params, lr, lookahead, betas=(BETA_1, BETA_2))

    def _update(self) -> None:
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            t = group["steps"]
            # Difference 1: Keras adds epsilon to sqrt(v), torch to sqrt(v) / sqrt(1 - beta_2**t).
            group["eps"] = EPSILON / math.sqrt(1 - BETA_2**t)
            # Keras's step size over torch's: 7e-6 below 1 at t = 1, through the rounded betas.
            keras_size = math.sqrt(1 - POWER_BETA_2**t) / (1 - POWER_BETA_1**t)
            torch_size = math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
            group["lr"] *= keras_size / torch_size
        try:
            torch.optim.Adam.step(self)
        finally:
            for group, (lr, eps) in zip(self.param_groups, before, strict=True):
                group["lr"], group["eps"] = lr, eps


class SGD(_Optimizer, torch.optim.SGD):
    """`torch.optim.SGD` with Nesterov momentum 0.9; at a constant rate that is `keras.optimizers.SGD`."""

    MOMENTS: ClassVar = ("momentum_buffer",)

    def __init__(self, params, lr: float, lookahead: bool = False):
        super().__init__(params, lr, lookahead, momentum=MOMENTUM, nesterov=True)

    def _update(self) -> None:
        # Keras's velocity has the rate in it, so that a cut reaches Keras's weights some steps later than these.
        torch.optim.SGD.step(self)


OPTIMIZERS = {"adam": Adam, "adamw": Adam, "sgd": SGD}
