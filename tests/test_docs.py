"""README and docs/: short enough to be read, links that lead somewhere, options that exist."""

import contextlib
import io
import re
import runpy
import sys

import pytest
from conftest import ROOT

README = ROOT / "README.md"
USERS = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*USERS, *ROOT.glob("CONTRIBUTING.md"), ROOT / "results" / "README.md"]
COMMANDS = [
    *("train.py", "compare.py", "predict.py", "sweep.py", "reference/keras_notebook.py", "reference/prove.py"),
    *("benchmarks/epoch.py", "benchmarks/throughput.py", "benchmarks/gpu.py"),
]
OTHERS = {
    *("--nproc-per-node", "--max-restarts"),  # torchrun
    *("--array", "--cpus-per-task", "--time", "--signal", "--requeue", "--open-mode", "--gres", "--wrap"),  # Slurm
    *("--index-url", "--logdir"),  # pip, TensorBoard
}


def name(path):
    return str(path.relative_to(ROOT))


def test_readme_is_at_most_150_lines_of_at_most_120_characters():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("document", USERS, ids=name)
def test_no_line_of_text_is_over_120_characters_and_no_cell_over_100(document):
    for line in document.read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line) if line.startswith("|") else []
        assert len(line) <= 120 or cells, line
        assert all(len(cell.strip()) <= 100 for cell in cells), line


@pytest.mark.parametrize("document", ALL, ids=name)
def test_every_relative_link_and_picture_leads_to_a_file(document):
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    relative = [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert [target for target in relative if not (document.parent / target).is_file()] == []


@pytest.fixture(scope="module")
def options():
    """Every option that the help of any command shows, and those of other programs."""
    return OTHERS.union(*(in_help(command) for command in COMMANDS))


def words_like_options(text):
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", text))


def in_help(command):
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [command, "--help"])
        patch.setattr(sys, "path", [*sys.path])  # the benchmarks add to it
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / command), run_name="__main__")
    return words_like_options(printed.getvalue())


@pytest.mark.parametrize("document", USERS, ids=name)
def test_every_option_named_in_the_docs_exists(document, options):
    assert words_like_options(document.read_text()) - options == set()
