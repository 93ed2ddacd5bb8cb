"""Training and evaluation as on a GPU, checked without one: on fake `cuda` tensors, and by counting launches."""

import collections
import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import data
import metrics
import train
from callbacks import make_schedule
from model import build_model, parameter_groups
from optim import OPTIMIZERS
from options import Options

IMAGES = 68  # of 32x32, in batches of 60: the last one is short
OPTIMIZERS_AND_SCHEDULES = [("adam", "plateau"), ("adamw", "cosine"), ("sgd", "onecycle"), ("muon", "onecycle")]


def split(images=IMAGES):
    random = np.random.default_rng(0)
    return data.as_split(random.integers(0, 256, (images, 32, 32, 3), np.uint8), np.arange(images) % 10)


def draws(augment):
    return data.draw(IMAGES, 0, 0, True, data.Augmentation(32, 32) if augment else None)


@pytest.fixture(scope="module", autouse=True)
def as_with_a_gpu():
    """Autocast asks whether there is a GPU, and torch lacks a fake version of one optimizer's step."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    with contextlib.suppress(RuntimeError):  # a later torch has one
        library.impl("_fused_sgd_", lambda *_, **__: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        yield
    library._destroy()


def on_fake_cuda(model):
    """Move a network to `cuda`: Module.to would swap tensors, which fake ones do not allow."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cuda")
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device="cuda")
    return model


class NoCopyToTheHost(TorchDispatchMode):
    """Refuses copies to the CPU: fake tensors allow them, but on a real GPU the host would wait for each."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [value for value in args if isinstance(value, torch.Tensor)]
        on_cuda = any(value.device.type == "cuda" for value in given)
        if on_cuda and isinstance(result, torch.Tensor) and result.device.type == "cpu":
            raise AssertionError(f"{function} copies from device cuda to the CPU")
        return result


class UnreadTally(metrics.Tally):
    """`total` reads values, which fake tensors lack: it is the one wait of a short epoch."""

    def total(self):
        self._add_up()
        assert {self.sums.device.type, self.pairs.device.type} == {"cuda"}
        assert (self.sums.dtype, self.pairs.dtype) == (torch.float64, torch.int64)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Train an epoch and evaluate on fake tensors: whatever mixes devices, or needs a value on the host, raises.

    Without a driver, autograd's engine fails there, so gradients are made up.
    """

    def run(model="baseline", optimizer="adam", schedule="plateau", mixed=False):
        network = build_model(model).to(memory_format=torch.channels_last)
        with FakeTensorMode(allow_non_fake_inputs=True):
            network = on_fake_cuda(network)

            def backward(*_, **__):
                for parameter in network.parameters():
                    if parameter.requires_grad:
                        parameter.grad = torch.empty_like(parameter)

            monkeypatch.setattr(torch.Tensor, "backward", backward)
            monkeypatch.setattr(train, "Tally", UnreadTally)
            part = split().to(torch.device("cuda"))
            own = OPTIMIZERS[optimizer](parameter_groups(network, 1e-3), 1e-3)
            own.mixed_precision = mixed
            given = Options(model=model, schedule=schedule, lookahead=True)
            callbacks = train.make_callbacks(given, network, make_schedule(schedule, own, vars(given), 9, 3))
            objective = metrics.Objective(1e-3, 0.1, mixed)
            batches = data.batches(part, 60, *draws(augment=model != "baseline"))
            with NoCopyToTheHost():
                train.train_epoch(network, batches, objective, own, callbacks.values())
                train.evaluate(network, part, objective, mirrored=True)
            values = [value for state in own.state.values() for value in state.values()]
            assert {value.device.type for value in values if isinstance(value, torch.Tensor)} == {"cuda"}
            on_cpu = torch.utils._pytree.tree_map_only(torch.Tensor, lambda value: value.to("cpu"), own.state_dict())
            resumed = OPTIMIZERS[optimizer](parameter_groups(network, 1e-3), 1e-3)
            resumed.load_state_dict(on_cpu)  # a checkpoint is read to the CPU
            backward()
            resumed.step()

    return run


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("optimizer", "schedule"), OPTIMIZERS_AND_SCHEDULES)
@pytest.mark.parametrize("model", ["baseline", "improved", "whitened"])
def test_on_a_gpu_no_step_mixes_devices_or_waits_for_a_value(model, optimizer, schedule, mixed, fake_cuda):
    fake_cuda(model, optimizer, schedule, mixed)


