"""The folder of a run is created and locked, and earlier runs are kept."""

import errno
import os
from unittest.mock import Mock

import pytest

from gpt import UserError
from gpt.runs.run_folder import run_folder


def test_an_earlier_run_is_renamed(tmp_path):
    folder = tmp_path / "a" / "out"
    for number in (None, 1, 2):
        with run_folder(folder, resume=False) as held:
            assert held.earlier == (tmp_path / "a" / f"out.{number}" if number else None)
            assert [path.name for path in folder.iterdir()] == ["lock"]
            (folder / "config.json").write_text(str(number))
    assert (tmp_path / "a" / "out.1" / "config.json").read_text() == "None"
    assert (tmp_path / "a" / "out.2" / "config.json").read_text() == "1"


def test_resuming_keeps_the_folder_and_removes_partial_files(tmp_path):
    for name in ("config.json", "last.json", "weights.77.partial"):
        (tmp_path / name).write_text("")
    with run_folder(tmp_path, resume=True) as held:
        assert held.earlier is None
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "last.json", "lock"]


def test_unusable_paths_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"--out-dir .* is not usable: "):
            run_folder(folder, resume=False).__enter__()
    # a read-only file system, because permissions do not stop root, who may run the tests
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError(errno.EROFS, "Read-only")))
    with pytest.raises(UserError, match="is not usable: Read-only"):
        run_folder(tmp_path, resume=True).__enter__()
