"""docs/walk.md: the functions, chapter times and pictures that it refers to."""

import ast
import re

from bench.results import REPOSITORY

WALK = (REPOSITORY / "docs" / "walk.md").read_text()
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", WALK)
CHAPTERS = [  # from the video's description
    *("00:00:00", "00:07:52", "00:09:28", "00:14:27", "00:22:11", "00:34:53", "00:38:00"),
    *("00:42:13", "00:47:11", "00:51:54", "00:54:42", "00:58:26", "01:00:18", "01:02:00"),
    *("01:11:38", "01:12:46", "01:13:40", "01:14:14", "01:15:39", "01:16:56", "01:19:11"),
    *("01:21:59", "01:24:25", "01:26:48", "01:32:51", "01:37:49", "01:42:39", "01:46:22"),
    *("01:48:53", "01:54:32"),
]


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


def test_every_chapter_links_to_its_time():
    links = re.findall(r"\| \[(\d\d):(\d\d):(\d\d)\]\(\S+v=kCc8FmEb1nY&t=(\d+)s\)", WALK)
    assert [":".join(link[:3]) for link in links] == CHAPTERS
    for hours, minutes, seconds, linked in links:
        assert int(linked) == 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def test_times_in_the_code_are_chapters():
    source = (REPOSITORY / "gpt" / "models" / "lecture.py").read_text()
    times = re.findall(r"\[?(\d\d:\d\d:\d\d)[],]", source)
    assert set(times) <= set(CHAPTERS)
    assert len(times) > 15
