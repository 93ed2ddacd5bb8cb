"""The benchmarks still run: they use the project's own parts and Keras's side. No time is asserted."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, stand_in

from running import machine

pytestmark = pytest.mark.benchmarks


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """A file of a few images of CIFAR-10's size: 80 for training, 20 for validation, 10 for the test."""
    path, arrays = tmp_path_factory.mktemp("data") / "few.npz", stand_in()
    parts = {f"{x}_{part}": getattr(arrays, f"{x}_{part}") for x in "xy" for part in ("train", "test")}
    np.savez(path, **{name: array[: 100 if "train" in name else 10] for name, array in parts.items()})
    return path


def run(script, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {name.strip(): [float(re.match(r"[\d.,]+", cell.strip())[0].replace(",", "")) for cell in cells]
            for name, *cells in lines}  # fmt: skip


def test_the_epochs_of_this_project_and_its_peers_are_timed_in_turn(npz):
    peers = ["idiomatic PyTorch", "Keras on torch"]
    # Where bfloat16 is emulated, the matrix products that measure the ceiling would take minutes.
    precision = [] if machine.why_not_bfloat16(torch.device("cpu")) else ["--mixed-precision"]
    said = run("epoch.py", "--data", npz, "--rounds", 1, "--model", "improved", *precision, "--only", *peers)
    assert "left out" not in said
    table = rows(said)
    assert list(table) == ["this project", *peers]
    assert all(figure > 0 for figures in table.values() for figure in figures[:3])
    assert re.search(r"Matrix products: [\d,]+ \([\d,]+ to [\d,]+\) GFLOP/s", said)


def test_concurrent_runs_are_measured_beside_those_of_a_peer(npz):
    said = run("throughput.py", "--data", npz, "--processes", 2, "--epochs", 1, "--peer", "Keras on torch")
    found = [re.fullmatch(r"\| 2 \| \d+ \| (.*) \| ([\d,]+) .*", line) for line in said.splitlines()]
    assert [row[1] for row in found if row] == ["this project", "Keras on torch"]


def test_each_part_of_the_gpu_benchmark_runs_at_toy_size_and_writes_its_figures(npz, tmp_path):
    run("gpu.py", tmp_path / "toy.json", "--toy", "--device", "cpu", "--data", npz)
    figures = json.loads((tmp_path / "toy.json").read_text())
    parts = ["machine", "waits", "baseline", "files", "others", "profile", "side by side", "tests", "compile"]
    assert [*figures] == [*parts, "real images"]
    assert not [name for name, of_part in figures.items() if {"failed", "left out"} & of_part.keys()]
    assert all(one["images per second"] > 0 for one in figures["baseline"].values() if isinstance(one, dict))
    assert [*figures["side by side"]][:2] == ["1 runs", "2 runs"]
    assert figures["tests"]["exit code"] == 0
    assert figures["real images"]["deterministic: the same bits"] is True


def test_the_gpu_benchmark_starts_no_part_that_would_not_finish_in_time(tmp_path):
    run("gpu.py", tmp_path / "toy.json", "--toy", "--device", "cpu", "--seconds", "1")
    figures = json.loads((tmp_path / "toy.json").read_text())
    assert len(figures) == 10
    assert all("are the limit" in of_part["left out"] for of_part in figures.values())
