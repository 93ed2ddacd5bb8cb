"""Adam, AdamW and SGD as Keras computes them, with decoupled weight decay; Lookahead for each."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-7
MOMENTUM = float(np.float32(0.9))  # Keras's is a float32 number whatever the model's dtype
LOOKAHEAD_STEPS, LOOKAHEAD_ALPHA = 5, 0.5  # k and alpha of Zhang et al. 2019, as they advise


class Stepping:
    """Weight decay, a count of steps and Lookahead for one of torch's optimizers, whose own step becomes `update`.

    Mixed in before it. What it adds lies where torch's `state_dict` saves it. A parameter group has
    - `decoupled_decay`: a step first takes it, times the learning rate, off each weight;
      torch's own `weight_decay` must stay coupled, since it carries L2, and is 0 within `update` if there is this one;
    - `taken`, the number of steps taken, and `lookahead`, whether there is Lookahead.
    A parameter's state has its `slow` weights then.
    """

    default_decay: ClassVar[float | None] = 0.0  # what --weight-decay is by default; None: it takes none

    def __init__(self, params, lr: float, lookahead: bool = False, **settings):
        super().__init__(params, lr=lr, **settings)
        for group in self.param_groups:
            group.setdefault("decoupled_decay", 0.0)
            group |= {"taken": 0, "lookahead": lookahead}

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; a group's `lr` is the same after it as before."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        taken, lookahead = self.param_groups[0]["taken"], self.param_groups[0]["lookahead"]
        start = [weight.clone() for weight in weights] if lookahead and taken == 0 else None
        coupled = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["taken"] += 1
            if group["decoupled_decay"]:
                # Difference 11: in Keras L2's gradient is that of the weights before the decay, which is a float32.
                moving = [weight for weight in group["params"] if weight.grad is not None]
                torch._foreach_add_([weight.grad for weight in moving], moving, alpha=group["weight_decay"])
                group["weight_decay"] = 0.0
                torch._foreach_mul_(group["params"], 1 - group["lr"] * float(np.float32(group["decoupled_decay"])))
        try:
            self.update()
        finally:
            for group, decay in zip(self.param_groups, coupled, strict=True):
                group["weight_decay"] = decay
        if start is not None:  # only now: torch fills a state that is still empty
            for weight, slow in zip(weights, start, strict=True):
                self.state[weight]["slow"] = slow
        if lookahead and (taken + 1) % LOOKAHEAD_STEPS == 0:
            self._synchronise(weights)

    def update(self) -> None:
        super().step()

    def _synchronise(self, weights: list[Tensor]) -> None:
        slow = [self.state[weight]["slow"] for weight in weights]
        torch._foreach_lerp_(slow, weights, LOOKAHEAD_ALPHA)
        torch._foreach_copy_(weights, slow)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up where `state_dict` was called. Raises ValueError if that was before the first step."""
        if not all(group["taken"] > 0 for group in state_dict["param_groups"]):
            raise ValueError("the optimizer has taken no step")
        super().load_state_dict(state_dict)


class Adam(Stepping, torch.optim.Adam):
    """`keras.optimizers.Adam`: torch's with Keras's epsilon and step size.

    A group's `lr` is Keras's learning rate: schedulers read and write it as usual.
    """

    default_decay = None

    def __init__(self, params, lr: float, lookahead: bool = False, **_):
        super().__init__(params, lr, lookahead, betas=BETAS, fused=True)

    def update(self) -> None:
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            t, (beta_1, beta_2) = group["taken"], group["betas"]
            # Difference 1: Keras adds epsilon to sqrt(v), torch to sqrt(v) / sqrt(1 - beta_2**t).
            group["eps"] = EPSILON / math.sqrt(1 - beta_2**t)
            # Keras rounds both betas to float32 where it raises them to the power of the step, and nowhere else: at
            # t = 1 its step size is 7e-6 below torch's.
            rounded_1, rounded_2 = float(np.float32(beta_1)), float(np.float32(beta_2))
            keras_size = math.sqrt(1 - rounded_2**t) / (1 - rounded_1**t)
            torch_size = math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
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
    """`keras.optimizers.SGD(momentum=0.9, nesterov=True)`: torch's, with the learning rate inside the velocity."""

    def __init__(self, params, lr: float, lookahead: bool = False, **_):
        super().__init__(params, lr, lookahead, momentum=MOMENTUM, nesterov=True, fused=True)

    def update(self) -> None:
        # Difference 12: Keras's velocity has the rate in it, torch's buffer has not, so that after a change of the rate
        # the two part. Here the rate goes into the gradients, and torch's own is 1.
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
            torch._foreach_mul_(gradients, rate)
            group["weight_decay"] *= rate
            group["lr"] = 1.0
        try:
            super().update()
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
