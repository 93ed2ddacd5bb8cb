"""BatchNormalization as Keras computes it; running/distributed.py has it for several processes."""

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Keras's BatchNormalization; `state_dict` has the names of torch's."""

    def __init__(self, channels: int):
        # Difference 10: epsilon and momentum are Keras's; torch's momentum is 1 - Keras's.
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        # Difference 14: Keras averages the biased variance of each batch, torch the unbiased one, n / (n - 1) times as
        # large. torch puts that into `added`, times momentum; running_var itself, changed later, would spoil backward.
        added, n = torch.zeros_like(self.running_var), x.numel() // x.shape[1]
        where = (self.weight, self.bias, self.running_mean, added)
        x = torch.batch_norm(x, *where, True, self.momentum, self.eps, torch.backends.cudnn.enabled)
        with torch.no_grad():
            self.running_var.mul_(1 - self.momentum)
            if n > 1:  # one value varies by 0, in Keras too; torch divides that by 0
                self.running_var.add_(added, alpha=(n - 1) / n)
        return x
