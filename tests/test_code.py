"""Which code a run was trained with: the files that affect its results, and where their hash is compared."""

import ast
import json

import pytest
from conftest import ROOT

import sweep
import train
from running import code
from running.code import DECIDING, KERAS, TRAIN
from running.outcome import CONFIG, HISTORY, METRICS

DECIDING_NOTHING = {
    "options.py": "what it resolves is in config.json, and compared",
    "plots.py": "pictures",
    "report.py": "text, and metrics.json from figures that exist already",
    "cli/": "the command line",
    "running/": "files, locks and signals; those that compute are listed as deciding",
    "sources/": "the images and labels have a hash of their own",
}


def imported(name, seen):
    """Add to `seen` the file `name`, the project's files that it imports anywhere, and all that these import."""
    seen.add(name)
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            file = f"{module.replace('.', '/')}.py"
            if (ROOT / file).is_file() and file not in seen:
                imported(file, seen)
    return seen


@pytest.mark.parametrize("program", [TRAIN, KERAS])
def test_every_file_that_a_program_imports_is_listed_as_affecting_its_results_or_not(program):
    files = imported(program, set())
    undecided = files - set(DECIDING[program])
    assert set(DECIDING[program]) <= files
    assert [file for file in sorted(undecided) if not file.startswith(tuple(DECIDING_NOTHING))] == []


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Change the code: copies of the deciding files replace the project's, one of them with an extra line."""

    def change(name):
        for file in {*DECIDING[TRAIN], *DECIDING[KERAS], "README.md"}:
            (tmp_path / "code" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "code" / file).write_bytes((ROOT / file).read_bytes() + b"# changed\n" * (file == name))
        monkeypatch.setattr(code, "ROOT", tmp_path / "code")

    return change


def test_the_code_hash_covers_only_what_affects_the_results_and_ignores_line_endings(changed):
    before = code.sha256(TRAIN)
    changed("README.md")
    assert code.sha256(TRAIN) == before
    for name in DECIDING[TRAIN]:
        changed(name)
        assert code.sha256(TRAIN) != before
    model = code.ROOT / "model.py"
    changed("README.md")
    model.write_bytes(model.read_bytes().replace(b"\n", b"\r\n"))  # as git may check it out on Windows
    assert code.sha256(TRAIN) == before


def test_resuming_a_run_with_different_code_is_reported_even_if_it_was_finished_already(
    little, tmp_path, changed, capsys
):
    arguments = ["--data", str(little), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    before = code.sha256(TRAIN)
    changed("model.py")
    capsys.readouterr()
    assert train.main([*arguments, "1"]) == 0
    assert "It was trained with other code, whose results may differ" in capsys.readouterr().out
    assert train.main([*arguments, "2"]) == 0
    change = f"code_sha256 {code.sha256(TRAIN):.40} instead of {before:.40}"
    assert f"Changed since then: {change}. Results may" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / METRICS).read_text())
    assert metrics["bits_changed"] == [f"after epoch 1: {change}"]


def test_another_commit_with_the_same_code_does_not_count_as_a_change(little, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(little), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    monkeypatch.setattr("running.machine._git_commit", lambda: "f" * 40)
    assert train.main([*arguments, "2"]) == 0
    assert "Changed since then" not in capsys.readouterr().out


def test_a_sweep_adds_no_runs_to_those_trained_with_different_code(little, tmp_path, changed, capsys):
    behind = ["--", "--data", str(little), "--epochs", "1", "--out", str(tmp_path / "seed<seed>")]
    assert train.main([*behind[1:-1], str(tmp_path / "seed0")]) == 0
    changed("model.py")
    assert sweep.main(["--seeds", "0-1", *behind]) == 2
    assert f"{tmp_path}/seed0: the run there was trained by other code than this" in capsys.readouterr().err
    assert not (tmp_path / "seed1").exists()
    assert sweep.main(["--seeds", "0", *behind]) == 0  # all have finished: nothing is added
    assert train.main([*behind[1:-1], str(tmp_path / "seed1"), "--seed", "1"]) == 0
    capsys.readouterr()
    assert sweep.main(["--seeds", "0-1", "--grid", "l2=0.001", *behind]) == 2
    remedy = "delete those that differ, then run the same command again"
    assert f"sweep.py: error: these runs do not belong together; {remedy}:\n  other code: " in capsys.readouterr().err


def test_environment_variables_that_affect_results_are_compared_when_a_run_is_resumed(
    little, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    arguments = ["--data", str(little), "--out", str(tmp_path / "run"), "--resume", "--epochs"]
    assert train.main([*arguments, "1"]) == 0
    before = json.loads((tmp_path / "run" / CONFIG).read_text())["variables"]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert train.main([*arguments, "2"]) == 0
    assert "Changed since then: variables " in capsys.readouterr().out
    after = json.loads((tmp_path / "run" / CONFIG).read_text())["variables"]
    assert after.replace("MKL_CBWR=COMPATIBLE", "").strip() == before.replace("none", "")
    assert len((tmp_path / "run" / HISTORY).read_text().splitlines()) == 3


def test_an_environment_variable_that_lowers_precision_is_reported_at_the_start(little, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")  # oneDNN has read it already, so this run is unharmed
    assert train.main(["--data", str(little), "--out", str(tmp_path / "run"), "--epochs", "1"]) == 0
    line = "ONEDNN_DEFAULT_FPMATH_MODE=BF16 is set: libraries may compute products with fewer bits than float32 has."
    assert line in capsys.readouterr().out
