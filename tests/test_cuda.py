"""What a GPU demands of the code: as much as can be checked on the CPU, and the rest on a GPU."""

import argparse
import collections
import os
import shutil

import pytest
import torch
from conftest import SHAPE
from torch.nn.modules.module import register_module_forward_hook

import data
import metrics
import options
import sources
import train
from callbacks import make_schedule
from cli.errors import BadInput
from comparing import histories
from model import build_model, parameter_groups
from optim import OPTIMIZERS
from running import arithmetic, machine
from running.outcome import CHECKPOINT, ERROR, HISTORY, WEIGHTS
from sweeping import jobs

# Calls that make the host wait for a GPU; bincount needs the greatest value.
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "bincount", "__bool__", "__int__", "__float__", "__index__")
WAITS += ("unique", "masked_select", "argwhere")  # the size of their result depends on the values

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which tests see only by -m cuda")


@pytest.fixture
def waits(monkeypatch):
    """Count the calls of each of WAITS on any tensor, as a method or as torch's function."""
    counts = collections.Counter()

    def counting(name, method):
        def wrapper(*args, **options):
            counts[name] += 1
            return method(*args, **options)

        return wrapper

    for owner in (torch, torch.Tensor):
        for name in WAITS:
            if callable(getattr(owner, name, None)):  # torch.cpu is a module
                monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return counts


@pytest.mark.parametrize("flags", ["", "--model improved --augment --optimizer sgd --schedule onecycle --lookahead"])
def test_the_host_waits_for_the_device_as_often_in_a_long_epoch_as_in_a_short_one(flags, npz, waits, monkeypatch):
    given = options.parse(flags.split()).checked()
    arrays = sources.choose(str(npz)).load()
    augmentation = data.Augmentation(16, 16, given.shift) if given.augment else None

    def counted(images, every):
        monkeypatch.setitem(metrics.CHECK_EVERY, "cpu", every)
        part = data.as_split(arrays.x_train[:images], arrays.y_train[:images])
        model = build_model(given.model, SHAPE)
        optimizer = OPTIMIZERS[given.optimizer](parameter_groups(model, given.l2), given.lr)
        schedule = make_schedule(given.schedule, optimizer, vars(given), epochs=9, steps_per_epoch=11)
        callbacks = train.make_callbacks(given, model, schedule).values()
        draws = data.draw(images, seed=0, epoch=0, augmentation=augmentation)
        objective = metrics.Objective(given.l2)
        waits.clear()
        train.train_epoch(model, data.batches(part, 16, *draws), objective, optimizer, callbacks)
        train.evaluate(model, part, objective)
        return dict(waits)

    short = counted(32, every=100)
    assert sum(short.values()) < 15  # a few figures, read when the epoch is over
    assert counted(320, every=100) == short
    # A wait in every step would be counted: here 20 steps and the evaluation's two batches.
    assert counted(320, every=1)["tolist"] == short["tolist"] + 22


