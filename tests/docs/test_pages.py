"""The pages are valid: commands, links and examples work, and what they name exists.

The commands that train, sample and report run in the order of the pages, with a tiny model, as does
the notebook.
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest
from matplotlib import pyplot

import sample
import train
from bench.results import REPOSITORY
from tests.runs import CPU, SIZES

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`((?:[a-z0-9_]+/|test_)[a-z0-9_/]+\.(?:py|json))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.MULTILINE | re.DOTALL)
TEXT = "ROMEO: what is it that you say?\n" * 40
PLACEHOLDER = re.compile(r"^[A-Z_]+$|PATH|FILE|^my\.txt$")  # for the reader to fill in
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# the words of each distinct command, without environment variables
BLOCKS = "\n".join(block for page in PAGES for block in SHELL.findall(page.read_text()))
PARTS = re.split(r"\n|&&", BLOCKS.replace("\\\n", " "))
LINES = (re.sub(r"^(\s*[A-Z_]+=\S*)+", "", part) for part in PARTS)
WORDS = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in LINES)
COMMANDS = [words for words in WORDS if words]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1:2] == ("-m",)], ids=" ".join)
def test_modules_have_the_options(command, capsys):
    name = command[2]
    is_package = importlib.util.find_spec(name).submodule_search_locations is not None
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    with mock.patch("sys.argv", [name, "--help"]), pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0
    help_ = capsys.readouterr().out
    options = [word.partition("=")[0] for word in command[3:] if word.startswith("--")]
    assert [option for option in options if option not in help_] == []


def test_files_targets_and_extras_exist():
    setup = (REPOSITORY / "setup.py").read_text()
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {command[1] for command in COMMANDS if command[0] == "make"} <= set(targets)
    for word in (word for command in COMMANDS for word in command[1:]):
        if extra := re.fullmatch(r"\.\[(\w+)\]", word):
            assert f'"{extra.group(1)}": [' in setup
        is_path = word.startswith(("docs/", "tests/", "bench/")) or word.endswith((".py", ".txt"))
        if is_path and not PLACEHOLDER.search(word):
            assert (REPOSITORY / word).exists(), word


def test_training_and_sampling_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    tiny = [*SIZES, *CPU, "--max-iters=2", "--eval-interval=2", "--sample=4"]
    for command in COMMANDS:
        options = list(command[2:])
        if command[:2] == ("python", "train.py"):
            has_data = "--data" in options or "--resume" in options
            options += tiny if has_data else [*tiny, "--data=my.txt"]
            assert train.main(options) == 0, command
        elif command[:2] == ("python", "sample.py"):
            options += ["--device=cpu", "--max-new-tokens=4"]
            assert sample.main(options) == 0, command
            assert capsys.readouterr().out.count("ROMEO:") == options.count("ROMEO:")
    assert Path("mine", "summary.json").exists()


@pytest.mark.parametrize("page", [*PAGES, *DOCS.glob("*.ipynb")], ids=str)
def test_files_that_are_named_and_headings_that_are_linked_exist(page):
    for name in NAME.findall(page.read_text()):
        assert (REPOSITORY / name).exists() or (REPOSITORY / "tests" / name).exists(), name
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if not re.match(r"https?:", link):
            target = page.parent / path if path else page
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                assert anchor in slugs, link


@pytest.mark.parametrize("page", ["library.md", "maths.md"])
def test_examples_run(page):
    blocks = BLOCK.findall((DOCS / page).read_text())
    assert blocks
    names = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


# --- docs/walk.md ---------------------------------------------------------------------------------

WALK = (DOCS / "walk.md").read_text()
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", WALK)


def test_linked_functions_exist():
    assert len(NAMED) > 50
    for name, path in NAMED:
        found = [ast.parse((REPOSITORY / path).read_text())]
        for part in name.split("."):
            inside = [node for outer in found for node in outer.body if hasattr(node, "body")]
            found = [node for node in inside if getattr(node, "name", "") == part]
        assert found, f"{name} of {path}"


# --- docs/gpt_kernels.ipynb -----------------------------------------------------------------------

NOTEBOOK = DOCS / "gpt_kernels.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
TINY = [*SIZES, f"--data={REPOSITORY / 'README.md'}", "--max-iters=2", "--sample=8"]


def test_the_notebook_runs_and_has_no_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT_KERNELS_RUN", str(tmp_path / "out"))
    monkeypatch.setenv("GPT_KERNELS_OPTIONS", " ".join(TINY))
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # the interpreter would take most of the time
    pyplot.switch_backend("Agg")  # off the screen
    names = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS, 1):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        exec(compile("".join(cell["source"]), f"code cell {number}", "exec"), names)
    pyplot.close("all")
    assert len(names["maps"]) == 4  # two layers of two heads
    assert {"reference", "torch"} <= names["results"].keys()
    printed = capsys.readouterr().out
    assert re.search(r"^torch +loss \d\.\d{6} +forward \+ backward", printed, re.MULTILINE)
