"""What a GPU asks of the code: as much as can be seen on the CPU, and on a GPU the rest."""

import collections
import os
import shutil

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import data
import metrics
import options
import train
from callbacks import SCHEDULES
from harness import histories
from harness.run import CHECKPOINT, ERROR, HISTORY, WEIGHTS
from model import build_model, parameter_groups
from optim import OPTIMIZERS

# What makes the host wait for a GPU; bincount looks for the greatest value.
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "bincount", "__bool__", "__int__", "__float__", "__index__")
WAITS += ("unique", "masked_select", "argwhere")  # as many values as there turn out to be

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none here")


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
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return counts


@pytest.mark.parametrize("flags", ["", "--model improved --augment --optimizer sgd --schedule onecycle"])
def test_the_host_waits_for_the_device_as_often_in_a_long_epoch_as_in_a_short_one(flags, npz, waits, monkeypatch):
    given = options.parse(flags.split())
    arrays = data.load(str(npz))
    augmentation = data.Augmentation(32, 32, given.shift) if given.augment else None

    def counted(images, every):
        monkeypatch.setitem(metrics.CHECK_EVERY, "cpu", every)
        part = data.as_split(arrays.x_train[:images], arrays.y_train[:images])
        model = build_model(given.model)
        optimizer = OPTIMIZERS[given.optimizer](parameter_groups(model, given.l2), given.lr)
        schedule = SCHEDULES[given.schedule](optimizer, total_steps=99, min_lr=0.0, factor=0.5, patience=3)
        draws = data.draw(images, seed=0, epoch=0, augmentation=augmentation)
        objective = metrics.Objective(given.l2)
        waits.clear()
        train.train_epoch(model, data.batches(part, 16, *draws), objective, optimizer, schedule)
        train.evaluate(model, part, objective)
        return dict(waits)

    short = counted(32, every=100)
    assert sum(short.values()) < 15  # a few figures, read when the epoch is over
    assert counted(320, every=100) == short
    # That many are seen where there are any: 20 steps, and the evaluation's two batches.
    assert counted(320, every=1)["tolist"] == short["tolist"] + 22


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "pass a smaller --batch-size"),
        (torch.AcceleratorError("CUDA error: device lost\nmore"), "the device failed (CUDA error: device lost)"),
    ],
)
def test_a_device_that_fails_ends_the_run_with_one_line_and_keeps_what_was_finished(
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


def test_tf32_is_off_unless_asked_for(npz, tmp_path):
    arguments = ["--data", str(npz), "--epochs", "1", "--out"]
    for number, flags in enumerate(([], ["--tf32"], [])):
        assert train.main([*arguments, str(tmp_path / str(number)), *flags]) == 0
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is bool(flags)


def test_a_deterministic_run_on_the_cpu_is_the_usual_run_to_the_bit(npz, tmp_path):
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
def test_torch_compile_takes_the_compilers_that_torch_would(compiler, named, tmp_path, monkeypatch):
    (tmp_path / compiler).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if named:
        monkeypatch.setenv("CXX", named)
    assert options.parse(["--compile"]).compile


def test_a_compiled_run_gives_the_figures_of_the_usual_one(npz, tmp_path):
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("needs a C++ compiler: neither CXX nor g++ is there")
    same_histories(npz, tmp_path, ["--epochs", "1"], ["--epochs", "1", "--compile"], 1e-4)  # other float32 kernels


def same_histories(npz, tmp_path, flags, other_flags, tolerance):
    """Train twice without dropout; assert histories, dropout off, equal to a relative `tolerance`."""
    arguments = ["--data", str(npz), "--dropout", "0", "--out"]
    assert train.main([*arguments, str(tmp_path / "one"), *flags]) == 0
    assert train.main([*arguments, str(tmp_path / "other"), *other_flags]) == 0
    one, other = (histories.read(tmp_path / name).history for name in ("one", "other"))
    for column in ("loss", "val_loss", "learning_rate"):
        assert other[column] == pytest.approx(one[column], rel=tolerance), column


@pytest.mark.parametrize("model", ["baseline", "improved"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("float64", 1e-8)])
@pytest.mark.cuda
@needs_a_gpu
def test_cuda_and_cpu_train_alike(model, dtype, tolerance, npz, tmp_path):
    # float32 kernels of the two differ by some 1e-6 a product, which 12 steps of Adam multiply.
    flags = ["--model", model, "--dtype", dtype, "--epochs", "3", "--device"]
    same_histories(npz, tmp_path, [*flags, "cpu"], [*flags, "cuda"], tolerance)


@pytest.mark.cuda
@needs_a_gpu
def test_a_compiled_run_on_cuda_gives_the_figures_of_the_usual_one(npz, tmp_path):
    flags = ["--epochs", "3", "--device", "cuda"]
    same_histories(npz, tmp_path, flags, [*flags, "--compile"], 2e-3)


@pytest.mark.parametrize("model", ["baseline", "improved"])
@pytest.mark.cuda
@needs_a_gpu
def test_a_deterministic_run_on_cuda_is_resumed_to_the_bit(model, npz, tmp_path):
    arguments = ["--data", str(npz), "--model", model, "--device", "cuda", "--deterministic", "--out"]
    for epochs in ("1", "3"):
        assert train.main([*arguments, str(tmp_path / "run"), "--epochs", epochs, "--resume"]) == 0
    assert train.main([*arguments, str(tmp_path / "whole"), "--epochs", "3"]) == 0
    for name in (HISTORY, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.cuda
@needs_a_gpu
def test_a_gpu_without_memory_is_named_in_one_line(cli, npz, tmp_path):
    process = cli(
        "--data", npz, "--device", "cuda", "--out", tmp_path / "run",
        env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.0001"},
    )  # fmt: skip
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "out of memory" in line
    assert "--batch-size" in line
