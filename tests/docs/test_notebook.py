"""docs/gpt_kernels.ipynb runs from top to bottom, with a tiny model, and has no stored outputs."""

import json
import re

from matplotlib import pyplot

from bench.results import REPOSITORY
from tests.runs import SIZES

PATH = REPOSITORY / "docs" / "gpt_kernels.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text())["cells"] if cell["cell_type"] == "code"]
TINY = [*SIZES, f"--data={REPOSITORY / 'README.md'}", "--max-iters=2", "--sample=8"]


def test_the_notebook_has_no_outputs():
    for cell in CELLS:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT_KERNELS_RUN", str(tmp_path / "out"))
    monkeypatch.setenv("GPT_KERNELS_OPTIONS", " ".join(TINY))
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # the interpreter would take most of the time
    pyplot.switch_backend("Agg")  # off the screen
    names = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS, 1):
        exec(compile("".join(cell["source"]), f"{PATH.name}, code cell {number}", "exec"), names)
    pyplot.close("all")
    assert len(names["maps"]) == 4  # two layers of two heads
    assert {"reference", "torch"} <= names["results"].keys()
    printed = capsys.readouterr().out
    assert re.search(r"^torch +loss \d\.\d{6} +forward \+ backward", printed, re.MULTILINE)
    assert "--- step 2, validation loss" in printed
