"""The benchmarks still run: they use the project's own parts and Keras's side. No time is asserted."""

import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT


def run(script, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {name.strip(): [float(re.match(r"[\d.,]+", cell.strip())[0].replace(",", "")) for cell in cells]
            for name, *cells in lines}  # fmt: skip


def test_the_epochs_of_this_project_and_its_peers_are_timed_in_turn(npz):
    peers = ["idiomatic PyTorch", "Keras on torch"]
    said = run("epoch.py", "--data", npz, "--rounds", 1, "--model", "improved", "--mixed-precision", "--only", *peers)
    assert "left out" not in said
    table = rows(said)
    assert list(table) == ["this project", *peers]
    assert all(figure > 0 for figures in table.values() for figure in figures[:3])
    assert re.search(r"Matrix products: [\d,]+ \([\d,]+ to [\d,]+\) GFLOP/s", said)


@pytest.mark.parametrize("side", ["OURS", "KERAS"])
def test_the_first_step_and_the_memory_of_an_epoch_are_measured(side, npz):
    script = runpy.run_path(str(ROOT / "benchmarks" / "start.py"))
    seconds, gigabytes = script["measure"](script[side], str(npz))
    assert seconds > 0.5
    assert 0.1 < gigabytes < 10


def test_a_run_that_fails_is_no_measurement(npz):
    script = runpy.run_path(str(ROOT / "benchmarks" / "start.py"))
    with pytest.raises(SystemExit, match="its runs ended with 3 and 3"):
        script["measure"]("import sys; sys.exit(3)", str(npz))


def test_runs_side_by_side_are_measured_with_a_peer_s(npz):
    said = run("throughput.py", "--data", npz, "--processes", 2, "--epochs", 1, "--peer", "Keras on torch")
    found = [re.fullmatch(r"\| 2 \| \d+ \| (.*) \| ([\d,]+) .*", line) for line in said.splitlines()]
    assert [row[1] for row in found if row] == ["this project", "Keras on torch"]
