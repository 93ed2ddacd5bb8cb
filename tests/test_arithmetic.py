"""train() called from Python: whatever torch was set to before, the run equals the command's; settings come back."""

import contextlib
import signal
import threading

import pytest
import torch
from torch import backends

import data
import options
import train
from cli.errors import BadInput, Interrupted
from metrics import Objective
from running import arithmetic


@pytest.fixture(scope="module")
def run(little, tmp_path_factory):
    """Train a run of one epoch; returns the bytes of its history and of its best weights."""

    def trained():
        out = tmp_path_factory.mktemp("arithmetic") / "run"
        train.train(options.Options(data=str(little), epochs=1, out=out))
        return (out / "history.csv").read_bytes(), (out / "best_weights.npz").read_bytes()

    return trained


@pytest.fixture(scope="module")
def undisturbed(run):
    return run()


def settings():
    """Everything that a user may have set, as torch reports it."""
    values = [torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    values += [torch.is_autocast_enabled("cpu"), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]
    values += [backends.cudnn.benchmark, backends.mkldnn.enabled, backends.fp32_precision]
    for getter in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        with contextlib.suppress(RuntimeError):  # torch refuses if older and newer names of a setting were mixed
            values.append(getter())
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return values + [part.fp32_precision for part in parts] + torch.get_rng_state().tolist()


@contextlib.contextmanager
def set_to(setter, value, usual):
    setter(value)
    try:
        yield
    finally:
        setter(usual)


def attribute(owner, name):
    return lambda value: setattr(owner, name, value)


BEFORE = {
    "float64 by default": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "medium matmul precision": lambda: set_to(torch.set_float32_matmul_precision, "medium", "highest"),
    "bfloat16 in oneDNN": lambda: set_to(attribute(backends.mkldnn.conv, "fp32_precision"), "bf16", "none"),
    "TF32 everywhere": lambda: set_to(attribute(backends, "fp32_precision"), "tf32", "none"),
    "no oneDNN": lambda: set_to(attribute(backends.mkldnn, "enabled"), False, True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: set_to(torch.use_deterministic_algorithms, True, False),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_run_is_the_same_under_any_torch_settings_and_leaves_them_as_they_were(name, run, undisturbed):
    with BEFORE[name]():
        before = settings()
        assert run() == undisturbed
        assert settings() == before


@pytest.mark.precision
def test_mixed_precision_inside_another_autocast_uses_the_current_weights_at_each_step():
    layer = torch.nn.Linear(12, 3)
    network = torch.nn.Sequential(torch.nn.Flatten(), layer)
    batch = data.Batch(torch.ones(4, 3, 2, 2), torch.zeros(4, dtype=torch.long), 4)
    objective = Objective(0.0, mixed_precision=True)
    with torch.autocast("cpu", enabled=False):  # as a run does around its steps
        objective(network, batch)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        logits, _ = objective(network, batch)
    assert not logits.any()


def test_the_thread_count_is_restored_after_a_run_with_its_own(little, tmp_path):
    usual = torch.get_num_threads()
    train.train(options.Options(data=str(little), epochs=1, out=tmp_path / "run", threads=usual + 1))
    assert torch.get_num_threads() == usual


def test_an_interruption_while_torch_imports_its_compiler_is_not_masked_by_a_second_import(monkeypatch):
    def imports(*_, **__):
        raise AttributeError("module 'torch._dynamo' has no attribute 'utils'")

    monkeypatch.setattr(torch, "use_deterministic_algorithms", imports)
    with (
        pytest.raises(Interrupted),
        arithmetic.of_run(torch.device("cpu"), None, tf32=False, deterministic=False),
    ):
        raise Interrupted(signal.SIGINT)


def test_a_second_run_at_the_same_time_in_the_same_process_is_refused(run, little, tmp_path):
    refusals = []

    def second():
        with pytest.raises(BadInput, match="another run is active in this process") as refusal:
            train.train(options.Options(data=str(little), epochs=1, out=tmp_path / "second"))
        refusals.append(refusal)

    with arithmetic.of_run(torch.device("cpu"), None, tf32=False, deterministic=False):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refusals) == 1
    assert not (tmp_path / "second").exists()


def test_a_default_device_of_torch_other_than_the_cpu_is_refused(run):
    with torch.device("meta"), pytest.raises(BadInput, match="torch makes tensors on meta by default"):
        run()
