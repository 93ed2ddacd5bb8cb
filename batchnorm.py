"""BatchNormalization as Keras computes it; running/distributed.py has the version for several processes."""

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Keras's BatchNormalization, with the `state_dict` keys of torch's BatchNorm2d."""

    def __init__(self, channels: int):
        # Difference 10: epsilon and momentum are Keras's; torch's momentum is 1 - Keras's.
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        # Difference 14: Keras averages the biased variance of each batch, torch the unbiased one, n / (n - 1) times as
        # large. torch adds momentum times that to `added`; correcting running_var itself later would break backward.
        added, n = torch.zeros_like(self.running_var), x.numel() // x.shape[1]
        where = (self.weight, self.bias, self.running_mean, added)
        x = torch.batch_norm(x, *where, True, self.momentum, self.eps, torch.backends.cudnn.enabled)
        with torch.no_grad():
            self.running_var.mul_(1 - self.momentum)
            if n > 1:  # a single value has variance 0, as in Keras; torch divides 0 by 0
                self.running_var.add_(added, alpha=(n - 1) / n)
        return x
