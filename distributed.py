"""torchrun's processes at work on one run; where there is one process, every call here does nothing."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)  # for a machine that falls silent; a process that ends is noticed at once


class LostError(Exception):
    """Another process has ended, or does not answer."""


class FirstError(Exception):
    """The first process failed at what it does for all, and has said why."""


def launched() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """This process's number, from 0; the first one writes and prints."""
    return int(os.environ["RANK"]) if launched() else 0


def local(device: torch.device) -> torch.device:
    """This process's own CUDA device for a `cuda` without a number, else `device`."""
    if launched() and device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of torchrun's processes within the block; raises LostError if the others cannot be reached."""
    if launched():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else nccl would take the first GPU for every process
        with _talking():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    if launched():  # not after an exception: the others may not be there to take leave of
        dist.destroy_process_group()


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LostError(f"another process has ended or does not answer ({reason:.200})") from None


def first(call: Callable[[], object]) -> object:
    """Let the first process alone make the `call`, and return what it returned on all.

    What it raises, it raises there; the others raise FirstError.
    """
    if not launched():
        return call()
    outcome = [None, None]
    try:
        if rank() == 0:
            outcome = [True, call()]
    finally:
        with _talking():
            dist.broadcast_object_list(outcome)
    if not outcome[0]:
        raise FirstError
    return outcome[1]


def total(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors, the same bits on each."""
    if not launched():
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    with _talking():
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def total_gradients(model: nn.Module) -> None:
    """Put the sum of all processes' gradients into each parameter's."""
    if launched():
        gradients = [parameter.grad for parameter in model.parameters()]
        sums = total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, sums.split([len(g.flatten()) for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def unify(model: nn.Module) -> None:
    """Give all processes the first one's weights, and BatchNorm the figures of the whole batch."""
    if launched():
        for tensor in model.state_dict().values():
            with _talking():
                dist.broadcast(tensor, 0)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.__class__ = _BatchNorm2d  # weights, names and settings stay


class _Total(torch.autograd.Function):
    """`total`, through which gradients flow."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        return total(tensor)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return total(gradient)  # each process's loss depends on every process's tensor


class _BatchNorm2d(nn.BatchNorm2d):
    """torch's, with mean and variance in training over all processes' slices; SyncBatchNorm is for CUDA alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(self.weight.dtype)  # bfloat16 comes in under autocast
        axes = (0, 2, 3)
        *_, count = sums = _Total.apply(torch.cat([x.sum(axes), x.new_full((1,), x.numel() / x.shape[1])]))
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)
