"""Every command that the README or a page shows can be typed: options parse, files are there.

Those that train, sample and report are run too, one after the other, at the size of a toy.
"""

import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

import sample
import train
from bench.report import __main__ as report
from bench.results_file import REPOSITORY
from gpt.config.cli import parse, parse_run
from tests.runs import CPU, SIZES

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.MULTILINE | re.DOTALL)
TEXT = "ROMEO: what is it that you say?\n" * 40
PLACEHOLDER = re.compile(r"^[A-Z_]+$|PATH|FILE")  # for the reader to fill in


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        return " ".join(self.words)


def commands() -> list[Command]:
    """Each once, without what it sets in the environment."""
    found = {}
    for page in PAGES:
        for block in SHELL.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.match(r"^[A-Z_]+=", words[0]):
                        words.pop(0)
                    if words:
                        command = Command(str(page.relative_to(REPOSITORY)), tuple(words))
                        found.setdefault(command.line, command)
    return list(found.values())


COMMANDS = commands()


def links(page) -> list[str]:
    """Where the page's text leads; what stands in code is no link."""
    return LINK.findall(CODE.sub("", page.read_text()))


def by(*beginning):
    return [one for one in COMMANDS if one.words[: len(beginning)] == beginning]


def line(command):
    return command.line


def options(command):
    """Those that start with dashes, without their values."""
    return [word.partition("=")[0] for word in command.words[2:] if word.startswith("--")]


def test_every_command_is_of_a_kind_that_is_tested():
    kinds = (
        *(by("python", "train.py"), by("python", "sample.py"), by("python", "-m")),
        *(by("make"), by("pytest"), by("pip"), by("cp"), by("torchrun")),
        [one for one in by("python") if one.words[1].startswith("docs/")],
    )
    assert sorted(one for kind in kinds for one in kind) == sorted(COMMANDS)
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("command", [*by("python", "train.py"), *by("torchrun")], ids=line)
def test_options_of_train_parse(command):
    given = command.words[command.words.index("train.py") + 1 :]
    given = [word for word in given if word != "--resume"]  # its run is not here
    assert parse_run(given, "quickstart", lambda name: {})


@pytest.mark.parametrize("command", by("python", "sample.py"), ids=line)
def test_options_of_sample_parse(command):
    assert sample.check(parse(sample.SampleConfig, sample.SampleConfig(), command.words[2:], ""))


@pytest.mark.parametrize("command", by("python", "-m"), ids=line)
def test_a_module_knows_the_options(command, capsys):
    module = importlib.import_module(command.words[2])
    with mock.patch("sys.argv", [command.words[2], "--help"]), pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert [option for option in options(command) if option not in told] == []


@pytest.mark.parametrize("command", by("make"), ids=line)
def test_make_has_the_target(command):
    assert re.search(rf"^{command.words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", by("pip"), ids=line)
def test_pip_finds_what_it_installs(command):
    extra = re.search(r"\[(\w+)\]", command.line).group(1)
    assert f'"{extra}": [' in (REPOSITORY / "setup.py").read_text()


@pytest.mark.parametrize("command", [*by("pytest"), *by("python"), *by("pip"), *by("cp")], ids=line)
def test_files_are_there(command):
    for word in command.words[1:]:
        path = word.partition("::")[0]
        named = path.startswith(("docs/", "tests/", "bench/")) or path.endswith((".py", ".txt"))
        if named and not PLACEHOLDER.search(path) and path != "my.txt":
            assert (REPOSITORY / path).exists()


def test_the_commands_of_training_and_sampling_run(tmp_path, monkeypatch, capsys):
    """In the order of the pages, in one folder, as somebody would who types them all."""
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    reported = []
    toy = [*SIZES, *CPU, "--max-iters=2", "--eval-interval=2", "--sample=4"]
    for command in COMMANDS:
        given = list(command.words[2:])
        if command.words[:2] == ("python", "train.py"):
            given += toy if "--data" in given or "--resume" in given else [*toy, "--data=my.txt"]
            assert train.main(given) == 0, command.line
        elif command.words[:2] == ("python", "sample.py"):
            given += ["--device=cpu", "--max-new-tokens=4"]
            assert sample.main(given) == 0, command.line
            assert capsys.readouterr().out.count("ROMEO:") == given.count("ROMEO:")
        elif command.words[1:3] == ("-m", "bench.report") and len(given) > 1:
            assert report.main(given[1:]) == 0, command.line
            reported += given[1:]
    assert Path("mine", "summary.json").exists()
    assert len(list(Path().glob("*/report.html"))) == len(reported) > 0  # a later run moves `out`


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page):
    for link in links(page):
        if not re.match(r"https?:|#", link):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_anchors_are_headings(page):
    for link in links(page):
        path, hash_, anchor = link.partition("#")
        if hash_ and not path.startswith("http"):
            text = ((page.parent / path) if path else page).read_text()
            titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, link


def test_every_page_is_in_the_index():
    index = (REPOSITORY / "docs" / "README.md").read_text()
    for path in (REPOSITORY / "docs").glob("*.*"):
        if path.name != "README.md":
            assert f"]({path.name})" in index
    assert "](ladder/README.md)" in index
