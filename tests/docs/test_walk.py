"""The walk leads to what is there: every function it names, every time, every picture's numbers."""

import ast
import re

import pytest
import torch

from bench.report import walk_pictures
from bench.report.walk_pictures import SCORES, kinds, online
from bench.results_file import REPOSITORY

WALK = (REPOSITORY / "docs" / "walk.md").read_text()
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", WALK)
CHAPTERS = [  # as the video's description has them
    *("00:00:00", "00:07:52", "00:09:28", "00:14:27", "00:22:11", "00:34:53", "00:38:00"),
    *("00:42:13", "00:47:11", "00:51:54", "00:54:42", "00:58:26", "01:00:18", "01:02:00"),
    *("01:11:38", "01:12:46", "01:13:40", "01:14:14", "01:15:39", "01:16:56"),
    *("01:19:11", "01:21:59", "01:24:25", "01:26:48", "01:32:51", "01:37:49"),
    *("01:42:39", "01:46:22", "01:48:53", "01:54:32"),
]


def defined(body, above=""):
    """The dotted names of all functions and classes."""
    names = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names |= {above + node.name} | defined(node.body, f"{above}{node.name}.")
    return names


def test_the_walk_names_many():
    assert len(NAMED) > 50


@pytest.mark.parametrize("path", sorted({path for _, path in NAMED}))
def test_what_the_walk_names_is_there(path):
    known = defined(ast.parse((REPOSITORY / path).read_text()).body)
    assert {name for name, where in NAMED if where == path} <= known


def test_every_chapter_is_there_at_its_time():
    links = re.findall(r"\| \[(\d\d):(\d\d):(\d\d)\]\(\S+v=kCc8FmEb1nY&t=(\d+)s\)", WALK)
    assert [":".join(link[:3]) for link in links] == CHAPTERS
    for hours, minutes, seconds, linked in links:
        assert int(linked) == 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def test_times_in_the_code_are_chapters():
    told = re.findall(r"\[?(\d\d:\d\d:\d\d)[],]", (REPOSITORY / "gpt" / "lecture.py").read_text())
    assert set(told) <= set(CHAPTERS)
    assert len(told) > 15


def test_the_pictures_are_current(capsys):
    assert walk_pictures.main(["--check"]) == 0, "run python -m bench.report.walk_pictures"
    for name in walk_pictures.PICTURES:
        assert f"(pictures/{name}.svg)" in WALK


def test_a_changed_picture_is_found(tmp_path, capsys):
    assert walk_pictures.main(["--check"], tmp_path) == 1
    assert walk_pictures.main([], tmp_path) == 0
    assert walk_pictures.main(["--check"], tmp_path) == 0
    (tmp_path / "tiling.svg").write_text("<svg/>")
    assert walk_pictures.main(["--check"], tmp_path) == 1


def test_the_online_softmax_of_the_picture_is_the_softmax():
    weights = torch.softmax(torch.tensor(SCORES, dtype=torch.float64) * torch.tensor(2.0).log(), 0)
    last = online()[-1]
    assert last["m"] == max(SCORES)
    assert 1 / last["z"] == pytest.approx(weights.max().item(), rel=1e-6)


@pytest.mark.parametrize(("T", "M", "N"), [(1024, 128, 64), (256, 64, 64), (256, 32, 64)])
def test_the_tiles_of_the_picture_are_those_of_the_mask(T, M, N):
    tiles = torch.ones(T, T).tril().unflatten(1, (T // N, N)).unflatten(0, (T // M, M))
    seen = tiles.sum((1, 3))  # (rows of tiles, tiles of a row)
    for line, row in enumerate(kinds(T, M, N)):
        for column, kind in enumerate(row):
            count = seen[line, column]
            assert kind == ("skipped" if count == 0 else "plain" if count == M * N else "masked")
