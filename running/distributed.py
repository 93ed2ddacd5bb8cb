"""Several processes of torchrun training one run; with one process, every call here does nothing."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cli.errors import BadInput, Failure, Lost, first_line
from running import signals

TIMEOUT = timedelta(minutes=10)  # for a machine that stops responding; a process that ends is noticed at once


def launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return this process's number, from 0; the first process writes and prints."""
    return int(os.environ["RANK"]) if launched() else 0


def first_here() -> bool:
    """Return whether this process is the first one on its machine."""
    return not launched() or int(os.environ["LOCAL_RANK"]) == 0


def size_here() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def own_device(device: torch.device) -> torch.device:
    """Return this process's own CUDA device for `cuda` without a number, else `device`."""
    if launched() and device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join torchrun's other processes within the block. Raises Lost if they cannot be reached."""
    if dist.is_torchelastic_launched():
        signals.end_with_parent()
    if launched():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # otherwise NCCL would use the first GPU for every process
        with _talking():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    if launched():  # not after an exception: the other processes may have ended
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """Exit with the code `code`; one of several processes skips the interpreter's cleanup.

    In that cleanup, torch 2.14 may abort a process that has finished its work (once in 18 runs of two processes on a
    busy machine), and torchrun then stops the others.
    """
    if not launched():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no exception class of its own
        time.sleep(2 * signals.PAUSE)  # a signal that ended the others may arrive here too, and explains more
        raise Lost(f"another process has ended or does not answer ({first_line(error):.200})") from None


def first(call: Callable[[], object]) -> object:
    """Call `call` in the first process only, and return its result in all processes.

    If it raises, the first process raises that error, and the others raise a Failure that is not reported.
    """
    if not launched():
        return call()
    outcome = [False, None]
    try:
        if rank() == 0:
            outcome = [True, call()]
    finally:
        with _talking():
            dist.broadcast_object_list(outcome)
    succeeded, result = outcome
    if not succeeded:
        failure = Failure("the first process has failed")
        failure.shared = True
        raise failure
    return result


def agree(values: dict[str, object]) -> None:
    """Raise BadInput in all processes unless all have the same `values`; the message names what differs, and where."""
    if not launched():
        return
    gathered = [None] * size()
    with _talking():
        dist.all_gather_object(gathered, values)
    for number, others in enumerate(gathered):
        pairs = [(name, others[name], value) for name, value in gathered[0].items() if others[name] != value]
        if pairs:
            differences = ", ".join(f"{name} {other} (process 0: {value})" for name, other, value in pairs)
            refusal = BadInput(f"process {number} has {differences}; give all processes the same")
            refusal.shared = True
            raise refusal


def total(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors, bit-identical in each process."""
    if not launched():
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    with _talking():
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def sum_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient with the sum over all processes."""
    if launched():
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        sums = total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, sums.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def unify(model: nn.Module) -> None:
    """Copy the first process's weights to all processes, and make BatchNorm use statistics of the whole batch."""
    if launched():
        for tensor in model.state_dict().values():
            with _talking():
                dist.broadcast(tensor, 0)
        _replace_batch_norm(model)


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _WholeBatchNorm2d(child))
        else:
            _replace_batch_norm(child)


class _Total(torch.autograd.Function):
    """A differentiable `total`."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        return total(tensor)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return total(gradient)  # each process's loss depends on every process's tensor


class _WholeBatchNorm2d(nn.BatchNorm2d):
    """`layer`, with training statistics over all processes' slices of a batch; SyncBatchNorm is only for CUDA.

    Its running variance averages the biased variances, like Keras's.
    """

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.to(layer.weight)  # its dtype and device
        self.load_state_dict(layer.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dtype = x.dtype
        x = x.to(self.weight.dtype)  # x is bfloat16 under autocast
        axes = (0, 2, 3)
        sums = _Total.apply(torch.cat([x.sum(axes), x.new_full((1,), x.numel() / x.shape[1])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)
