"""Adam and AdamW as Keras computes them, and SGD; decoupled weight decay and Lookahead for each."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
# Keras rounds both to float32 where it raises them to the power of the step, and nowhere else.
POWER_BETA_1, POWER_BETA_2 = float(np.float32(BETA_1)), float(np.float32(BETA_2))
MOMENTUM = 0.9
LOOKAHEAD_STEPS, LOOKAHEAD_ALPHA = 5, 0.5  # k and alpha of Zhang et al. 2019, as they advise


class Stepping:
    """Mixed in before one of torch's optimizers, whose step becomes `update`; a subclass may make it another.

    What it adds lies where torch's own `state_dict` saves it: in each parameter group `steps`, the steps taken,
    `decay`, the part of each weight that a step takes off first, times the learning rate (torch's `weight_decay` stays
    coupled: L2), and `lookahead`; in a parameter's state its `slow` weights.
    """

    default_decay: ClassVar[float | None] = 0.0  # what --weight-decay is by default; None: it takes none

    def __init__(self, params, lr: float, lookahead: bool = False, **settings):
        super().__init__(params, lr=lr, **settings)
        for group in self.param_groups:
            group.setdefault("decay", 0.0)
            group["steps"], group["lookahead"] = 0, lookahead

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; a group's `lr` is the same after it as before."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        steps, lookahead = self.param_groups[0]["steps"], self.param_groups[0]["lookahead"]
        for group in self.param_groups:
            group["steps"] += 1
            if group["decay"]:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decay"])
        start = [weight.clone() for weight in weights] if lookahead and steps == 0 else None
        self.update()
        if start is not None:  # only now: torch fills a state that is still empty
            for weight, slow in zip(weights, start, strict=True):
                self.state[weight]["slow"] = slow
        if lookahead and (steps + 1) % LOOKAHEAD_STEPS == 0:
            self._look_back(weights)

    def update(self) -> None:
        super().step()

    def _look_back(self, weights: list[Tensor]) -> None:
        slow = [self.state[weight]["slow"] for weight in weights]
        torch._foreach_lerp_(slow, weights, LOOKAHEAD_ALPHA)
        torch._foreach_copy_(weights, slow)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up where `state_dict` was called. Raises ValueError if that was before the first step."""
        if not all(group["steps"] > 0 for group in state_dict["param_groups"]):
            raise ValueError("the optimizer has taken no step")
        super().load_state_dict(state_dict)


class Adam(Stepping, torch.optim.Adam):
    """`keras.optimizers.Adam`: torch's with Keras's epsilon and step size.

    A group's `lr` is Keras's learning rate: schedulers read and write it as usual.
    """

    default_decay = None

    def __init__(self, params, lr: float, lookahead: bool = False):
        super().__init__(params, lr, lookahead, betas=(BETA_1, BETA_2), fused=True)

    def update(self) -> None:
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
            super().update()
        finally:
            for group, (lr, eps) in zip(self.param_groups, before, strict=True):
                group["lr"], group["eps"] = lr, eps


class AdamW(Adam):
    """Adam with decoupled weight decay, by default as much as `keras.optimizers.AdamW` has."""

    default_decay = 0.004


class SGD(Stepping, torch.optim.SGD):
    """`torch.optim.SGD` with Nesterov momentum 0.9; at a constant rate that is `keras.optimizers.SGD`.

    Keras's velocity has the rate in it, so that a cut reaches Keras's weights some steps later than these.
    """

    def __init__(self, params, lr: float, lookahead: bool = False):
        super().__init__(params, lr, lookahead, momentum=MOMENTUM, nesterov=True, fused=True)


OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