def test_the_figures_of_an_evaluation_do_not_depend_on_its_batch_size(npz, monkeypatch):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_train, arrays.y_train)
    network = build_model("improved", SHAPE).to(torch.float64)
    figures = []
    for size in (256, 7, train.EVALUATION_PIXELS // (16 * 16)):  # the last one is the size on a GPU
        monkeypatch.setattr(train, "evaluation_batch", lambda _, size=size: size)
        figures.append(train.evaluate(network, part, metrics.Objective(1e-3)))
    for other in figures[1:]:
        assert other.confusion == figures[0].confusion
        assert other.loss == pytest.approx(figures[0].loss, rel=1e-13)  # float64 sums in another order


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "pass a smaller --batch-size"),
        (torch.AcceleratorError("CUDA error: device lost\nmore"), "the device failed (CUDA error: device lost)"),
    ],
)
def test_a_device_failure_ends_the_run_with_one_line_and_keeps_the_last_checkpoint(
    error, message, finished, npz, tmp_path, capsys, monkeypatch
):
    out = shutil.copytree(finished, tmp_path / "run")
    before = (out / CHECKPOINT).read_bytes()

    def failing(*_):
        raise error

    monkeypatch.setattr(train, "train_epoch", failing)
    assert train.main(["--data", str(npz), "--epochs", "3", "--out", str(out), "--resume"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (out / CHECKPOINT).read_bytes() == before
    assert str(error).splitlines()[0] in (out / ERROR).read_text()


def test_tf32_is_off_unless_asked_for(npz, tmp_path, monkeypatch):
    seen, train_epoch = [], train.train_epoch

    def looking(*arguments):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return train_epoch(*arguments)

    monkeypatch.setattr(train, "train_epoch", looking)
    arguments = ["--data", str(npz), "--epochs", "1", "--out"]
    for number, flags in enumerate(([], ["--tf32"], [])):
        assert train.main([*arguments, str(tmp_path / str(number)), *flags]) == 0
    assert seen == [(False, False), (True, True), (False, False)]


def test_a_deterministic_run_on_the_cpu_equals_the_usual_run_bit_for_bit(npz, tmp_path):
    arguments = ["--data", str(npz), "--model", "improved", "--epochs", "1", "--device", "cpu", "--out"]
    seen = []
    handle = register_module_forward_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    try:
        for name, flags in (("usual", []), ("deterministic", ["--deterministic"])):
            seen.clear()
            assert train.main([*arguments, str(tmp_path / name), *flags]) == 0
            assert {*seen} == {bool(flags)}
    finally:
        handle.remove()
        torch.use_deterministic_algorithms(False)
    for name in (HISTORY, WEIGHTS):
        assert (tmp_path / "usual" / name).read_bytes() == (tmp_path / "deterministic" / name).read_bytes()


def test_torch_compile_without_a_compiler_is_refused_in_one_line(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train.main(["--data", str(npz), "--compile"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--compile needs a C++ compiler" in line


@pytest.mark.parametrize(("compiler", "named"), [("clang++", None), ("g++", None), ("own", "own")])
def test_torch_compile_accepts_the_compilers_that_torch_itself_would_use(compiler, named, tmp_path, monkeypatch):
    (tmp_path / compiler).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if named:
        monkeypatch.setenv("CXX", named)
    assert options.parse(["--compile"]).checked().compile


def test_torch_compile_without_the_python_headers_is_refused_with_the_remedy(npz, tmp_path, capsys, monkeypatch):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(options.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert train.main(["--data", str(npz), "--compile"]) == 2
    assert f"--compile needs {tmp_path}/Python.h: install it (apt: python3-dev)" in capsys.readouterr().err


WITHOUT_CUDA = {
    "a CPU build of torch": ({"torch.version.cuda": None}, {}, "this torch is built for CPUs"),
    "all GPUs hidden": ({}, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides all"),
    "no driver": (
        {"torch.cuda.init": RuntimeError("Found no NVIDIA driver on your system. Please")},
        {},
        "Found no NVIDIA",
    ),
}


@pytest.mark.parametrize(("changes", "variables", "why"), WITHOUT_CUDA.values(), ids=WITHOUT_CUDA)
def test_the_reason_for_a_missing_cuda_device_is_reported(changes, variables, why, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, value in changes.items():
        monkeypatch.setattr(name, raising(value) if isinstance(value, Exception) else value)
    assert train.main(["--data", str(npz), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert f"No CUDA device: training on the CPU ({why}" in capsys.readouterr().out
    assert train.main(["--data", str(npz), "--device", "cuda", "--out", str(tmp_path / "other")]) == 2
    assert f"torch sees 0 CUDA devices of 1 needed ({why}" in capsys.readouterr().err


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_a_gpu_that_torch_has_no_kernels_for_is_skipped_by_auto_and_refused_if_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch, "ones", raising(RuntimeError("CUDA error: no kernel image is available\nmore")))
    assert machine.device("auto") == torch.device("cpu")
    assert machine.why_no_cuda() == (
        "Tesla V100 is there, but torch cannot compute on it: CUDA error: no kernel image is available"
    )
    with pytest.raises(argparse.ArgumentTypeError, match=r"'cuda' cannot be used \(Tesla V100 is there, but"):
        machine.device("cuda")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_cpu_quota_of_a_container_limits_threads_and_concurrent_runs(files, quota, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert machine.cores() == (quota or 64)
    assert jobs.places(torch.device("cpu"), 1, None, 4)[1] == (quota or 64)


@pytest.mark.slow
def test_a_compiled_run_gives_the_figures_of_the_usual_one(npz, tmp_path, monkeypatch):
    # Code compiled with another ATEN_CPU_CAPABILITY corrupts memory: torch 2.14 does not tell the two apart.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    needs_a_compiler()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    flags = ["--epochs", "1", "--batch-size", "60"]  # 256 images: the last batch has 16
    same_histories(npz, tmp_path, flags, [*flags, "--compile"], 1e-4)  # other float32 kernels
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each batch size, no dynamic shapes


def same_histories(npz, tmp_path, flags, other_flags, tolerance):
    """Train twice without dropout; assert that the histories are equal to within a relative `tolerance`."""
    arguments = ["--data", str(npz), "--dropout", "0", "--out"]
    assert train.main([*arguments, str(tmp_path / "one"), *flags]) == 0
    assert train.main([*arguments, str(tmp_path / "other"), *other_flags]) == 0
    one, other = (histories.read(tmp_path / name).history for name in ("one", "other"))
    for column in ("loss", "val_loss", "learning_rate"):
        assert other[column] == pytest.approx(one[column], rel=tolerance), column


def needs_a_compiler():
    try:
        options.parse(["--compile"]).checked()
    except BadInput as error:
        pytest.skip(f"needs what --compile needs: {error}")


@pytest.mark.parametrize("model", ["baseline", "improved", "whitened"])
@pytest.mark.cuda
@needs_a_gpu
def test_whole_runs_in_float64_are_alike_on_cuda_and_on_the_cpu(model, npz, tmp_path):
    # 256 images: the last batch has 16. Products on the two differ by some 1e-16, which 15 steps amplify.
    flags = ["--model", model, "--dtype", "float64", "--epochs", "3", "--batch-size", "60", "--device"]
    same_histories(npz, tmp_path, [*flags, "cpu"], [*flags, "cuda"], 1e-8)


@pytest.mark.parametrize("model", ["baseline", "improved", "whitened"])
@pytest.mark.cuda
@needs_a_gpu
def test_the_first_step_in_float32_is_alike_on_cuda_and_on_the_cpu(model, npz, tmp_path):
    # Its loss and gradients alone: later steps amplify rounding, in `improved` up to 2e-2 within twelve of them.
    arrays = sources.choose(str(npz)).load()
    first = []
    with arithmetic.of_run(torch.device("cuda"), None, False, False):
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            network = build_model(model, SHAPE, dropout=0.0).to(device, memory_format=torch.channels_last)
            part = data.as_split(arrays.x_train[:60], arrays.y_train[:60]).to(torch.device(device))
            (batch,) = data.batches(part, 60)
            _, loss = metrics.Objective(1e-3)(network.train(), batch)
            loss.backward()
            weights = [weight for weight in network.parameters() if weight.requires_grad]
            first.append((loss.item(), [weight.grad.cpu() for weight in weights]))
    (loss, gradients), (other_loss, other_gradients) = first
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(gradients, other_gradients, strict=True):
        # Relative to the largest: a sum of many products of both signs keeps the rounding of the largest of them.
        assert (one - other).abs().max() <= 1e-3 * one.abs().max()


@pytest.mark.cuda
@needs_a_gpu
def test_evaluation_gives_the_same_figures_on_cuda_as_on_the_cpu(npz):
    arrays = sources.choose(str(npz)).load()
    part = data.as_split(arrays.x_train, arrays.y_train)
    network = build_model("improved", SHAPE).to(torch.float64)
    on_cpu = train.evaluate(network, part, metrics.Objective(1e-3))
    on_cuda = train.evaluate(network.to("cuda"), part.to(torch.device("cuda")), metrics.Objective(1e-3))
    assert on_cuda.confusion == on_cpu.confusion
    assert on_cuda.loss == pytest.approx(on_cpu.loss, rel=1e-12)  # float64, other batches and kernels


@pytest.mark.cuda
@needs_a_gpu
def test_a_compiled_run_on_cuda_gives_the_figures_of_the_usual_one(npz, tmp_path):
    needs_a_compiler()
    flags = ["--dtype", "float64", "--epochs", "3", "--batch-size", "60", "--device", "cuda"]
    same_histories(npz, tmp_path, flags, [*flags, "--compile"], 1e-8)


@pytest.mark.parametrize("model", ["baseline", "improved"])
@pytest.mark.cuda
@needs_a_gpu
def test_a_deterministic_run_on_cuda_is_resumed_bit_for_bit(model, npz, tmp_path):
    arguments = ["--data", str(npz), "--model", model, "--device", "cuda", "--deterministic", "--out"]
    for epochs in ("1", "3"):
        assert train.main([*arguments, str(tmp_path / "run"), "--epochs", epochs, "--resume"]) == 0
    assert train.main([*arguments, str(tmp_path / "whole"), "--epochs", "3"]) == 0
    for name in (HISTORY, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.cuda
@needs_a_gpu
def test_running_out_of_gpu_memory_is_reported_in_one_line(cli, npz, tmp_path):
    process = cli(
        "--data", npz, "--device", "cuda", "--out", tmp_path / "run",
        env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.0001"},
    )  # fmt: skip
    assert process.returncode == 1
    # Some versions of torch warn that the variable has another name now.
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("train.py: ")]
    assert "out of memory" in line
    assert "--batch-size" in line
    assert "Traceback" not in process.stderr
