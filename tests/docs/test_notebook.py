"""The notebook runs from top to bottom, at the size of a toy, and is kept without outputs."""

import json
import re

import matplotlib
import pytest

from bench.results_file import REPOSITORY
from tests.runs import SIZES

PATH = REPOSITORY / "docs" / "gpt_kernels.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
TOY = [*SIZES, f"--data={REPOSITORY / 'README.md'}", "--max-iters=2", "--sample=8"]


def sources(kind):
    return ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == kind]


def test_the_notebook_is_one_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 4)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_links_lead_to_files():
    for link in re.findall(r"\]\(([^)]+)\)", "".join(sources("markdown"))):
        assert (PATH.parent / link).exists(), link


@pytest.fixture
def _drawn_off_screen():
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    matplotlib.use(before)


@pytest.mark.usefixtures("_drawn_off_screen")
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT_KERNELS_RUN", str(tmp_path / "out"))
    monkeypatch.setenv("GPT_KERNELS_OPTIONS", " ".join(TOY))
    names = {"__name__": "__main__"}
    for number, source in enumerate(sources("code"), 1):
        exec(compile(source, f"{PATH.name}, code cell {number}", "exec"), names)
    assert (tmp_path / "out" / "report.html").exists()
    assert len(names["maps"]) == 4  # layers x heads
    assert {"reference", "torch"} <= names["results"].keys()
    printed = capsys.readouterr().out
    assert re.search(r"^torch +loss \d\.\d{6} +there and back", printed, re.MULTILINE)
    assert "--- step 2, validation loss" in printed