def asking_for_a_value(tally, logits, loss, labels):
    if not bool(loss.isfinite()):
        raise AssertionError
    return tally, logits, loss, labels


def indexing_by_a_mask(tally, logits, loss, labels):
    return tally, logits[labels >= 0], loss, labels


def labels_on_the_cpu(tally, logits, loss, labels):
    return tally, logits, loss, labels.to("cpu")


def a_loss_copied_to_the_cpu(tally, logits, loss, labels):
    return tally, logits, loss.to("cpu").to("cuda"), labels


MISTAKES = [asking_for_a_value, indexing_by_a_mask, labels_on_the_cpu, a_loss_copied_to_the_cpu]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_step_that_mixes_devices_or_waits_for_a_value_is_caught(mistake, fake_cuda, monkeypatch):
    add = UnreadTally.add
    monkeypatch.setattr(UnreadTally, "add", lambda *args: add(*mistake(*args)))
    with pytest.raises(Exception, match=r"device|_local_scalar_dense|nonzero"):
        fake_cuda()


def test_an_order_that_is_left_on_the_cpu_is_found(fake_cuda, monkeypatch):
    to, draw = torch.Tensor.to, data.draw

    def leaving_the_order(tensor, *args, **options):
        return tensor if tensor.dtype == torch.int64 and len(tensor) == IMAGES else to(tensor, *args, **options)

    def with_a_patched_order(*args):
        monkeypatch.setattr(torch.Tensor, "to", leaving_the_order)  # the split is on the device by now
        return draw(*args)

    monkeypatch.setattr(data, "draw", with_a_patched_order)
    with pytest.raises(Exception, match="device"):
        fake_cuda()


# --- launches ---------------------------------------------------------------------------------------------------------

# Operations that launch nothing, and those that launch more than one kernel: cuDNN adds a bias in a separate kernel,
# and a convolution's backward takes two or three.
VIEWS = {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze"}
VIEWS |= {"squeeze", "detach", "alias", "as_strided", "split", "unbind", "_reshape_alias", "lift_fresh", "unfold"}
VIEWS |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_", "is_same_size"}
KERNELS = {"convolution": 2, "convolution_backward": 3}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero"}


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch, and what would make the host wait for it."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = 0, collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name not in VIEWS and "::" not in name:
            self.count += KERNELS.get(name, 1)
        if name in WAITS:
            self.waits[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setitem(metrics.CHECK_EVERY, "cpu", metrics.CHECK_EVERY["cuda"])


def launches_of_a_step(model, optimizer, mixed):
    """Return how many kernels the second step launches, how many of them for the tally, and what makes it wait."""
    network = build_model(model).to(memory_format=torch.channels_last)
    own = OPTIMIZERS[optimizer](parameter_groups(network, 1e-3), 1e-3)
    own.mixed_precision = mixed
    objective = metrics.Objective(1e-3, 0.0, mixed)
    tally = metrics.Tally(network, 1e-3)
    network.train()
    for batch in itertools.islice(data.batches(split(), 8, *draws(augment=model != "baseline")), 2):
        with Launches() as step:
            logits, loss = objective(network, batch)
            own.zero_grad()
            (loss / batch.size).backward()
            own.step()
        with Launches() as tallying:
            tally.add(logits, loss, batch.labels)
    return step.count + tallying.count, tallying.count, step.waits + tallying.waits


@pytest.mark.parametrize(
    ("model", "optimizer", "mixed", "launches", "of_the_tally"),
    [
        ("baseline", "adam", False, 50, 7),
        ("improved", "adam", False, 119, 11),
        ("whitened", "muon", True, 292, 11),
    ],
)
def test_a_step_launches_the_expected_number_of_kernels_and_never_waits(
    model, optimizer, mixed, launches, of_the_tally, as_on_a_gpu
):
    found, tallying, waits = launches_of_a_step(model, optimizer, mixed)
    assert not waits
    assert (found, tallying) == (launches, of_the_tally)
