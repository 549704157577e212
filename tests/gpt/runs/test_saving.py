"""A save that fails or is killed, at whatever step of it, leaves the old checkpoint or the new."""

import errno
import json
import os
import resource
import subprocess
import sys

import pytest

from gpt import UserError
from gpt.runs.checkpoint import write_json
from tests.gpt.runs.saving import Faults, assert_old_or_new, save_step, step_of


def test_killed_at_every_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpt.runs.saving", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    calls = counted["calls"]
    # on the disk before it has its name, and its name before another file relies on it
    tensors = ["save_file", "open", "fsync", "replace"]
    folder, json_file = ["open", "fsync"], ["write_bytes", "open", "fsync", "replace"]
    steps = [*tensors * 3, *folder, *json_file, *folder, *json_file, *folder]
    assert calls[: len(steps)] == steps
    assert set(calls[len(steps) :]) == {"unlink"}
    assert counted["old"] + counted["new"] == len(calls) + 5
    assert counted["new"] >= 2  # killed while clearing up


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_at_every_step(tmp_path, number):
    def fail(half):
        if number == errno.ENOSPC:
            half()
        raise OSError(number, os.strerror(number))

    save_step(tmp_path, 0)
    with Faults(0, fail) as faults:
        save_step(tmp_path, 1)
    for when, name in enumerate(faults.calls, start=1):
        old = step_of(tmp_path, "last")
        with Faults(when, fail):
            if name == "unlink":  # clearing up can wait
                save_step(tmp_path, old + 1)
            else:
                with pytest.raises(UserError, match="could not be saved") as refusal:
                    save_step(tmp_path, old + 1)
                assert os.strerror(number) in str(refusal.value)
        assert_old_or_new(tmp_path, old, old + 1)
        assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("limit", [0, 1, 50, 150, 200, 300, 1000])
def test_a_full_disk(tmp_path, limit):
    save_step(tmp_path, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # bytes in a file
    try:
        with pytest.raises(UserError, match="could not be saved") as refusal:
            save_step(tmp_path, 1, padding="x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refusal.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_gone_or_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UserError, match="could not be saved to"):
            save_step(folder, 1)


def test_a_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
