"""bfloat16 where it is faster than float32: who decides, what is printed, and what a resumed run keeps."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import options
import train
from options import Options
from running import machine
from running.outcome import CONFIG, METRICS

pytestmark = pytest.mark.precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(arrays, tmp_path_factory):
    """A file of few images, since some machines that run this emulate bfloat16."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **{name: array[:10] for name, array in arrays.items()})
    return path


@pytest.fixture
def hardware(monkeypatch):
    """Call it to say whether the hardware is faster in bfloat16."""

    def choose(faster):
        monkeypatch.setattr(machine, "why_not_bfloat16", lambda device: None if faster else "the reason")

    return choose


@pytest.mark.parametrize(
    ("processor", "instructions", "of_torch", "reason"),
    [
        ("Intel Xeon", ["avx512_bf16", "amx_bf16"], "AVX512", None),  # Sapphire Rapids
        ("Intel Xeon", ["avx512_bf16"], "AVX512", "no AMX"),  # the same, where a hypervisor hides AMX; Cooper Lake
        ("AMD EPYC", ["avx512_bf16"], "AVX512", None),  # Zen 4
        ("Intel Xeon", ["avx512_f"], "AVX512", "emulates"),  # Ice Lake
        ("AMD EPYC", ["avx2"], "AVX2", "emulates"),  # Zen 3
        ("Intel Xeon", ["avx512_bf16", "amx_bf16"], "AVX2", "emulates"),  # taken away by ATEN_CPU_CAPABILITY
    ],
)
def test_a_cpu_counts_as_faster_in_bfloat16_if_it_has_amx_or_is_from_amd_and_torch_uses_the_instructions(
    processor, instructions, of_torch, reason, monkeypatch
):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    capabilities = {"cpu_name": processor} | dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: of_torch)
    said = machine.why_not_bfloat16(CPU)
    assert said is None if reason is None else reason in said


def test_bfloat16_on_arm_is_reported_as_not_measured(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "has not been measured" in machine.why_not_bfloat16(CPU)


def test_a_torch_that_cannot_list_cpu_capabilities_counts_as_emulating_bfloat16(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert "emulates" in machine.why_not_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_a_gpu_is_faster_in_bfloat16_from_compute_capability_8_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (machine.why_not_bfloat16(torch.device("cuda")) is None) is expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the two variables are for x86")
def test_two_environment_variables_make_any_x86_processor_emulate_bfloat16():
    program = "import torch; from running import machine; print(machine.why_not_bfloat16(torch.device('cpu')))"
    without = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True, check=True)
    assert "emulates" in done.stdout


@pytest.mark.parametrize(
    ("flags", "with_hardware", "without"),
    [
        ("", False, False),
        ("--optimizer muon", False, False),
        ("--mixed-precision", True, True),
        ("--recipe fast", True, False),
        ("--recipe fast --mixed-precision", True, True),
        ("--recipe fast --no-mixed-precision", False, False),
        ("--recipe fast --dtype float64", False, False),
    ],
)
def test_the_hardware_decides_on_mixed_precision_with_recipe_fast_unless_a_flag_does(
    flags, with_hardware, without, hardware
):
    for faster, expected in ((True, with_hardware), (False, without)):
        hardware(faster)
        assert options.parse(flags.split()).checked().mixed_precision is expected


FAST = ["--recipe", "fast", "--epochs", "2"]


def begin(tiny, out, *flags):
    return train.main(["--data", str(tiny), "--out", str(out), *flags])


@pytest.mark.parametrize("faster", [True, False])
def test_the_chosen_precision_is_printed_and_recorded_in_config_json(faster, hardware, tiny, tmp_path, capsys):
    hardware(faster)
    assert begin(tiny, tmp_path / "run", *FAST) == 0
    printed = capsys.readouterr().out
    assert (", mixed precision (bfloat16)\n" in printed) is faster
    assert (", float32\n" in printed) is not faster
    assert "not recommended" not in printed
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    assert (config["flags"]["mixed_precision"], config["given"]["mixed_precision"]) == (faster, None)


def test_requesting_bfloat16_where_it_is_slower_prints_a_one_line_warning(hardware, tiny, tmp_path, capsys):
    hardware(False)
    assert begin(tiny, tmp_path / "run", "--mixed-precision", "--epochs", "1") == 0
    assert "\n--mixed-precision is not recommended here: the reason.\n" in capsys.readouterr().out


@pytest.mark.parametrize("began", [True, False])
def test_a_resumed_run_keeps_its_precision_on_another_machine_and_a_flag_that_changes_it_is_refused(
    began, hardware, tiny, tmp_path, capsys
):
    out = tmp_path / "run"
    hardware(began)
    assert begin(tiny, out, *FAST) == 0
    (out / METRICS).unlink()  # as if killed before it was written
    hardware(not began)
    flag = "--no-mixed-precision" if began else "--mixed-precision"
    flags = [*FAST, "--resume"]
    assert begin(tiny, out, *flags, flag) == 2
    assert f"--mixed-precision {not began} (was {began}" in capsys.readouterr().err
    for again in ([*flags, "--data", str(tiny), "--out", str(out)], ["--resume", str(out)]):
        assert train.main(again) == 0
        printed = capsys.readouterr().out
        assert (", mixed precision (bfloat16)\n" in printed) is began
        assert ("not recommended" in printed) is began
        assert json.loads((out / CONFIG).read_text())["flags"]["mixed_precision"] is began
        (out / METRICS).unlink()


def test_a_new_run_with_the_config_of_an_earlier_one_asks_the_hardware_again_unless_a_flag_had_decided(
    hardware, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hardware(True)
    for name, flags in (("left open", []), ("forced", ["--mixed-precision"])):
        assert begin(tiny, tmp_path / name, *FAST, *flags) == 0
    hardware(False)
    found = [
        options.parse(["--config", str(tmp_path / name)]).checked().mixed_precision for name in ("left open", "forced")
    ]
    assert found == [False, True]


def test_a_damaged_config_is_refused_by_name_and_not_treated_as_a_missing_run(hardware, tiny, tmp_path, capsys):
    out = tmp_path / "run"
    assert begin(tiny, out, *FAST) == 0
    (out / CONFIG).write_text("{")
    assert begin(tiny, out, *FAST, "--resume") == 2
    assert f"{out / CONFIG}: not JSON" in capsys.readouterr().err


def test_mixed_precision_none_in_python_also_leaves_the_decision_to_the_hardware(hardware):
    for faster in (True, False):
        hardware(faster)
        assert Options(mixed_precision=None).checked().mixed_precision is faster
