"""The commands and links in the README and the docs are valid.

The commands that train, sample and report run in the order of the pages, with a tiny model.
"""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest

import sample
import train
from bench.results import REPOSITORY
from tests.runs import CPU, SIZES

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.MULTILINE | re.DOTALL)
TEXT = "ROMEO: what is it that you say?\n" * 40
PLACEHOLDER = re.compile(r"^[A-Z_]+$|PATH|FILE|^my\.txt$")  # for the reader to fill in


def commands() -> list[tuple[str, ...]]:
    """The words of each distinct command, without environment variables."""
    found = []
    for block in (block for page in PAGES for block in SHELL.findall(page.read_text())):
        for part in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                found.append(tuple(words))
    return list(dict.fromkeys(found))


COMMANDS = commands()


def test_every_command_is_of_a_tested_kind():
    kinds = r"python (train\.py|sample\.py|-m|docs/)|make |pytest|pip |cp |torchrun "
    assert [one for one in map(" ".join, COMMANDS) if not re.match(kinds, one)] == []
    assert len(COMMANDS) > 15


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


@pytest.mark.parametrize("page", [*PAGES, *(REPOSITORY / "docs").glob("*.ipynb")], ids=str)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if not re.match(r"https?:", link):
            target = page.parent / path if path else page
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                assert anchor in slugs, link


def test_the_index_lists_every_page():
    index = (REPOSITORY / "docs" / "README.md").read_text()
    assert "](ladder/README.md)" in index
    for path in (REPOSITORY / "docs").glob("*.*"):
        assert path.name == "README.md" or f"]({path.name})" in index
