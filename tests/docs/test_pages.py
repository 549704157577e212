"""The Python examples in the docs run, and files, functions and times that pages name exist."""

import ast
import re

import pytest

from bench.results import REPOSITORY
from kernels import Ops
from kernels.norms.layer_norm import WIDEST

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GENERATION = {"decode_linear", "decode_attention", "sample_token"}


@pytest.mark.parametrize("page", ["library.md", "maths.md"])
def test_examples_run(page):
    blocks = BLOCK.findall((DOCS / page).read_text())
    assert blocks
    names = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_operation_has_limits_and_an_error_bound():
    limits, guarantees = (DOCS / "library.md").read_text().split("## Guarantees")
    assert f"C up to {WIDEST:,}" in limits
    for operation in Ops._fields:
        assert f"`{operation}`" in limits
        assert (f"`{operation}`" in guarantees) == (operation not in GENERATION)


def test_files_that_the_pages_name_exist():
    for page in [REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for name in re.findall(
            r"`((?:[a-z0-9_]+/|test_)[a-z0-9_/]+\.(?:py|json))`", page.read_text()
        ):
            assert (REPOSITORY / name).exists() or (REPOSITORY / "tests" / name).exists(), name


def test_files_on_the_map_of_the_readme_exist():
    tree = (REPOSITORY / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    top, folders = "", [""]
    for line in tree.strip().splitlines():
        if names := re.match(r"\w+/", line):
            top = names[0]
            folders = [top]
        elif names := re.match(r"  ((?:\w+/ +)+)", line):
            folders = [top + name for name in names[1].split()]
        elif re.match(r"  \w", line):
            folders = [top]
        assert all((REPOSITORY / folder).is_dir() for folder in folders), line
        for name in re.findall(r"\w+\.(?:py|json)", line):
            assert any((REPOSITORY / folder / name).exists() for folder in folders), name


# --- docs/walk.md ---------------------------------------------------------------------------------

WALK = (DOCS / "walk.md").read_text()
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", WALK)
LINKS = re.findall(r"\| \[(\d\d:\d\d:\d\d)\]\(\S+v=kCc8FmEb1nY&t=(\d+)s\)", WALK)


def definitions(body, prefix=""):
    """The dotted names of all functions and classes."""
    names = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names |= {prefix + node.name} | definitions(node.body, f"{prefix}{node.name}.")
    return names


def test_linked_functions_exist():
    assert len(NAMED) > 50
    for path in sorted({path for _, path in NAMED}):
        defined = definitions(ast.parse((REPOSITORY / path).read_text()).body)
        assert {name for name, where in NAMED if where == path} <= defined, path


def test_every_chapter_of_the_video_links_to_its_time():
    assert len(LINKS) == 30
    for time, linked in LINKS:
        hours, minutes, seconds = map(int, time.split(":"))
        assert int(linked) == 3600 * hours + 60 * minutes + seconds
    source = (REPOSITORY / "gpt" / "models" / "lecture.py").read_text()
    times = re.findall(r"\[?(\d\d:\d\d:\d\d)[],]", source)
    assert set(times) <= dict(LINKS).keys()
    assert len(times) > 15
