"""Adam, AdamW and SGD as Keras computes them, with decoupled weight decay; Muon, which differs from Keras's."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-7
MOMENTUM = float(np.float32(0.9))  # Keras keeps it in float32, whatever the model's dtype
MUON_MOMENTUM, NEWTON_SCHULZ_STEPS = 0.6, 3


class Stepping:
    """Mixin that adds decoupled weight decay and a step count to a torch optimizer, whose own step becomes `update`.

    It precedes the optimizer in the bases. It adds to each parameter group, where torch's `state_dict` saves it:
    - `decoupled_decay`: each step first subtracts this fraction of each weight, times the learning rate. torch's own
      `weight_decay` must be coupled, since it applies the L2 penalty; if there is this decay, it is 0 within `update`;
    - `taken`: the number of steps taken.
    """

    default_decay: ClassVar[float | None] = 0.0  # of --weight-decay; None: not supported
    keras_settings: ClassVar[dict | None] = {}  # that make Keras's optimizer of the same name equal; None: none do
    mixed_precision = False  # whether a step may multiply matrices in bfloat16

    def __init__(self, params, lr: float, **settings):
        super().__init__(params, lr=lr, **settings)
        for group in self.param_groups:
            group.setdefault("decoupled_decay", 0.0)
            group["taken"] = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; afterwards, each group's `lr` is what it was before."""
        coupled = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["taken"] += 1
            if group["decoupled_decay"]:
                # Difference 11: Keras computes L2's gradient before the decay, and keeps the decay factor in float32.
                moving = [weight for weight in group["params"] if weight.grad is not None]
                torch._foreach_add_([weight.grad for weight in moving], moving, alpha=group["weight_decay"])
                group["weight_decay"] = 0.0
                torch._foreach_mul_(group["params"], 1 - group["lr"] * float(np.float32(group["decoupled_decay"])))
        self.update()
        for group, decay in zip(self.param_groups, coupled, strict=True):
            group["weight_decay"] = decay

    def update(self) -> None:
        super().step()

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state that `state_dict` returned. Raises ValueError if that was before the first step."""
        if not all(group["taken"] > 0 for group in state_dict["param_groups"]):
            raise ValueError("the optimizer has taken no step")
        super().load_state_dict(state_dict)


class Adam(Stepping, torch.optim.Adam):
    """`keras.optimizers.Adam`: torch's with Keras's epsilon and step size.

    A group's `lr` is Keras's learning rate: schedulers read and write it as usual.
    """

    default_decay = None

    def __init__(self, params, lr: float):
        super().__init__(params, lr, betas=BETAS, fused=True)

    def update(self) -> None:
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            t = group["taken"]
            beta_1, beta_2 = group["betas"]
            # Difference 1: Keras adds epsilon to sqrt(v), torch to sqrt(v) / sqrt(1 - beta_2**t).
            group["eps"] = EPSILON / math.sqrt(1 - beta_2**t)
            # Keras rounds both betas to float32 where it raises them to the power of the step, and nowhere else: at
            # t = 1 its step size is 7e-6 below torch's.
            rounded_1, rounded_2 = float(np.float32(beta_1)), float(np.float32(beta_2))
            keras_size = math.sqrt(1 - rounded_2**t) / (1 - rounded_1**t)
            torch_size = math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            group["lr"] *= keras_size / torch_size
        super().update()
        for group, (lr, eps) in zip(self.param_groups, before, strict=True):
            group["lr"], group["eps"] = lr, eps


class AdamW(Adam):
    """Adam with decoupled weight decay, by default that of `keras.optimizers.AdamW`."""

    default_decay = 0.004


class SGD(Stepping, torch.optim.SGD):
    """`keras.optimizers.SGD(momentum=0.9, nesterov=True)`: torch's, with the learning rate inside the velocity."""

    keras_settings: ClassVar[dict | None] = {"momentum": MOMENTUM, "nesterov": True}

    def __init__(self, params, lr: float):
        super().__init__(params, lr, momentum=MOMENTUM, nesterov=True, fused=True)

    def update(self) -> None:
        # Difference 12: Keras's velocity includes the learning rate, torch's buffer does not, so the two diverge when
        # the rate changes. Here, the gradients are multiplied by the rate, and torch's own rate is 1.
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
            torch._foreach_mul_(gradients, rate)
            group["weight_decay"] *= rate
            group["lr"] = 1.0
        super().update()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


class Muon(SGD):
    """Muon for convolution kernels (4 dimensions), SGD at two thirds of the rate for all other weights.

    Each step scales a kernel to the norm sqrt(output channels), then moves it by `lr` along the matrix nearest to its
    momentum that has orthonormal rows or columns. Muon: K. Jordan et al. 2024, kellerjordan.github.io/posts/muon; the
    norm and both momenta: their airbench94.
    """

    default_decay = None
    keras_settings = None  # Keras's Muon fixes no norm, and uses Adam for all other weights

    def __init__(self, params, lr: float):
        groups = []
        for group in params:
            kernels = [weight for weight in group["params"] if weight.ndim == 4]
            others = [weight for weight in group["params"] if weight.ndim != 4]
            groups.append(group | {"params": kernels, "muon": True, "momentum": 0.0, "nesterov": False})
            groups.append(group | {"params": others, "muon": False, "momentum": 0.85, "lr": lr * 2 / 3})
        super().__init__([group for group in groups if group["params"]], lr)

    def update(self) -> None:
        for group in self.param_groups:
            if group["muon"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._orthogonalise_gradient(weight, group["weight_decay"])
                group["weight_decay"] = 0.0
        super().update()

    def _orthogonalise_gradient(self, weight: Tensor, weight_decay: float) -> None:
        gradient = weight.grad.add(weight, alpha=weight_decay)
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        state["velocity"].mul_(MUON_MOMENTUM).add_(gradient)
        direction = gradient.add(state["velocity"], alpha=MUON_MOMENTUM)
        precision = torch.bfloat16 if self.mixed_precision else weight.dtype
        weight.grad.copy_(orthogonalised(direction.flatten(1), precision).view(weight.shape))
        weight.mul_(math.sqrt(len(weight)) / weight.norm())


def orthogonalised(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """Return `matrix` with all singular values brought near 1, by Newton-Schulz iteration in `precision`."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's, also in torch.optim.Muon, which accepts only matrices
    x = matrix.to(precision)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrix.dtype)


OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD, "muon": Muon}
